"""Tables of the papers whose studies are here, as rows of fields and scores.

This is no study itself.
"""

_KANDEL_BATCH_SIZES = (16, 32, 64, 128, 256)
_KANDEL_TEST_AUC = {  # by optimizer and learning rate, one number a batch size
    ("adam", 1e-4): (0.9677, 0.9636, 0.9616, 0.9567, 0.9585),
    ("adam", 1e-3): (0.9144, 0.9332, 0.9381, 0.9432, 0.9652),
    ("sgd", 1e-4): (0.9555, 0.9570, 0.9512, 0.9302, 0.9077),
    ("sgd", 1e-3): (0.9461, 0.9521, 0.9545, 0.9567, 0.9579),
}
# Kandel & Castelli 2020, Tables 1 (Adam) and 2 (SGD): test AUC, one run a cell.
KANDEL = [
    {"optimizer": optimizer, "base_lr": lr, "batch_size": batch_size, "test_auroc": auc}
    for (optimizer, lr), aucs in _KANDEL_TEST_AUC.items()
    for batch_size, auc in zip(_KANDEL_BATCH_SIZES, aucs, strict=True)
]
