"""Peak memory and tokens per second of a slice of a recipe: its first layers, on one device, with the plain engine.

    .venv/bin/python bench/slice.py --recipe most-16b --layers 4 --length 4096

One GPU of 80 GB holds 4 layers of most-16b (2.2 B parameters, bf16 with float32 masters). Every step is a whole
optimizer step on synthetic mixed rows; the median of the steps after warm-up is printed, with the spread, as one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.engine import PlainEngine, open_session
from megatron_most.model import build_model
from megatron_most.runtime import progress, run_command
from megatron_most.train import synthetic_steps

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-16b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096, help="tokens in a row")
    parser.add_argument("--rows", type=int, default=4, help="rows in a step, one a micro-batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after warm-up")
    chosen = parser.parse_args()
    changes = {
        "model.num_layers": chosen.layers,
        "engine.kind": "plain",
        "layout.expert": 1,
        "train.sequence_length": chosen.length,
        "train.micro_batch_size": 1,
        "train.global_batch_size": chosen.rows,
    }
    print(json.dumps(measure(replace(load_recipe(chosen.recipe), changes), chosen.steps)))


def measure(config: RunConfig, steps: int) -> dict[str, object]:
    with open_session(config) as session:
        model = build_model(session.plan, session.groups, session.device.torch_device)
        engine = PlainEngine(model, session.plan, session.groups)
        batches_of = synthetic_steps(session.plan, session.groups)
        session.device.reset_memory_stats()
        seconds: list[float] = []
        for step in progress(range(WARM_UP + steps), config.name, "step"):
            batches = batches_of(step)
            session.device.synchronize()
            started = time.perf_counter()
            engine.step(batches, config.train.learning_rate)
            session.device.synchronize()
            seconds.append(time.perf_counter() - started)
        timed = seconds[WARM_UP:]
        tokens = config.train.global_batch_size * config.train.sequence_length
        return {
            "recipe": config.name,
            "layers": config.model.num_layers,
            "precision": config.engine.precision,
            "device": session.device.kind,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "tokens_per_step": tokens,
            "tokens_per_second": round(tokens / statistics.median(timed), 1),
            "slowest_over_fastest": round(max(timed) / min(timed), 2),
            "peak_memory_gib": round(session.device.max_memory_bytes() / 2**30, 2),
        }


if __name__ == "__main__":
    run_command(main)
