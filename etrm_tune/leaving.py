"""How a command's process ends: with its own status, whatever libraries do on their way out.

Ray, Arrow and gRPC leave threads and C++ destructors to the end of the process. There a run was
seen to die of a signal after its last line, and a script or a batch queue takes a run that
succeeded for a crash.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def ended_by(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and end the process with the status that it returns.

    Python's side ends as always: threads are joined and the exit handlers of everything that
    ``main`` imports run. What would come after them, destructors of C++ libraries, does not.
    An exception other than `SystemExit` passes through.
    """
    status: list[int] = []
    atexit.register(_leave, status)  # the first to register is the last to be called
    try:
        code = main()
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        code = error.code or 0
    status.append(code)
    raise SystemExit(code)


def _leave(status: list[int]) -> None:
    if not status:
        return
    logging.shutdown()
    code = status[0]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # no room, or the reader of a pipe is gone
            code = code or 1
    os._exit(code)
