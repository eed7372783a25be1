"""The Parquet tables of a study, which are the record: read, commit, verify, compact.

Imports `trainable.{config,record,host}`; no Ray, no torch. The driver is the only writer.
Others use `open_folder`, `trials` and `epochs`; `tables` has the rest.
"""

from search.results.tables import Results, ResultsError, epochs, open_folder, open_results, trials

__all__ = ["Results", "ResultsError", "epochs", "open_folder", "open_results", "trials"]
