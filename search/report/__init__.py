"""Numbers to page, terminal and figures.

Imports analysis, results and study; neither explore nor execution, nor Ray nor torch.
Others use `report.write_report` and `terminal.print_answer`.
"""
