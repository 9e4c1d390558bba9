"""What one node of a cluster has. Sent to it by value, so that it works where we are not installed.

Imports nothing of ours at its head, for that reason.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from importlib import metadata, util
from pathlib import Path
from typing import Any


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Versions, source, puzzles, files and the run folder, as this process sees them.

    `asked`: ``packages`` (names), ``folder``, ``token`` (content of ``folder/.reach``), ``files``
    (paths), ``data`` (configurations as dictionaries), ``url`` (of the run, or empty).
    """
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "packages": {"python": platform.python_version()},
        "code": code_hash(),
        "folder": _folder(Path(asked["folder"]), asked["token"]) if asked["folder"] else "",
        "url": _url(asked.get("url", "")),
        "files": {path: file_hash(path) for path in asked["files"]},
        "data": {},
    }
    for name in asked["packages"]:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found["packages"][name] = None
    if found["code"] is not None:
        for name, config in asked["data"].items():
            found["data"][name] = _data_hash(config)
    return found


def code_hash() -> str | None:
    """16 hex digits over the source that trains; None where it cannot be imported."""
    digest = hashlib.sha256()
    for room in ("search_spaces", "trainable"):
        found = util.find_spec(room)
        if found is None or not found.submodule_search_locations:
            return None
        root = Path(next(iter(found.submodule_search_locations)))
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.[ch]")]):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def file_hash(path: str) -> str | None:
    """16 hex digits of a file's content, as `trainable.decoder.decoder_reference` has them; None
    where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _url(url: str) -> str:
    """Why the run's copy at a URL cannot be read here; empty for nothing."""
    if not url:
        return ""
    try:
        import fsspec

        store, root = fsspec.core.url_to_fs(url)
        store.cat_file(f"{root}/.session.json")
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _folder(path: Path, token: str) -> str:
    """What is wrong with the run folder here; empty for nothing."""
    try:
        if (path / ".reach").read_text() != token:
            return "another folder lies there"
    except OSError:
        return "not there"
    return "" if os.access(path, os.W_OK | os.X_OK) else "not writable"


def _data_hash(config: dict[str, Any]) -> str:
    try:
        from etrm_tune.preflight import Files
        from trainable.config import TrialConfig

        return Files().data_hash(TrialConfig(**config))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
