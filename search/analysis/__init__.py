"""Tables in, numbers out: surface, ridge, scaling, interaction, time to target.

Imports `trainable.config` and statistics libraries; no Ray, no torch, no HTML.
Others use `analyse` (all numbers of one surface), and the functions of each file.
"""

from search.analysis.analysis import Analysis, analyse

__all__ = ["Analysis", "analyse"]
