"""A run folder at a URL (``--runs s3://bucket/runs``): a local one, mirrored while it is written.

Append-only rows, locks and atomic renames need a file system, so a run always works in a local
folder, `local_root`; every `PUSH_S` seconds what has changed goes to the URL by fsspec. What lies
there is at any moment a run folder that can be continued: rows go before the checkpoints that were
there when the round began, and results and statuses go last.

The session that wrote to the URL last is right. If that was this machine, its folder is at least as
new and is kept; else the folder is fetched anew before anything is read. A lease at the URL names
the session that writes; a second one elsewhere is refused until the lease is `LEASE_S` old.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etrm_tune.run_folder import FolderInUseError, RunFolder, RunFolderError
from trainable import mirrored as mirrored_module
from trainable.errors import UserError
from trainable.mirrored import HERE, REMOTE, SESSION, Mirrored

LEASE_S = 60.0
"""Seconds without a sign of life after which another session may write."""

SETTLE_S = 0.5
"""Wait between taking the lease and looking whether it was taken by somebody else as well."""

CACHE_VARIABLE = "ETRM_TUNE_CACHE"


def is_url(runs: str) -> bool:
    """Whether ``--runs`` names a place that is not a local path."""
    return "://" in runs


def local_root(runs: str) -> Path:
    """Where the folders of a URL lie on this machine, below `CACHE_VARIABLE` (~/.cache)."""
    cache = os.environ.get(CACHE_VARIABLE)
    root = Path(cache) if cache else Path.home() / ".cache" / "etrm-tune"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", runs.partition("://")[2]).strip("-")[-40:]
    return root / "runs" / f"{words}-{hashlib.sha256(runs.encode()).hexdigest()[:8]}"


class Mirror(Mirrored):
    """A run folder and its copy at a URL."""

    def __init__(self, local: Path, url: str) -> None:
        super().__init__(local, url)
        self.session = secrets.token_hex(8)
        self.one = threading.Lock()

    # Before a session.

    def begin(self, *, write: bool) -> None:
        """Take the URL over, and bring the local folder up to date.

        Raises `FolderInUseError` while another session writes there.
        """
        with _readable(self.url):
            self.fs.invalidate_cache()
            lease = self._read_lease()
            mine = self._local_session()
            recent = time.time() - float(lease.get("time", 0.0)) < LEASE_S
            if lease and lease.get("session") != mine and lease.get("open") and recent:
                raise self._in_use(lease)
            if lease and lease.get("session") != mine:
                self.pull()
            elif lease:
                self._pull_remote()
            if write:
                self._claim()
                (self.local / HERE).write_text(self.session)

    def _claim(self) -> None:
        """Write the lease; of several who do so at once the last has it, stores know no lock."""
        self._write_lease(open_=True)
        time.sleep(SETTLE_S)
        self.fs.invalidate_cache()
        lease = self._read_lease()
        if lease.get("session") != self.session:
            (self.local / SESSION).unlink(missing_ok=True)  # it is not this machine's any more
            raise self._in_use(lease)

    def _in_use(self, lease: Mapping[str, Any]) -> FolderInUseError:
        age = time.time() - float(lease.get("time", 0.0))
        return FolderInUseError(
            f"{self.url} is in use by process {lease.get('pid')} on {lease.get('host')} "
            f"(seen {age:.0f} s ago): wait for it, stop it, or use another --name NAME"
        )

    def _local_session(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self.local / SESSION).read_text())["session"])
        return None

    def _read_lease(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.fs.cat_file(f"{self.root}/{SESSION}")))
        except (FileNotFoundError, ValueError):
            return {}

    def _write_lease(self, *, open_: bool) -> None:
        lease = {
            "session": self.session,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "open": open_,
        }
        self.fs.makedirs(self.root, exist_ok=True)
        self.fs.pipe_file(f"{self.root}/{SESSION}", json.dumps(lease).encode())
        (self.local / SESSION).write_text(json.dumps(lease))

    def _pull_remote(self) -> None:
        """Fetch what workers on other nodes have sent since this machine last looked."""
        for found in self.fs.find(f"{self.root}/trials"):
            folder, _, name = str(found).rpartition("/")
            if name == REMOTE:
                self.take(folder.rpartition("/")[2])

    def take(self, trial_id: str) -> None:
        """Fetch a trial's folder where a worker on another node has written it.

        Raises `MirrorError` when the store stays silent.
        """
        below = f"trials/{trial_id}/"
        if self.patiently(lambda: self.read(below + REMOTE)) is None:
            return
        kept = {name: (self.local / below / name) for name in ("status.json", "scheduler.jsonl")}
        mine = {name: path.read_bytes() for name, path in kept.items() if path.exists()}
        with self.one:
            try:
                self.patiently(lambda: self.pull(below))
            finally:
                for name, content in mine.items():  # the conductor's own
                    kept[name].write_bytes(content)

    # While it runs.

    def send(self) -> None:
        """One round, now: workers elsewhere read what was prepared for them.

        Raises `MirrorError` when the store stays silent.
        """
        self.patiently(self._round)

    def _round(self) -> None:
        with self.one:
            self.push()

    def keep_up(self, stop: threading.Event, problems: list[str]) -> None:
        """Push until `stop`; a round that fails is tried again in the next."""
        while not stop.wait(mirrored_module.PUSH_S):
            try:
                self._round()
                self._write_lease(open_=True)
                problems.clear()
            except Exception as error:  # whatever a store raises
                problems[:] = [f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]

    def end(self) -> None:
        """The last round. Raises `RunFolderError` when it does not succeed."""
        try:
            self.send()
            self._write_lease(open_=False)
        except Exception as told:
            error = told.__cause__ or told
            raise RunFolderError(
                f"not everything is at {self.url} ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}): it is kept in {self.local}; give the same "
                f"command again when the storage can be reached"
            ) from None


@contextlib.contextmanager
def _readable(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every store has its own
        raise RunFolderError(
            f"--runs {url} cannot be used ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): check the address and the credentials"
        ) from None


@contextlib.contextmanager
def mirrored(folder: RunFolder, url: str | None, *, write: bool = True) -> Iterator[Mirror | None]:
    """A (locked) folder and its copy below `url`: fetched first, mirrored while inside, complete at
    the end. Nothing without a URL."""
    if url is None:
        yield None
        return
    mirror = Mirror(folder.path, f"{url.rstrip('/')}/{folder.name}")
    folder.path.mkdir(parents=True, exist_ok=True)
    mirror.begin(write=write)
    if not write:
        yield mirror
        return
    stop, problems = threading.Event(), list[str]()
    thread = threading.Thread(target=mirror.keep_up, args=(stop, problems), daemon=True)
    thread.start()
    try:
        yield mirror
    finally:
        stop.set()
        thread.join()
        mirror.end()
