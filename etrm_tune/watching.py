"""A run seen from its folder alone, from any process or machine that can read it. No Ray, no torch.

Only what has grown is read again, so that a poll of a run with hundreds of trials is cheap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.rows import merge, read_attempts
from etrm_tune.board import ENDED, Board, Line, moment
from etrm_tune.live import Screen, plain_line
from etrm_tune.run_folder import RunFolder, RunFolderError
from etrm_tune.terminal import say
from etrm_tune.view import View
from trainable.config import TrialConfig
from trainable.errors import UserError

FRESH_S = 60.0
"""A lock is not always seen from another machine; files younger than this are a run's too."""
SLOW_POLLS = 10
"""Trials that have ended are looked at again every so many polls."""


class Watched:
    """The board of a run folder. `poll` brings it up to date."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.board = Board(str(folder.path))
        self.screen: Screen | None = None
        self._plan_seen: tuple[int, int] | None = None
        self._files: dict[str, tuple[tuple[str, int], ...]] = {}
        self._offsets: dict[str, int] = {}
        self._statuses: dict[str, tuple[int, int]] = {}
        self._newest = 0.0
        self._polls = 0
        self.alive = False

    def poll(self) -> bool:
        """Read what is new; whether the run goes on.

        Raises `RunFolderError` when the folder is no run, or is gone.
        """
        if not (self.folder.path / "plan.json").is_file():
            raise RunFolderError(
                f"{self.folder.path} holds no run: give a folder such as runs/phase1"
                if self._plan_seen is None
                else f"{self.folder.path} is gone: it was moved or deleted"
            )
        self._plan()
        everything = self._polls % SLOW_POLLS == 0
        self._polls += 1
        for line in list(self.board.lines.values()):
            if everything or line.status not in ENDED:
                self._trial(line)
        self._state()
        return self.alive

    def _plan(self) -> None:
        seen = _stamp(self.folder.path / "plan.json")
        if seen == self._plan_seen:
            return
        plan = self.folder.read_plan() or {}
        self._plan_seen = seen
        for entry in plan.get("trials", []):
            if entry["trial_id"] not in self.board.lines:
                self.board.lines[entry["trial_id"]] = self._line(entry)
        told = (plan.get("estimate") or {}).get("trials", {})
        self.board.estimates = {i: float(one.get("seconds") or 0) for i, one in told.items()}
        self.board.more = 0
        if isinstance(wanted := (plan.get("search") or {}).get("trials"), int):
            arms = sum(line.role == "arm" for line in self.board.lines.values())
            self.board.more = max(0, wanted - arms)
        sessions = plan.get("sessions") or []
        self._began = float(sessions[-1][0]) if sessions else None

    def _line(self, entry: Mapping[str, Any]) -> Line:
        trial_id = str(entry["trial_id"])
        told = (self.folder.read_config(trial_id) or {}).get("config") or {}
        try:
            options: Mapping[str, Any] = TrialConfig(**told).flat()
        except ValueError:  # of another version: what it says by the same names is enough
            options = {**told, **(told.get("model") or {}), **(told.get("data") or {})}
        epochs = options.get("epochs")
        return Line(
            trial_id, float(epochs) if epochs else None, options, str(entry.get("role", "arm"))
        )

    def _trial(self, line: Line) -> None:
        home = self.folder.trial(line.trial_id)
        files = _attempts(home)
        before = self._files.get(line.trial_id, ())
        if files != before:
            self._files[line.trial_id] = files
            grown = len(files) == len(before) and files[:-1] == before[:-1]
            if grown and line.status not in ENDED:
                self._more(line, home / files[-1][0])
            else:
                self._again(line, home, files)
        seen = _stamp(home / "status.json")
        if seen is not None and seen != self._statuses.get(line.trial_id):
            self._statuses[line.trial_id] = seen
            told = self.folder.read_status(line.trial_id)
            at = float(told["time"]) if told.get("time") else None
            self._newest = max(self._newest, at or 0.0)
            self._tell(line, str(told["status"]), str(told.get("reason") or ""), at)

    def _tell(self, line: Line, status: str, reason: str, at: float | None) -> None:
        if self.screen is not None:
            self.screen.set_status(line.trial_id, status, reason, at)
        else:
            line.set(status, reason, at)

    def _again(self, line: Line, home: Path, files: tuple[tuple[str, int], ...]) -> None:
        attempts = read_attempts(home, [])
        rows = merge(attempts)
        line.load(rows)
        last = [row for row in rows if attempts and row["attempt"] == attempts[-1].number]
        line.began = (moment(last[0]), float(last[0].get("epoch") or 0.0)) if last else None
        if rows:
            self._newest = max(self._newest, moment(rows[-1], 0.0))
        if files:  # whole lines only: the next poll goes on behind the last of them
            path = home / files[-1][0]
            self._offsets[line.trial_id] = path.read_bytes().rfind(b"\n") + 1

    def _more(self, line: Line, path: Path) -> None:
        offset = self._offsets.get(line.trial_id, 0)
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self._offsets[line.trial_id] = offset + end
        for one in text[:end].splitlines():
            try:
                row = json.loads(one)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.get("kind") == "row" and "step" in row:
                self._newest = max(self._newest, moment(row, 0.0))
                if self.screen is not None:
                    self.screen.update(line.trial_id, row)
                else:
                    line.add(row)

    def _state(self) -> None:
        locked = self.folder.in_use()
        holder = self.folder.holder()
        running = any(line.status == "running" for line in self.board.lines.values())
        recent = time.time() - self._newest < FRESH_S
        # A clean end empties the lock: a name in a free lock is a killed run, or another machine's.
        self.alive = locked or (holder is not None and running and recent)
        self.board.began = self._began if self.alive else None
        if locked:
            self.board.state = f"running, process {holder}" if holder else "running"
        elif self.alive:
            self.board.state = "running on another machine, or killed a moment ago"
        elif self._began is None and not any(line.rows for line in self.board.lines.values()):
            self.board.state = "not started"
        else:
            self.board.state = "not running"
        if not self.alive:
            for line in self.board.lines.values():
                if line.status == "running":
                    line.set("interrupted", line.reason, line.changed)
                    self._statuses.pop(line.trial_id, None)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _attempts(home: Path) -> tuple[tuple[str, int], ...]:
    """Names and sizes of a trial's row files, oldest attempt first."""
    try:
        found = [(path.name, path.stat().st_size) for path in home.glob("attempt-*.jsonl")]
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda one: (len(one[0]), one[0])))


def watch(
    path: Path | str,
    console: Console,
    *,
    every: float,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show a run until it ends or Ctrl-C; a run that is not going on is shown once."""
    watched = Watched(RunFolder(path))
    watched.poll()
    screen = Screen(console, watched.board)
    if not console.is_terminal:
        say(console, View(watched.board).title().plain)
        for line in watched.board.lines.values():
            say(console, plain_line(line))
            line.told = line.share
    elif once or not watched.alive:
        console.print(screen.render())
    if not watched.alive:
        say(console, _left(watched.board))
    if once or not watched.alive:
        return 0
    watched.screen = screen
    try:
        with screen:
            going = True
            while going:
                sleep(every)
                going = watched.poll()
                screen.refresh(force=True)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        gone = not watched.folder.path.exists()
        raise UserError(
            f"{watched.folder.path} is gone: it was moved or deleted"
            if gone
            else f"cannot read {error.filename or watched.folder.path}: {error.strerror}"
        ) from None
    say(console, f"The run ended. {_left(watched.board)}")
    return 0


def _left(board: Board) -> str:
    """What a run that is not going on has left to do."""
    counts = board.counts()
    failed = counts.get("failed", 0)
    left = counts.get("pending", 0) + counts.get("interrupted", 0) + board.more
    if left:
        are = "1 trial is" if left == 1 else f"{left} trials are"
        return f"{are} not done: give the run's command again to continue."
    if failed:
        return f"{failed} failed: give the run's command again with --retry-failed."
    done = sum(counts.values())
    return "The trial is done." if done == 1 else f"All {done} trials are done."
