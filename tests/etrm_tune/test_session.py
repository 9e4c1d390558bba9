"""Ray's start: a second try on a busy machine, one line when there is no third."""

from __future__ import annotations

import pytest

from etrm_tune.session import RAY_STARTS, SessionError, persistently


def test_a_node_that_timed_out_is_started_again() -> None:
    calls: list[str] = []

    def begin() -> str:
        calls.append("begin")
        if len(calls) < 3:
            raise Exception("The current node timed out during startup.\nmore")
        return "started"

    assert persistently(begin, lambda: calls.append("undo")) == "started"
    assert calls == ["begin", "undo", "begin"]


def test_what_never_starts_is_one_line_and_leaves_nothing() -> None:
    calls: list[str] = []

    def begin() -> None:
        raise Exception("The current node timed out during startup.\nmore")

    with pytest.raises(SessionError, match="give the same command again") as caught:
        persistently(begin, lambda: calls.append("undo"))
    assert calls == ["undo"] * RAY_STARTS and "\n" not in str(caught.value)
