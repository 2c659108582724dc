"""Being asked to stop: a signal before the time limit, or a file. The step is finished and saved; the code says so.

Slurm sends SIGTERM, or what `--signal` names; SIGUSR1 is usual. A file `stop` in the run's folder does the same.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType


class StopRequest:
    """Asked on every rank by itself; the ranks then agree."""

    def __init__(self, folder: Path) -> None:
        self._file, self.reason = folder / "stop", ""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def is_asked(self, look: bool) -> bool:
        """`look`: also for the file, which costs a look at the file system."""
        if look and not self.reason and self._file.exists():
            self.reason = f"the file {self._file}"
        return bool(self.reason)
