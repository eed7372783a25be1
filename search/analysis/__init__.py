"""Tables in, numbers out: surface, ridge, scaling, interaction, cost of a target, importance.

Imports `trainable.config` and statistics libraries; neither Ray nor torch nor HTML. Others use
`analyse` (all numbers of one surface), `groups.analyses` (all surfaces of a study), `foreign_table`
(anyone's table) and the functions of each file.
"""

from search.analysis.analysis import Analysis, analyse

__all__ = ["Analysis", "analyse"]
