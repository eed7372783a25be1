from search.explore.declarations import (
    Ablation,
    Asha,
    Grid,
    HyperBand,
    Leaders,
    Median,
    Optuna,
    Pbt,
    Random,
    Stopper,
    Variants,
)

__all__ = [
    "Ablation",
    "Asha",
    "Grid",
    "HyperBand",
    "Leaders",
    "Median",
    "Optuna",
    "Pbt",
    "Random",
    "Stopper",
    "Variants",
]
