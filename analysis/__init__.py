"""What was learned: run folders as pandas tables, comparison, decisions. No torch, no ray.

>>> import analysis
>>> run = analysis.load("runs/phase1")          # doctest: +SKIP
>>> print(analysis.summary_text(run))           # doctest: +SKIP
"""

from analysis.columns import COLUMNS
from analysis.compare import comparison_matrix
from analysis.decide import decide, next_step, next_steps, red_flags
from analysis.decision import Decision, NextStep
from analysis.derived import write_derived
from analysis.fixed import values_at
from analysis.health import Sign, health, signs
from analysis.hypotheses import Finding, hypotheses
from analysis.load import Run, load
from analysis.paired import Paired, paired
from analysis.replay import replay
from analysis.replayed import Replay
from analysis.rows import ResultsError
from analysis.select import followup
from analysis.text import summary_text

__all__ = [
    "COLUMNS",
    "Decision",
    "Finding",
    "NextStep",
    "Paired",
    "Replay",
    "ResultsError",
    "Run",
    "Sign",
    "comparison_matrix",
    "decide",
    "followup",
    "health",
    "hypotheses",
    "load",
    "next_step",
    "next_steps",
    "paired",
    "red_flags",
    "replay",
    "signs",
    "summary_text",
    "values_at",
    "write_derived",
]
