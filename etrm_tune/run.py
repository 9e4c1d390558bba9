"""``python -m etrm_tune.run TARGET``: the same as ``etrm-tune run TARGET``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etrm_tune import cli
from etrm_tune.cli import Parser, add_run_options, guarded
from etrm_tune.leaving import ended_by


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["search"]:  # has options of its own
        return cli.main(words)
    parser = Parser(prog="python -m etrm_tune.run", description="Run a target, or continue it.")
    add_run_options(parser)
    return guarded(parser, words, again=words)


if __name__ == "__main__":
    ended_by(main)
