"""On PYTHONPATH: every process whose Ray gives it a GPU believes that torch has one.

Nothing computes on it. It stands in for the calls of `trainable` that need a card, and keeps what
they were told in the environment, where the fake loop finds it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any


class AfterTorch:
    """Lets torch be imported, then changes it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_change(module: Any) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


def change(torch: Any) -> None:
    def keep_share(share: float, device: Any = None) -> None:
        os.environ["ONE_GPU_SHARE"] = str(share)

    import torch.distributed as dist

    join = dist.init_process_group

    def join_by_gloo(backend: str, *rest: Any, **more: Any) -> None:
        join("gloo" if backend == "nccl" else backend, *rest, **more)

    dist.init_process_group = join_by_gloo
    torch.cuda.set_device = lambda device: None
    torch.cuda.set_per_process_memory_fraction = keep_share


sys.meta_path.insert(0, AfterTorch())  # type: ignore[arg-type]
