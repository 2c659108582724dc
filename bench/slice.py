"""Peak memory and tokens per second of slices of a recipe: its first layers, on one device, with the plain engine; and
what the whole model would then do.

    .venv/bin/python bench/slice.py --recipe most-16b --layers 4 8 --length 4096 --ranks 8

A slice has what one of --ranks expert-parallel ranks holds of each layer: its share of the experts. All of a token's
choices go to these, so that each expert gets as many rows as it would get from all ranks; a rank that held all experts
would give each an eighth of them, and move eight times the weights and gradients. Which modality a token has makes no
difference to the slice. Every step is a whole optimizer step on synthetic rows; the median of the steps after warm-up
is printed, with the spread, as one line of JSON for each slice. From two slices the last line tells of all layers: a
layer costs the difference, and embedding, head, loss and their share of the optimizer are counted once. The all-to-all
that plan.py predicts for the ranks is added, and both numbers are told.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from by_kernel import draw, seconds_by_kernel

from megatron_most.config import Plan, RunConfig, count_flops, load_recipe, replace
from megatron_most.data import Document, PackedBatch, pack_rows, synthetic_document
from megatron_most.engine import PlainEngine, make_plan, open_session
from megatron_most.errors import ConfigError, DataError
from megatron_most.model import build_model
from megatron_most.moe import measure_closely, routers
from megatron_most.plan.machine import MACHINES, Assumed
from megatron_most.plan.prediction import Cluster
from megatron_most.plan.ranking import facts_for, predict_recipe
from megatron_most.runtime import find_device, progress, run_command, set_threads
from megatron_most.upstream import core_version
from megatron_most.vocab import TAG_NAMES

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-16b")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8], help="of a slice; of two, fewer and more")
    parser.add_argument("--length", type=int, default=4096, help="tokens in a row")
    parser.add_argument("--rows", type=int, default=4, help="rows in a step, one a micro-batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after warm-up")
    parser.add_argument("--documents", type=int, default=1, help="of equal length in a row")
    parser.add_argument("--ranks", type=int, default=8, help="expert-parallel, of the whole model")
    parser.add_argument("--kernels", choices=["auto", "plain", "fp8"], default="auto", help="engine.kernels")
    parser.add_argument("--picture", type=Path, help="PNG to write: which kernels a step of the last slice goes to")
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
    share = share_of(config, chosen.ranks)
    slices = []
    for layers in chosen.layers:
        picture = chosen.picture if layers == chosen.layers[-1] else None
        slices.append(measure(replace(share, {"model.num_layers": layers}), chosen.steps, chosen.documents, picture))
        print(json.dumps(slices[-1]), flush=True)
    if len(slices) == 2:
        print(json.dumps(whole(config, *slices, chosen.ranks, chosen.machine, chosen.documents)))


def share_of(config: RunConfig, ranks: int) -> RunConfig:
    """One of `ranks`' experts in each layer, in one group, for all tokens."""
    experts = config.moe.num_experts
    if not experts or ranks == 1:
        return config
    if experts % ranks or experts // ranks < config.moe.top_k:
        wrong = f"a rank must hold as many of {experts} experts as another, and the {config.moe.top_k} of a token"
        raise ConfigError("--ranks", ranks, wrong, "give fewer")
    tags = "+".join(tag for tag in TAG_NAMES if tag not in config.moe.shared_only_tags)
    changes = {"moe.num_experts": experts // ranks, "moe.groups": [f"{tags}: 0-{experts // ranks - 1}"]}
    return replace(config, changes)


def whole(
    config: RunConfig, fewer: dict[str, Any], more: dict[str, Any], ranks: int, machine: str, documents: int
) -> dict[str, Any]:
    """All layers of the recipe, from two slices of it."""
    train, layers = config.train, config.model.num_layers
    seconds, per_layer = line(layers, (fewer["layers"], fewer["seconds"]), (more["layers"], more["seconds"]))
    tokens = train.global_batch_size * train.sequence_length
    length = train.sequence_length // documents
    pairs = train.global_batch_size * documents * length * (length + 1) // 2
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
    why = "too few --steps, or a machine at other work"
    if slope <= 0:
        raise DataError(f"{second[0]} layers took no longer than {first[0]}: {why}")
    if first[1] < slope * first[0]:
        raise DataError(f"{first[0]} layers took less than {first[0]} times what one more costs: {why}")
    return first[1] + slope * (at - first[0]), slope


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def measure(config: RunConfig, steps: int, documents: int, picture: Path | None = None) -> dict[str, Any]:
    with open_session(config) as session:
        if session.device.kind == "cpu":
            set_threads(1)  # two would wait for one another on a machine with other work
        model = build_model(session.plan, session.groups, session.device.torch_device)
        measure_closely(routers(model), False)  # as the loop has it but for the steps that it looks at
        engine = PlainEngine(model, session.plan, session.groups)
        batches_of = packed_steps(session.plan, documents)
        session.device.reset_memory_stats()
        seconds: list[float] = []
        laps: dict[str, list[float]] = defaultdict(list)
        ended = 0.0

        def lap(name: str) -> None:
            nonlocal ended
            session.device.synchronize()
            now = time.perf_counter()
            laps[name].append(now - ended)
            ended = now

        for step in progress(range(WARM_UP + steps), config.name, "step"):
            batches = batches_of(step)
            session.device.synchronize()
            started = ended = time.perf_counter()
            engine.step(batches, config.train.learning_rate, lap=lap)
            session.device.synchronize()
            seconds.append(time.perf_counter() - started)
        if picture is not None:
            step = partial(engine.step, batches_of(WARM_UP + steps), config.train.learning_rate)
            found = seconds_by_kernel(step, session.device)
            title = f"{config.name}, {config.model.num_layers} layers, {config.engine.precision}, {session.device.name}"
            draw(found, title, picture)
        timed = seconds[WARM_UP:]
        tokens = config.train.global_batch_size * config.train.sequence_length
        told = {
            "recipe": config.name,
            "layers": config.model.num_layers,
            "precision": config.engine.precision,
            "device": session.device.kind,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "tokens_per_step": tokens,
            "seconds": statistics.median(timed),
            "seconds_of": {name: _short(statistics.median(taken[WARM_UP:])) for name, taken in laps.items()},
            "tokens_per_second": round(tokens / statistics.median(timed), 1),
            "slowest_over_fastest": round(max(timed) / min(timed), 2),
            "peak_memory_gib": round(session.device.max_memory_bytes() / 2**30, 2),
        }
    del model, engine  # they hold one another, and the next slice wants the room
    gc.collect()
    return told


def packed_steps(plan: Plan, documents: int) -> Callable[[int], list[PackedBatch]]:
    """step -> its micro-batches of one row, which holds so many documents of equal length."""
    train, kinds = plan.config.train, ("mixed", "text", "audio")
    size = train.sequence_length // documents

    def row_of(number: int) -> list[Document]:
        places = range(number * documents, (number + 1) * documents)
        return [synthetic_document(plan.tokens, kinds[n % 3], size + 1, train.seed, n) for n in places]  # type: ignore[arg-type]

    def batches_of(step: int) -> list[PackedBatch]:
        first = step * train.global_batch_size
        rows = range(first, first + train.global_batch_size)
        return [pack_rows([row_of(number)], train.sequence_length, plan.tokens) for number in rows]

    return batches_of


if __name__ == "__main__":
    run_command(main)
