"""Compile the C kernels on first use, and keep them in the user's cache.

The library's name is the hash of its sources, the compiler and the processor's features, so that a
changed source, a new compiler or a home folder shared by unlike machines each have their own. It
appears by an atomic rename: processes that start together may each compile, and load the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

VARIABLE = "ETRM_KERNELS"
"""Environment variable: 0 turns the kernels off."""
SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fvisibility=hidden")
NATIVE = (("-march=native",), ("-mcpu=native",), ())
"""Which of these a compiler knows depends on the processor; the first that compiles is taken."""
TIMEOUT_S = 120

log = logging.getLogger(__name__)


class NoKernels(Exception):
    """Why there are no kernels here."""


@cache
def _found() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return _load(), None
    except NoKernels as why:
        log.warning("CPU kernels are off, PyTorch computes instead: %s", why)
        return None, str(why)


def library() -> ctypes.CDLL | None:
    """The kernels, compiled if need be; None where they are off or cannot be compiled."""
    return _found()[0]


def why_not() -> str | None:
    """Why `library()` is None, in a few words; None where it is not."""
    return _found()[1]


def rounding() -> int:
    """How products round their factors to bfloat16: 0 not at all, 1 by instructions on vectors, 2
    by those on tiles (AMX). `torch.set_float32_matmul_precision` says whether: ``medium`` is
    PyTorch's word for it. The processor says how; where it gains nothing, products are float32."""
    found = library()
    if found is None or torch.get_float32_matmul_precision() != "medium":
        return 0
    return int(found.etrm_bfloat16())


def description() -> str:
    """What computes on the CPU, for the first line of a trial's rows."""
    found, why = _found()
    if found is None:
        return f"PyTorch ({why})"
    products = ("", ", bfloat16 products", ", bfloat16 products in tiles")[rounding()]
    return f"kernels ({found.etrm_lanes()} lanes{products})"


def _load() -> ctypes.CDLL:
    if os.environ.get(VARIABLE, "1") == "0":
        raise NoKernels(f"{VARIABLE}=0")
    compiler = _compiler()
    sources = sorted(SOURCES.glob("*.[ch]"))
    name = _name(compiler, sources)
    tried = []
    for folder in _folders():
        path = folder / name
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _compile(compiler, [s for s in sources if s.suffix == ".c"], path)
            return ctypes.CDLL(str(path))
        except OSError as error:  # not writable, mounted noexec, a torn file
            tried.append(f"{folder}: {error}")
    raise NoKernels("; ".join(tried))


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoKernels("no C compiler: install gcc or clang")


def _folders() -> list[Path]:
    """The user's cache, else a folder of this user's own among the temporary files."""
    base = os.environ.get("XDG_CACHE_HOME")
    folders = []
    try:
        folders.append((Path(base) if base else Path.home() / ".cache") / "etrm-tune" / "kernels")
    except RuntimeError:  # no home
        log.debug("no home folder")
    own = Path(tempfile.gettempdir()) / f"etrm-tune-kernels-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid == os.getuid():
            folders.append(own)
    except OSError as error:
        log.debug("%s", error)
    return folders


def _name(compiler: str, sources: list[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    for part in (*FLAGS, version.decode(errors="replace"), platform.machine(), _features()):
        digest.update(part.encode())
    return f"{digest.hexdigest()[:20]}.so"


def _features() -> str:
    """What -march=native depends on: the first processor's model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    keys = ("model", "model name", "flags", "Features", "CPU part")
    lines = [line for line in text.splitlines() if line.split("\t")[0].strip() in keys]
    return "\n".join(lines)


def _compile(compiler: str, sources: list[Path], target: Path) -> None:
    problem = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for native in NATIVE:
            command = [compiler, *FLAGS, *native, "-shared", "-fPIC", *map(str, sources)]
            try:
                done = subprocess.run(
                    [*command, "-o", str(made), "-lm"],
                    capture_output=True,
                    check=False,
                    timeout=TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                raise NoKernels(f"{compiler} took more than {TIMEOUT_S} s") from None
            if done.returncode == 0:
                made.replace(target)
                return
            problem = next(iter(done.stderr.decode(errors="replace").splitlines()), "")
    raise NoKernels(f"{compiler} failed: {problem}")
