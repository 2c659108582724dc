"""Fault drills: harm small training runs and see that nothing of them is lost; `--help` says how, `--list` what."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the drills are among the tests

from tests.drills.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
