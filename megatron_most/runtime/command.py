"""How every command of ours ends: what the user caused is one line and exit code 2, never a traceback.

So is what the disk refused: no room, no permission, a server that fails. Anything else that is not a MostError is our
own fault, and keeps its traceback; a crash in C shows the stack that led to it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from megatron_most.errors import MostError
from megatron_most.runtime.disk import explain
from megatron_most.runtime.launch import Launch, find_launch
from megatron_most.runtime.log import one_line, redact, set_rank
from megatron_most.runtime.process import end_with_parent
from megatron_most.runtime.signals import take_signal

EXIT_STOPPED = 75
"""A command's code when it stopped on request with all saved: start the same command again to go on."""
_ALIKE_S = 5.0  # how much later than another a rank may come to the same error, on a busy machine


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as this process's command and leave with its code (None is 0)."""
    name = Path(sys.argv[0]).name
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        faulthandler.enable(file=2)  # a crash in C, as by a data file that was cut short while it is mapped
    launch = Launch()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told by us, in one line
    try:
        launch = find_launch()
        set_rank(launch.rank)
        if launch.agent_restarts is not None:
            end_with_parent()  # torchrun starts ranks as sessions of their own: killed, it would leave them at work
        if launch.world_size > 1:
            name = f"{name} [rank {launch.rank}]"
        code = main() or 0
    except MostError as error:
        is_alone = launch.local_rank == 0 or error.is_told is not None
        if not error.is_told and (is_alone or not _is_ended()):
            sys.stderr.write(redact(one_line(f"{name}: {error}")) + "\n")
        code = 2
    except OSError as error:
        if (words := explain(error)) is None:
            raise
        sys.stderr.write(redact(one_line(f"{name}: {words}")) + "\n")
        code = 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: stopped by hand\n")
        code = 130
    sys.exit(code)


def _is_ended() -> bool:
    """Whether the launcher ends this rank. What is wrong with a recipe is raised by all, before they have met: the
    first of a machine says it and ends, and torchrun then the others. One that is not ended has an error of its own.
    """
    take_signal()
    until = time.monotonic() + _ALIKE_S
    while time.monotonic() < until:
        time.sleep(0.05)
        if take_signal():
            return True
    return False
