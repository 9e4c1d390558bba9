"""One process of a trial, whoever started it: what it is told, and how it calls the loop.

Shared by the workers of a `TorchTrainer` (`trainable.ray_adapter`) and the forked processes of
short trials (`trainable.forked`). Knows no Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trainable.config import TrialConfig
from trainable.errors import StorageError

TRAIN_FUNCTION = "trainable.loop:train"

Row = dict[str, Any]


@dataclass(frozen=True)
class TrialSpec:
    """What a Tune trial needs to know, as plain values that survive a trip through JSON."""

    trial_id: str
    out_dir: str
    config: dict[str, Any]
    owner: str
    """Token of the conductor that started this trial (`begin_attempt`)."""
    num_workers: int = 1
    worker_resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    max_failures: int = 3
    """Restarts after a worker died; each resumes from the loop's newest checkpoint."""
    storage: str = ""
    """Scratch folder that Ray writes to and nobody reads."""
    one_machine: bool = False
    """All workers are on this machine: they meet in `storage`, not at an open port."""
    train: str = TRAIN_FUNCTION
    """``module:function`` with the signature of `trainable.loop.train`."""
    url: str = ""
    """Where the run folder is mirrored to, for nodes that do not see it (`trainable.mirrored`)."""
    token: str = ""
    """Content of ``.here`` in the run folder, for nodes that do."""
    until: int | None = None
    """Step at which the trial pauses."""

    @property
    def use_gpu(self) -> bool:
        """Whether a worker asks for a GPU or a share of one."""
        return self.worker_resources.get("GPU", 0) > 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialSpec:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


SUPERSEDED = {"status": "superseded", "reason": "another run took this trial over"}
"""Outcome of a trial whose folder belongs to another run by now."""


def load_function(path: str) -> Callable[..., Any]:
    """The function that ``module:function`` names."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert callable(function), path
    return function  # type: ignore[no-any-return]


def set_threads(count: int) -> None:
    """Torch's threads of this process, whatever Ray has derived from CPU shares."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    torch.set_num_threads(count)


def keep_to_share(spec: TrialSpec) -> None:
    """A trial with a share of a GPU that runs out of memory does so within its own share."""
    if (share := spec.worker_resources.get("GPU", 1.0)) < 1:
        torch.cuda.set_per_process_memory_fraction(share)


def _cause(error: BaseException) -> BaseException | None:
    """What Ray has wrapped into ``error``."""
    base = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
    return base if isinstance(base, BaseException) and base is not error else None


def outcome_of(error: BaseException) -> dict[str, Any]:
    """``status`` and ``reason`` of a trial that ended with an exception.

    A file that could not be written (`StorageError`) is not the trial's fault: it is
    ``interrupted``, and the same command continues it.
    """
    failures = getattr(error, "worker_failures", None)
    causes = list(failures.values()) if isinstance(failures, Mapping) else [error]
    for one in causes:
        inner: BaseException | None = one
        while inner is not None:
            if isinstance(inner, StorageError):
                return {"status": "interrupted", "reason": str(inner)}
            inner = _cause(inner)
    return {"status": "failed", "reason": one_line(error)}


def one_line(error: BaseException) -> str:
    """An exception's type and last line of text, without Ray's tracebacks around it."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        rank, cause = next(iter(failures.items()))
        return f"worker {rank}: {one_line(cause)}"
    if (base := _cause(error)) is not None:
        return one_line(base)
    if isinstance(error, MemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if name in ("RayActorError", "ActorDiedError", "ActorUnavailableError"):
        return "a worker process died (killed, or out of memory)"
    if name == "OutOfMemoryError":  # of a GPU; of a node, as Ray's memory monitor says it
        return f"out of memory: {lines[0] if lines else name}"[:500]
    text = lines[-1] if lines else ""
    return text if text.startswith(name) else f"{name}: {text}"[:500]


class Log(io.TextIOBase):
    """A trial's log, appended. A log that cannot be written is no reason to stop."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> int:
        """Append, as far as there is room."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(text.encode("utf-8", errors="replace"))
        return len(text)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()


def run_loop(
    spec: TrialSpec, attempt: int, report: Callable[[Row], bool], *, rank: int = 0, world: int = 1
) -> dict[str, Any]:
    """Train, with what is printed in the trial's log.

    Returns ``status``, ``reason``, ``step``, ``total_steps``. An exception of a single worker comes
    back as its outcome (`outcome_of`), since it would only come again; with several workers it is
    raised, because the others wait in a collective and must be restarted with it.
    """
    out_dir = Path(spec.out_dir)
    with (
        Log(out_dir / ("log" if rank == 0 else f"log-{rank}")) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            result = load_function(spec.train)(
                TrialConfig(**spec.config),
                out_dir=out_dir,
                report=report,
                resume_from="auto",
                progress=False,
                attempt=attempt,
                **({} if spec.until is None else {"until": spec.until}),
            )
        except Exception as error:
            traceback.print_exc()
            if world > 1:
                raise
            return outcome_of(error)
    return {
        "status": result.status,
        "reason": result.reason or "",
        "step": result.step,
        "total_steps": result.total_steps,
    }
