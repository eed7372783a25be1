"""Numbers -> sentences: what can be concluded, what cannot and why, and what to know before."""

from search.report.sentences.caveats import cautions
from search.report.sentences.conclusions import conclusions

__all__ = ["cautions", "conclusions"]
