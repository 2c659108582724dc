"""Models of Hugging Face in and out: import, export, reshard, inspect, verify."""

from __future__ import annotations

from megatron_most.convert import run_convert_ckpt
from megatron_most.runtime import run_command

if __name__ == "__main__":
    run_command(run_convert_ckpt)
