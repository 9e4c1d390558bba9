"""A folder and its copy at a URL (fsspec): what has changed goes there, and comes back.

What lies at the URL is at any moment a trial, or a run, that can be continued: rows go before the
checkpoints that were there when a round began, results and statuses go last.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from trainable.errors import StorageError, UserError
from trainable.worker import TrialSpec

PUSH_S = 5.0
"""Seconds between two rounds."""

HERE = ".here"
"""In a local run folder, never copied: the token of the session that works there itself."""

SESSION = ".session.json"
"""Who writes at the URL."""

REMOTE = "remote_worker"
"""In a trial's folder: the node whose worker has sent it."""

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Waits between tries to reach a store while a run waits for it."""

T = TypeVar("T")

_ORDER = ("plan.json", "config.json", ".jsonl", "", ".pt", "result.json", "status.json")
"""Last parts of names in the order in which files go; the empty one stands for all others."""

_SKIPPED = frozenset({"lock", "attempt.lock", ".reach", HERE, SESSION})

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class MirrorError(StorageError):
    """Storage at a URL cannot be used."""


class Mirrored:
    """A local folder and its copy at `url`. Raises `MirrorError` where fsspec knows no such URL."""

    def __init__(self, local: Path, url: str) -> None:
        try:
            import fsspec

            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(url.partition("://")[0])
            fix = f"pip install {package}" if package else "choose another --runs"
            why = " ".join(str(error).split())
            raise MirrorError(f"--runs {url}: {why}: {fix}") from None
        self.local, self.url = local, url
        self.sent: dict[str, tuple[int, int]] = {}
        """What is known to be equal at both ends: modification time and size here, by name."""
        self.superseded = False
        """Whether what is written here belongs to an attempt that another one has replaced."""

    def push(self, ending: str = "") -> int:
        """Send what has changed, remove what is gone; returns how many files went. With an `ending`
        only files that have it."""
        files = {name for name in self._files() if name.endswith(ending)}
        gone = [name for name in self.sent if name not in files and name.endswith(ending)]
        count = 0
        for name in sorted(files, key=lambda name: (_rank(name), name)):
            path = self.local / name
            try:
                stamp = _stamp(path)
                if self.sent.get(name) == stamp:
                    continue
                content = path.read_bytes()
            except FileNotFoundError:  # a checkpoint that was replaced meanwhile
                continue
            target = f"{self.root}/{name}"
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(target, content)
            self.sent[name] = stamp
            count += 1
        for name in gone:  # after their successors have arrived
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(f"{self.root}/{name}")
            del self.sent[name]
        return count

    def pull(self, below: str = "") -> None:
        """Make the local folder, or what is `below` it, what lies at the URL."""
        root = f"{self.root}/{below}".rstrip("/")
        self.fs.invalidate_cache()
        prefix = self.root.rstrip("/") + "/"
        names = {str(found).removeprefix(prefix): found for found in self.fs.find(root)}
        for name in names:
            if not (self.local / name).resolve().is_relative_to(self.local.resolve()):
                raise MirrorError(f"{self.url} holds {name!r}, outside its folder: remove it")
        for name in self._files():
            if name not in names and name.startswith(below):
                (self.local / name).unlink(missing_ok=True)
                self.sent.pop(name, None)
        for name, found in names.items():
            path = self.local / name
            if path.name in _SKIPPED:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            self.fs.get_file(found, str(temporary))
            temporary.replace(path)
            self.sent[name] = _stamp(path)

    def patiently(self, act: Callable[[], T]) -> T:
        """Act; a store that fails is asked again after each of `PAUSES_S`.

        Raises `MirrorError` when it stays silent.
        """
        for pause in (*PAUSES_S, None):
            try:
                return act()
            except UserError:
                raise
            except Exception as error:  # whatever a store raises
                if pause is None:
                    raise MirrorError(
                        f"{self.url} cannot be reached any more ({type(error).__name__}: "
                        f"{' '.join(str(error).split())[:200]}): nothing is lost; give the same "
                        f"command again when it can"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last try has no pause after it")

    def read(self, name: str) -> bytes | None:
        """A file at the URL; None where there is none."""
        self.fs.invalidate_cache()
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def _files(self) -> set[str]:
        found = set()
        for folder, names, files in os.walk(self.local):
            if Path(folder) == self.local:
                names[:] = [name for name in names if name != "ray"]
            for name in files:
                if name not in _SKIPPED and not name.endswith(".tmp"):
                    found.add(str((Path(folder) / name).relative_to(self.local)))
        return found


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _rank(name: str) -> int:
    for rank, ending in enumerate(_ORDER):
        if ending and name.endswith(ending):
            return rank
    return _ORDER.index("")


# A worker on a node that does not see the run folder.


def is_shared(run_folder: Path, token: str) -> bool:
    """Whether this process sees the folder in which the session with `token` works."""
    try:
        return (run_folder / HERE).read_text() == token
    except OSError:
        return False


@contextlib.contextmanager
def elsewhere(spec: TrialSpec) -> Iterator[Callable[[], None]]:
    """Around a trial on a node that does not see the run folder: the trial's folder is fetched from
    the URL first, and sent while it is written. Nothing where the run folder is seen, or there
    is no URL. Yields what sends the rows written so far.
    """
    out_dir = Path(spec.out_dir)
    run_folder = out_dir.parent.parent
    if not spec.url or is_shared(run_folder, spec.token):
        yield lambda: None
        return
    run_folder.mkdir(parents=True, exist_ok=True)
    whole = Mirrored(run_folder, spec.url)
    trial = f"trials/{out_dir.name}/"
    whole.patiently(partial(whole.pull, trial))
    for path in (spec.config.get("decoder"), spec.config["data"].get("path")):
        if path and Path(path).is_relative_to(run_folder) and not Path(path).exists():
            name = str(Path(path).relative_to(run_folder))
            whole.patiently(partial(whole.pull, name))
    mirror = Mirrored(out_dir, f"{spec.url.rstrip('/')}/{trial}".rstrip("/"))
    known = {name.removeprefix(trial): at for name, at in whole.sent.items() if trial in name}
    mirror.sent = known
    (out_dir / REMOTE).write_text(socket.gethostname())
    stop, one = threading.Event(), threading.Lock()

    def send(rows_only: bool) -> None:
        with one:
            _send(mirror, rows_only=rows_only)

    def keep_up() -> None:
        while not stop.wait(PUSH_S):
            with contextlib.suppress(Exception):  # whatever a store raises: the next round
                send(rows_only=False)

    whole.patiently(partial(send, rows_only=False))
    thread = threading.Thread(target=keep_up, daemon=True)
    thread.start()
    try:
        yield lambda: whole.patiently(partial(send, rows_only=True))
    finally:
        stop.set()
        thread.join()
        whole.patiently(partial(send, rows_only=False))


def _send(mirror: Mirrored, *, rows_only: bool) -> None:
    """One round. Where a later attempt has begun, the loop here is told and nothing goes, nor ever
    again."""
    if mirror.superseded:
        return
    told = mirror.read("current_attempt")
    if told is None or _mine(mirror) >= int(told):
        mirror.push(".jsonl" if rows_only else "")
    else:
        mirror.superseded = True
        (mirror.local / "current_attempt").write_bytes(told)


def _mine(mirror: Mirrored) -> int:
    """The attempt that is current here."""
    try:
        return int((mirror.local / "current_attempt").read_text())
    except (OSError, ValueError):
        return 0
