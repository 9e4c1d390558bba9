"""A trial's memory does not grow with its steps, though every batch has shapes of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainable.small_trials import puzzle_folder, tiny

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
          "fordblks", "keepcost")  # fmt: skip
PROBE = """
import sys
from pathlib import Path
from tests.trainable.test_memory_growth import in_use
from trainable.config import TrialConfig
from trainable.trial import Trial

trial = Trial(TrialConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
seen = []
for step in range(60):
    trial.train_step()
    seen.append(in_use())
print(max(seen[-10:]) - max(seen[10:20]))
"""


class Counts(ctypes.Structure):
    """What ``mallinfo2`` returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def in_use() -> int:
    """Bytes that malloc has given away in this process."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Counts
    counts = libc.mallinfo2()
    return int(counts.uordblks + counts.hblkhd)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize("precision", ["highest", pytest.param("medium", marks=pytest.mark.slow)])
def test_a_step_leaves_nothing_behind(tmp_path: Path, precision: str) -> None:
    config = tiny(
        puzzle_folder(tmp_path / "puzzles", training=24, evaluation=2),
        steps=100,
        float32_matmul_precision=precision,
        num_threads=1,
    )
    done = subprocess.run(
        [sys.executable, "-c", PROBE, config.model_dump_json(), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert float(done.stdout) < 20_000 * 40, f"{float(done.stdout) / 40:.0f} bytes a step"
