"""The Parquet tables of a study, which are its record: read, commit, verify, compact.

Imports `trainable.{config,record,host}`; neither Ray nor torch. Others use the names below, other
functions of `tables`, and `lock` (one writer per study). `files` is for `tables` and the report.
"""

from search.results.tables import Results, ResultsError, epochs, open_folder, open_results, trials

__all__ = ["Results", "ResultsError", "epochs", "open_folder", "open_results", "trials"]
