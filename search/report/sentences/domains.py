"""What a field varies over, in words."""

from search.analysis.declared import Domain, domain_of
from search.report.sentences.wording import listed
from search.study.shown import show


def domain_words(declared: object) -> str:
    """`16 and 32`, `one of 16 and 32` or `0.001 to 1 (log scale)`; a fixed value as it is."""
    domain = domain_of(declared)
    if domain is None:
        return show(declared)
    if domain.low is None or domain.high is None:
        values = listed([show(value) for value in domain.values])
        return values if domain.is_grid else f"one of {values}"
    return f"{show(domain.low)} to {show(domain.high)} ({', '.join(_kind(domain))})"


def _kind(domain: Domain) -> list[str]:
    """The scale and the steps of a range."""
    words = [f"{domain.scale} scale" if domain.scale else "its scale was not recorded"]
    words += [f"in steps of {show(domain.step)}"] if domain.step else []
    return [*words, "whole numbers"] if domain.is_whole else words
