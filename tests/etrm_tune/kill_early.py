"""For ``RAY_TRAIN_CALLBACKS``: kills a trial whose workers have just been created, once.

At that moment its controller holds their placement group and has told nobody of it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback


class KillTrial(WorkerGroupCallback):
    """In the controller. ``ETRM_KILL_EARLY`` is the folder where it notes that it has."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        folder = Path(os.environ["ETRM_KILL_EARLY"])
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_text()
                marked = f"ETRM_KILL_EARLY={folder}" in (process / "environ").read_text()
            except (OSError, UnicodeDecodeError):
                continue
            if marked and title.startswith("ray::ResourceTrainable") and not any(folder.iterdir()):
                (folder / process.name).touch()
                os.kill(int(process.name), signal.SIGKILL)
                time.sleep(60)  # this actor goes with its owner; the workers get no further
        return {}
