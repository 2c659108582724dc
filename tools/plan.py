"""What a run will take before it waits in a queue: layouts ranked, memory by part, seconds, cost; `--help` teaches it.

.venv/bin/python tools/plan.py --config stage1-asr-tts --nodes 6 --gpus 8 --machine a100-80
"""

from __future__ import annotations

from megatron_most.plan import run_plan
from megatron_most.runtime import run_command

if __name__ == "__main__":
    run_command(run_plan)
