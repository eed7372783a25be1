"""Numbers -> sentences: what can be concluded, what cannot and why, and what to know before."""
