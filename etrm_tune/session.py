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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from etrm_tune.resources import OBJECT_STORE_BYTES, Machine
from trainable.errors import UserError

if TYPE_CHECKING:
    from etrm_tune.cluster import Cluster

SHUTDOWN_S = 10.0
RAY_STARTS = 3

logger = logging.getLogger(__name__)


class SessionError(UserError):
    """Ray cannot be had."""


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
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # no room for the log: the terminal matters more
                stream.flush()
        for descriptor, old in zip((1, 2), saved, strict=True):
            os.dup2(old, descriptor)
            os.close(old)


@contextlib.contextmanager
def ray_session(
    machine: Machine, signals: Signals, cluster: Cluster | None = None
) -> Iterator[str]:
    """A Ray of this process's own, or the cluster that it is connected to; yields the dashboard's
    address.

    When it ends, every process that it started is gone. Its folder of logs goes too, unless an
    error passes through.
    """
    if cluster is not None:
        try:
            yield cluster.url
        except Interrupted:
            signals.ignore()
            raise
        return
    from trainable.ray_adapter import ray_environment

    os.environ.update(ray_environment())
    stay_local()
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))

    import ray

    folder, clean = None, False
    try:
        with signals.deferred():
            context = persistently(
                lambda: ray.init(
                    address="local",
                    num_cpus=machine.cpus,
                    num_gpus=machine.gpus,
                    include_dashboard=True,
                    dashboard_host="127.0.0.1",
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                ),
                stop_ray,
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


def persistently(begin: Callable[[], Any], undo: Callable[[], object]) -> Any:
    """Start Ray; where that fails, once more after `undo`: `RAY_STARTS` times in all.

    Ray gives its node 30 seconds, which a busy machine may take to start the processes alone.
    Raises `SessionError` with Ray's own words.
    """
    for left in reversed(range(RAY_STARTS)):
        try:
            return begin()
        except Exception as error:
            logger.warning("Ray did not start: %s", error)
            undo()
            if not left:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise SessionError(
                    f"Ray did not start in {RAY_STARTS} tries ({first[:200]}): when the machine "
                    f"is less busy, give the same command again"
                ) from error
    raise AssertionError("unreachable")


def stay_local() -> None:
    """Keep every port of a Ray of our own on 127.0.0.1.

    Metrics and worker ports have no password, and Ray binds them to every interface as soon as its
    node has an address of its own. This is the switch with which Ray leaves out that address on
    laptops; a value that the user has set wins.
    """
    import ray._private.ray_constants as constants

    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    os.environ.setdefault(name, "0")
    constants.ENABLE_RAY_CLUSTER = os.environ[name].lower() in ("1", "true")


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
    link = f"Dashboard: http://{url}"
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return link
    ray_command = "ray" if shutil.which("ray") else str(Path(sys.executable).with_name("ray"))
    return f"{link}  (asks for a token: paste what `{ray_command} get-auth-token` prints)"
