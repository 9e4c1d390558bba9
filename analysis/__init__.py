"""What was learned: run folders as pandas tables, comparison, decisions. No torch, no ray.

>>> import analysis
>>> run = analysis.load("runs/phase1")          # doctest: +SKIP
>>> print(analysis.summary_text(run))           # doctest: +SKIP
"""

from analysis.columns import COLUMNS
from analysis.compare import comparison_matrix
from analysis.decide import Decision, decide, next_step
from analysis.derived import write_derived
from analysis.load import Run, load
from analysis.rows import ResultsError
from analysis.text import summary_text

__all__ = [
    "COLUMNS",
    "Decision",
    "ResultsError",
    "Run",
    "comparison_matrix",
    "decide",
    "load",
    "next_step",
    "summary_text",
    "write_derived",
]
