"""``python -m etrm_tune`` is ``etrm-tune``."""

from etrm_tune.cli import console

console()
