"""Results of other tools: Ray Tune, Optuna, MLflow, TensorBoard, and files of any tool.

Reads them; what is left out, pooled or refused is `search.analysis.foreign_table`'s to say. Neither
Ray nor MLflow is imported, Optuna and TensorBoard only inside functions. Others use
`opened.open_source`.
"""
