"""``watch``: a run seen from its folder alone, in every state that a folder can be in."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from etrm_tune.board import BINS, Board, Curve, Line
from etrm_tune.cli import main
from etrm_tune.run_folder import FolderInUseError, RunFolder
from etrm_tune.view import View, middle, sparkline
from etrm_tune.watching import Watched, watch
from trainable.config import TrialConfig
from trainable.errors import UserError

ROOT = Path(__file__).parents[2]
OPTIONS = TrialConfig(epochs=100).flat()


def row(step: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    return {
        "kind": "row", "step": step, "epoch": float(step), "time": time.time(),
        "wall_s": step * 2.0,
        "train/accuracy": accuracy, "train/loss": 2.0 - step / 100,
    } | more  # fmt: skip


def make_run(path: Path, statuses: dict[str, str], *, rows: int = 50, **plan: Any) -> RunFolder:
    folder = RunFolder(path)
    entries = [{"trial_id": name, "role": "arm", "identity": "x"} for name in statuses]
    folder.path.mkdir(parents=True)
    folder.write_plan({"trials": entries, "sessions": [[time.time() - 90, time.time()]], **plan})
    config = {"identity": "x", "config": TrialConfig(epochs=100).model_dump(mode="json")}
    for number, (name, status) in enumerate(statuses.items()):
        folder.write_config(name, config)
        if status == "pending":
            continue
        start = {"kind": "start", "schema_version": 1, "attempt": 1, "resumed_from": 0}
        end = 100 if status == "finished" else rows
        lines = [start, *(row(s, 0.5 + s / 250 + number / 1000) for s in range(1, end + 1))]
        append(folder, name, *lines)
        reason = f"bar: {name} is too low" if status == "stopped" else ""
        folder.write_status(name, status, reason)
    return folder


def append(folder: RunFolder, name: str, *lines: dict[str, Any], attempt: int = 1) -> None:
    with (folder.trial(name) / f"attempt-{attempt}.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """The lock as a run holds it."""
    with (folder.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4321\n")
        file.flush()
        yield


def drawn(board: Board, width: int, height: int = 40, **settings: Any) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, no_color=True, width=width, height=height)
    console.print(View(board, **settings))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).splitlines()


def board_of(folder: RunFolder) -> Board:
    watched = Watched(folder)
    watched.poll()
    return watched.board


def test_a_running_run_at_both_widths(tmp_path: Path) -> None:
    statuses = {"overfit-E1a-s0": "running", "overfit-E2a-s0": "stopped", "act-A1-s0": "pending"}
    folder = make_run(tmp_path / "run", statuses)
    with held(folder):
        board = board_of(folder)
    for width in (80, 140):
        lines = drawn(board, width)
        assert max(map(len, lines)) <= width
        shown = " ".join(line.strip() for line in lines)
        assert "running, process 4321" in shown and "1 pending" in shown
        assert "50/100" in shown and "70.0 %" in shown
        assert "▁" in shown and "█" in shown, "a curve"
        assert "·" in shown, "what is left of the budget"
        assert "overfit-E2a-s0 stopped: bar: overfit-E2a-s0 is too low" in shown
        assert "about" in shown, "time that is left"
        assert ("health" in shown) == (width == 140)


def test_200_trials_fit_active_ones_first(tmp_path: Path) -> None:
    wanted = ["finished"] * 120 + ["stopped"] * 50 + ["running"] * 3 + ["pending"] * 27
    statuses = {f"search-lr-{n:05}-s0": status for n, status in enumerate(wanted)}
    folder = make_run(tmp_path / "run", statuses, rows=20, search={"trials": 230})
    with held(folder):
        board = board_of(folder)
    for width, height in ((80, 24), (140, 40)):
        lines = drawn(board, width, height)
        assert len(lines) < height and max(map(len, lines)) <= width
        table = [line for line in lines if line.startswith(" search-lr")]
        assert all("running" in line for line in table[:3])
        assert "search-lr-00119-s0  finished" in table[3], "then the best"
        shown = " ".join(line.strip() for line in lines)
        assert re.search(r"… \d+ more: [^…]*27 pending", shown)
        assert "30 more to come" in shown
        assert sum("is too low" in line for line in lines) == 5
        assert "… and 45 earlier reasons" in lines
    assert len([x for x in drawn(board, 140, 20, whole=True) if x.startswith(" search")]) == 200


def test_states_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = make_run(tmp_path / "ended", {"a-s0": "finished", "b-s0": "stopped"})
    assert main(["watch", str(ended.path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "not running · 1 finished, 1 stopped" in shown[0]
    assert shown[1].startswith("a-s0 finished  epoch 100/100  accuracy 90.0 %")
    assert shown[2].endswith("(bar: b-s0 is too low)")
    assert shown[-1] == "All 2 trials are done."

    fresh = make_run(tmp_path / "fresh", {"a-s0": "pending"}, sessions=[])
    assert main(["watch", str(fresh.path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "not started · 1 pending" in shown[0]
    assert shown[-1].startswith("1 trial is not done")

    killed = make_run(tmp_path / "killed", {"a-s0": "running"})
    (killed.path / "lock").write_text("4321\n")
    watched = Watched(killed)
    watched.poll()
    assert watched.alive, "its files are new: a lock is not seen from every machine"
    watched._newest -= 120
    watched._state()
    assert not watched.alive and watched.board.lines["a-s0"].status == "interrupted"

    for path in (tmp_path / "nothing", tmp_path):
        assert main(["watch", str(path)]) == 2
        assert "holds no run: give a folder such as runs/phase1" in capsys.readouterr().err
    assert main(["watch", str(ended.path), "--every", "0"]) == 2


def test_lines_in_a_pipe_until_the_run_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "running"}, rows=20)
    file = io.StringIO()
    looks = 0
    lock = (folder.path / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks <= 8:
            append(folder, "a-s0", *(row(20 + 10 * (looks - 1) + i, 0.9) for i in range(1, 11)))
        else:
            folder.write_status("a-s0", "finished")
            lock.close()

    assert watch(folder.path, Console(file=file, width=200), every=1, sleep=sleep) == 0
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert lines[1].startswith("a-s0 running  epoch 20/100")
    assert sum("a-s0 running" in line for line in lines) == 9, "every tenth of the budget"
    assert lines[-2].startswith("a-s0 finished  epoch 100/100  accuracy 90.0 %")
    assert lines[-1] == "The run ended. The trial is done."


def test_a_folder_that_vanishes_is_one_clear_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "running"})
    console = Console(file=io.StringIO())
    with held(folder), pytest.raises(UserError, match="is gone: it was moved or deleted"):
        watch(folder.path, console, every=1, sleep=lambda _: shutil.rmtree(folder.path))


def test_ctrl_c_is_how_one_stops_looking(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "running"})

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    with held(folder):
        assert watch(folder.path, Console(file=io.StringIO()), every=1, sleep=sleep) == 0


def test_only_what_has_grown_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "running", "b-s0": "running"})
    watched = Watched(folder)
    watched.poll()
    reread: list[str] = []
    again = Watched._again

    def spy(self: Watched, line: Line, *rest: Any) -> None:
        reread.append(line.trial_id)
        again(self, line, *rest)

    monkeypatch.setattr(Watched, "_again", spy)
    append(folder, "a-s0", row(51, 0.75))
    with (folder.trial("a-s0") / "attempt-1.jsonl").open("a") as file:
        file.write('{"kind": "row", "st')  # a row that is being written
    watched.poll()
    assert not reread
    assert watched.board.lines["a-s0"].row["step"] == 51
    with (folder.trial("a-s0") / "attempt-1.jsonl").open("a") as file:
        file.write('ep": 52, "epoch": 52.0, "train/accuracy": 0.8}\n')
    watched.poll()
    assert watched.board.lines["a-s0"].row["train/accuracy"] == 0.8

    start = {"kind": "start", "schema_version": 1, "attempt": 2, "resumed_from": 40}
    append(folder, "b-s0", start, row(41, 0.1), attempt=2)
    watched.poll()
    assert reread == ["b-s0"]
    assert watched.board.lines["b-s0"].row["step"] == 41
    assert [r["step"] for r in watched.board.lines["b-s0"].rows] == list(range(1, 42))


def test_a_trial_that_ended_keeps_its_health(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "running"}, rows=10)
    starved = {"grad/encoder_norm": 0.01, "grad/total_norm": 1.0}
    append(folder, "a-s0", *(row(s, 0.6, **starved) for s in range(11, 61)))
    watched = Watched(folder)
    watched.poll()
    folder.write_status("a-s0", "finished")
    append(folder, "a-s0", row(61, 0.6))
    watched.poll()
    line = watched.board.lines["a-s0"]
    assert line.status == "finished" and "gradient starvation" in line.health
    assert len(line.rows) == 1, "no rows are kept of what has ended"
    for _ in range(10):
        watched.poll()
    assert line.row["step"] == 61 and "gradient starvation" in line.health


def test_no_ray_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "finished"})
    code = (
        "import sys; from etrm_tune.cli import main; code = main(['watch', sys.argv[1]]); "
        "assert not {'ray', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_looking_does_not_refuse_a_run_that_starts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"a-s0": "pending"})
    with (folder.path / "lock").open("w") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        with pytest.raises(FolderInUseError), folder.locked():
            pass
        import threading

        timer = threading.Timer(0.1, look.close)
        timer.start()
        with folder.locked():
            pass
        timer.join()


def test_curves() -> None:
    curve = Curve()
    for step in range(50):
        curve.add(step / 100, step / 100)
    points = curve.points(10)
    assert points[5:] == [None] * 5
    assert points[:5] == sorted(points[:5], key=float) and len(points) == 10  # type: ignore[arg-type]
    assert sparkline(points, 0.0, 0.5, ascii_only=False) == "▁▃▅▆█     "
    assert sparkline([0.0, None, float("nan"), 1.0], 0, 1, rest=".", ascii_only=True) == "_.x@"
    sparse = Curve()
    sparse.add(0.0, 1.0)
    sparse.add(1.0, 2.0)
    assert sparse.points(BINS) == [1.0] * (BINS - 1) + [2.0]
    assert middle("search-halting-00012-s0", 12) == "searc~012-s0"


def test_time_left_follows_the_rates() -> None:
    now = time.time()
    board = Board("t")
    for name, status in (("a", "finished"), ("b", "running"), ("c", "pending")):
        board.lines[name] = Line(name, 100.0, OPTIONS, status=status)
    board.lines["a"].load([{"step": 100, "epoch": 100.0, "wall_s": 200.0}])
    assert board.left_s(now) is None
    for step, at in ((10, -20.0), (20, 0.0)):
        report = {"step": step, "epoch": float(step), "time": now + at, "wall_s": step * 2.0}
        board.lines["b"].add(report)
    assert board.lines["b"].eta_s(now) == pytest.approx(160)
    assert board.lines["b"].eta_s(now + 10) == pytest.approx(150), "goes down between two reports"
    assert board.left_s(now) == pytest.approx(160 + 200)
    board.estimates = {"a": 100.0, "b": 100.0, "c": 50.0}
    assert board.left_s(now) == pytest.approx(160 + 100), "all took twice their estimate"


def test_ascii_terminals_get_ascii(tmp_path: Path) -> None:
    board = board_of(make_run(tmp_path / "run", {"a-s0": "stopped"}))
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=raw, force_terminal=True, no_color=True, width=100)
    console.print(View(board))
    raw.flush()
    assert b"@" in raw.buffer.getvalue()
