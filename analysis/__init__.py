"""What was learned: run folders as pandas tables, comparison, decisions. No torch, no ray.

>>> import analysis
>>> run = analysis.load("runs/phase1")          # doctest: +SKIP
>>> print(analysis.summary_text(run))           # doctest: +SKIP
"""

from analysis.columns import COLUMNS
from analysis.compare import comparison_matrix
from analysis.load import Run, load
from analysis.rows import ResultsError

__all__ = ["COLUMNS", "ResultsError", "Run", "comparison_matrix", "load"]
