"""Peak memory and tokens per second of slices of a recipe: its first layers, on one device, with the plain engine; and
what the whole model would then do.

    .venv/bin/python bench/slice.py --recipe most-16b --layers 3 5 --length 4096

One GPU of 80 GB holds 4 layers of most-16b (2.2 B parameters, bf16 with float32 masters), one of 140 GB 5. Every step
is a whole optimizer step on synthetic mixed rows; the median of the steps after warm-up is printed, with the spread, as
one line of JSON for each slice. From two slices the last line tells of all layers: a layer costs the difference, and
embedding, head, loss and their share of the optimizer are counted once. With --ranks N it is that of one of N
expert-parallel ranks in a node: the all-to-all that plan.py predicts for them is added, and both numbers are told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from megatron_most.config import RunConfig, count_flops, load_recipe, replace
from megatron_most.engine import PlainEngine, make_plan, open_session
from megatron_most.errors import ConfigError, DataError
from megatron_most.model import build_model
from megatron_most.plan.machine import MACHINES, Assumed
from megatron_most.plan.prediction import Cluster
from megatron_most.plan.ranking import facts_for, predict_recipe
from megatron_most.runtime import find_device, progress, run_command, set_threads
from megatron_most.train import synthetic_steps
from megatron_most.upstream import core_version

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-16b")
    parser.add_argument("--layers", type=int, nargs="+", default=[4], help="of a slice; of two, fewer and more")
    parser.add_argument("--length", type=int, default=4096, help="tokens in a row")
    parser.add_argument("--rows", type=int, default=4, help="rows in a step, one a micro-batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after warm-up")
    parser.add_argument("--ranks", type=int, default=8, help="expert-parallel, of the whole model")
    parser.add_argument("--kernels", choices=["auto", "plain"], default="auto", help="engine.kernels")
    parser.add_argument("--machine", choices=MACHINES, default="h100-80", help="whose links the all-to-all takes")
    chosen = parser.parse_args()
    changes = {
        "engine.kind": "plain",
        "engine.kernels": chosen.kernels,
        "layout.expert": 1,
        "train.sequence_length": chosen.length,
        "train.micro_batch_size": 1,
        "train.global_batch_size": chosen.rows,
    }
    config = replace(load_recipe(chosen.recipe), changes)
    slices = []
    for layers in chosen.layers:
        slices.append(measure(replace(config, {"model.num_layers": layers}), chosen.steps))
        print(json.dumps(slices[-1]), flush=True)
    if len(slices) == 2:
        print(json.dumps(whole(config, *slices, chosen.ranks, chosen.machine)))


def whole(config: RunConfig, fewer: dict[str, Any], more: dict[str, Any], ranks: int, machine: str) -> dict[str, Any]:
    """All layers of the recipe, from two slices of it."""
    train, layers = config.train, config.model.num_layers
    seconds, per_layer = line(layers, (fewer["layers"], fewer["seconds"]), (more["layers"], more["seconds"]))
    tokens = train.global_batch_size * train.sequence_length
    pairs = train.global_batch_size * train.sequence_length * (train.sequence_length + 1) // 2  # a document a row
    device = find_device()
    flops = count_flops(make_plan(config, 1, device)).of_step(tokens, pairs)
    share = {"layout.expert": ranks, "train.global_batch_size": ranks * train.global_batch_size}
    cluster = Cluster(nodes=1, gpus=ranks, machine=MACHINES[machine])
    predicted = predict_recipe(replace(config, share), facts_for(cluster, core_version()), cluster, Assumed())
    apart = sum(flow.seconds for flow in predicted.flows if flow.kind == "experts")
    told: dict[str, Any] = {
        "recipe": config.name, "layers": layers, "from": [fewer["layers"], more["layers"]],
        "seconds_per_layer": _short(per_layer), "seconds_once": _short(seconds - per_layer * layers),
        "all_to_all_seconds": _short(apart), "ranks": ranks,
    }  # fmt: skip
    for name, taken in (("", seconds), ("_with_all_to_all", seconds + apart)):
        told[f"tokens_per_second{name}"] = round(tokens / taken, 1)
        told[f"mfu{name}"] = round(flops / taken / device.peak_flops, 4) if device.peak_flops else None
    return told


def line(at: int, first: tuple[int, float], second: tuple[int, float]) -> tuple[float, float]:
    """(value at `at`, slope) of the line through two points."""
    if first[0] >= second[0]:
        raise ConfigError(
            "--layers", [first[0], second[0]], "a layer's cost is their difference", "give fewer, then more"
        )
    slope = (second[1] - first[1]) / (second[0] - first[0])
    if slope <= 0:
        raise DataError(
            f"{second[0]} layers took no longer than {first[0]}: too few --steps, or a machine at other work"
        )
    return first[1] + slope * (at - first[0]), slope


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def measure(config: RunConfig, steps: int) -> dict[str, Any]:
    with open_session(config) as session:
        if session.device.kind == "cpu":
            set_threads(1)  # two would wait for one another on a machine with other work
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
            "seconds": statistics.median(timed),
            "tokens_per_second": round(tokens / statistics.median(timed), 1),
            "slowest_over_fastest": round(max(timed) / min(timed), 2),
            "peak_memory_gib": round(session.device.max_memory_bytes() / 2**30, 2),
        }


if __name__ == "__main__":
    run_command(main)
