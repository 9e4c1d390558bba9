"""Around the trials: signals, a quiet terminal, and a Ray of our own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from etrm_tune.resources import OBJECT_STORE_BYTES, Machine

SHUTDOWN_S = 10.0


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell reports it."""
        return 128 + self.signum


class Signals:
    """SIGINT and SIGTERM become `Interrupted`: at once, or at the next `check` while deferred.

    Inside Tune's loop an exception from nowhere could leave Ray half told, so it is raised
    between two of its steps. A second signal does not wait.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._ignored = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def reinstall(self) -> None:
        """Take the signals back from a library that has put its own handlers in place."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        again = self.received is not None
        self.received = signum
        if again or not self._deferred:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first signal waits for `check`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)

    def ignore(self) -> None:
        """From now on signals change nothing: the last files are being written."""
        self._ignored = True


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Send this process's output, that of C++ included, to ``log``; yields the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    terminal = os.fdopen(os.dup(saved[0]), "w", encoding="utf-8", errors="replace")
    try:
        yield terminal
    finally:
        with contextlib.suppress(OSError):  # the reader of a pipe may be gone
            terminal.close()
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in zip((1, 2), saved, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


@contextlib.contextmanager
def ray_session(machine: Machine, signals: Signals) -> Iterator[str]:
    """A Ray of this process's own; yields the dashboard's address.

    When it ends, every process that it started is gone. Its folder of logs goes too, unless an
    error passes through.
    """
    from trainable.ray_adapter import ray_environment

    os.environ.update(ray_environment())
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))

    import ray

    folder, clean = None, False
    try:
        with signals.deferred():
            context = ray.init(
                address="local",
                num_cpus=machine.cpus,
                num_gpus=machine.gpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            signals.reinstall()  # Ray's Python and C++ sides both take SIGTERM
            folder = context.address_info.get("session_dir")
        try:
            yield str(context.dashboard_url or "")
            clean = True
        except Interrupted:
            signals.ignore()
            clean = True
            raise
    except SystemExit:  # Ray's own answer to a SIGTERM while it starts
        signals.ignore()
        raise Interrupted(signal.SIGTERM) from None
    finally:
        stop_ray()
        if clean and folder:
            shutil.rmtree(folder, ignore_errors=True)


def stop_ray() -> None:
    """Shut Ray down and wait until its processes are gone; the last ones are killed."""
    import ray  # puts its own copy of psutil on the path

    psutil = importlib.import_module("psutil")
    started = psutil.Process().children(recursive=True)
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=SHUTDOWN_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=SHUTDOWN_S)


def new_owner() -> str:
    """Token by which workers recognise the conductor that started them."""
    return secrets.token_hex(8)


def login_line(url: str) -> str:
    """Where the dashboard is and how to log in."""
    if not url:
        return "Dashboard: off"
    ray_command = "ray" if shutil.which("ray") else str(Path(sys.executable).with_name("ray"))
    return f"Dashboard: http://{url}  (token: {ray_command} get-auth-token)"
