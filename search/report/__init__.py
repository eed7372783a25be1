"""Numbers to a page, to the terminal and to figures.

Imports `search.analysis`, `search.results` and `search.study`; neither explore nor execution, nor
Ray nor torch. Others use `report.write_report` and `terminal.print_answer`.
"""
