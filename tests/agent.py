"""torchrun, but for one thing: its ranks are forked from this process, which has imported what they need.

What its agent does is torch's own: the rendezvous, the environment, watching ranks and ending them.
    run_program(ROOT / "tests" / "agent.py", "--nproc-per-node", "2", FILE, *words)
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def rank(file: str, words: list[str]) -> None:
    """What `python FILE WORDS` does."""
    import torch

    torch.set_num_threads(1)  # before any torch work, as in harness.py
    sys.argv, sys.path[0:0] = [file, *words], [str(Path(file).resolve().parent)]
    runpy.run_path(file, run_name="__main__")


def main() -> None:
    from torch.distributed import run

    read = run.config_from_args

    def forked(given: Any) -> Any:
        config, _, _ = read(given)
        config.start_method = "fork"
        return config, rank, [given.training_script, given.training_script_args]

    run.config_from_args = forked
    run.main(sys.argv[1:])


if __name__ == "__main__":
    main()
