"""``next``, ``followup`` and ``auto``: the same as ``run next RUN``, ``run followup RUN``,
``run auto``."""

from __future__ import annotations

import argparse
from typing import Any

WORDS = {
    "next": "start what the decisions of a finished run ask for",
    "followup": "train a run's best configurations on the full data set",
    "auto": "walk the plan, or debug or act, from phase to phase",
}


def add(commands: Any) -> None:
    """Add the three parsers."""
    from etrm_tune.cli import add_run_options

    for word, text in WORDS.items():
        parser: argparse.ArgumentParser = commands.add_parser(word, help=text)
        add_run_options(parser, target=word)
