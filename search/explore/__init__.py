"""One file for each way to choose trials, with its declaration.

Imports study, results (reading) and `analysis`; no torch, no Tuner; Optuna only inside
functions. Space files use the names below; nobody else asks which explorer a study has.
"""

from search.explore.ablation import Ablation
from search.explore.branch import Branch
from search.explore.grid import Grid
from search.explore.leaders import Leaders
from search.explore.optuna import Optuna
from search.explore.pbt import Pbt
from search.explore.random import Random
from search.explore.ridge import Ridge
from search.explore.stop import Asha, Forecast, HyperBand, Median
from search.explore.variants import Variants

__all__ = [
    "Ablation",
    "Asha",
    "Branch",
    "Forecast",
    "Grid",
    "HyperBand",
    "Leaders",
    "Median",
    "Optuna",
    "Pbt",
    "Random",
    "Ridge",
    "Variants",
]
