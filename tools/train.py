"""Train one phase: `train.py --config RECIPE [--field value ...]`, alone, under torchrun, or under srun.

    .venv/bin/python tools/train.py --config most-tiny --data.asr.weight 1 --data.asr.train data/asr
    .venv/bin/torchrun --nproc-per-node 8 tools/train.py --config phase1.toml --layout.expert 8

Started again, it goes on after the last checkpoint in its run's folder (checkpoint.folder), on any layout. SIGTERM,
SIGUSR1 or a file `stop` in that folder let it finish the step, save, and leave with code 75; any error is code 2.
"""

from __future__ import annotations

import sys

from megatron_most.runtime import hear_signals, run_command


def main() -> int:
    hear_signals()  # before the imports, which take seconds: a signal then would end the process by itself
    from megatron_most.config import from_command_line, reference

    if sys.argv[1:] == ["--reference"]:
        print(reference(), end="")
        return 0
    config = from_command_line(prog="train.py")  # --help and a wrong flag need nothing that is imported below
    from megatron_most.train import run_training

    return run_training(config)


if __name__ == "__main__":
    run_command(main)
