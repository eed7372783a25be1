"""One update and what it is made of: optimizer, schedule, loss, metrics, noise scale."""
