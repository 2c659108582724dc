"""Predictions as text of at most 120 columns, and as plain values for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_most.config import RunConfig, count_parameters
from megatron_most.plan.machine import GIB
from megatron_most.plan.prediction import Cost, Prediction
from megatron_most.plan.ranking import Found, Refused, layout_name

_HEAD = (
    f"{'':>3} {'layout':<21}{'ZeRO':>4}{'rows':>5} {'again':<15}{'weights':>8}{'grads':>6}{'optim':>6}{'activ':>6}"
    f"{'experts':>8}{'work':>5}{'other':>6}{'GiB':>6}{'step s':>8}{'tok/s/GPU':>10}"
)


def describe_run(one: Prediction) -> list[str]:
    """The model, the machine, the batch."""
    config, cluster, size, batch = one.plan.config, one.cluster, count_parameters(one.plan), one.batch
    machine = cluster.machine
    counted = "documents in about" if config.train.batch_counts == "documents" else "rows,"
    return [
        f"{config.name}: {size.total / 1e9:.2f} B parameters, {size.active / 1e9:.2f} B active, "
        f"{config.engine.precision}",
        f"{cluster.nodes:,} node{'s' * (cluster.nodes > 1)} x {cluster.gpus} {machine.name} = {cluster.world:,} GPUs "
        f"of {machine.memory / GIB:.0f} GiB",
        f"a step: {config.train.global_batch_size:,} {counted} {batch.rows:,.0f} rows of "
        f"{config.train.sequence_length:,}, {batch.tokens:,.0f} tokens; {config.train.steps:,} steps",
    ]


def describe_found(found: Found) -> list[str]:
    """The table of the best; memory in GiB of the fullest rank."""
    lines = [_HEAD]
    for number, one in enumerate(found.ranked, start=1):
        lines.append(_row(f"{number:>2}.", one))
    return lines


def describe_refused(refused: Sequence[Refused], tried: int, most: int = 8) -> list[str]:
    """Why the others are out."""
    lines = [f"{sum(one.count for one in refused):,} of {tried:,} layouts are refused:"]
    for one in refused[:most]:
        lines.append(f"  {one.count:>5,}  {one.reason}"[:118])
        lines.append(f"         as {one.example}")
    if len(refused) > most:
        lines.append(f"  {sum(one.count for one in refused[most:]):>5,}  for {len(refused) - most} other reasons")
    return lines


def describe_one(one: Prediction) -> list[str]:
    """A layout in full."""
    memory, step, batch = one.memory, one.step, one.batch
    stage = f", stage {memory.stage} of the pipeline" if one.plan.layout.pipeline > 1 else ""
    lines = [_name(one), "", f"memory of the fullest rank{stage}, GiB"]
    for name, size in memory.parts.items():
        lines.append(f"  {name:<14}{size / GIB:>9.2f}")
    verdict = f"{-one.lacks / GIB:,.1f} are left" if one.lacks <= 0 else f"{one.lacks / GIB:,.1f} TOO MANY"
    lines.append(f"  {'in all':<14}{memory.total / GIB:>9.2f}  of {one.cluster.machine.memory / GIB:.0f}: {verdict}")
    if memory.host:
        lines.append(f"  {'host memory':<14}{memory.host / GIB:>9.2f}")
    modules = sorted(memory.modules.items(), key=lambda item: -item[1])
    kept = ", ".join(f"{name} {size / GIB:.2f}" for name, size in modules if size >= 0.005 * GIB)
    lines += textwrap.wrap(f"  of one micro-batch are kept: {kept}", 118, subsequent_indent="    ")
    lines += ["", "traffic of a rank in a step"]
    for flow in one.flows:
        exposed = step.exposed.get(flow.kind, 0.0)
        where = "inside a node" if flow.ring.link == "inside" else f"between {flow.ring.nodes:,} nodes"
        lines.append(
            f"  {flow.kind:<24}{flow.sent / 1e9:>10,.2f} GB  {flow.ring.size:>5,} ranks {where:<20}"
            f"{flow.seconds:>8.3f} s, {exposed:.3f} of them not hidden"
        )
    lines += ["", "seconds of a step"]
    parts = {"products": step.compute, "pipeline's bubble": step.bubble, "traffic": sum(step.exposed.values())}
    for name, seconds in {**parts, "optimizer": step.optimizer, "in all": step.total}.items():
        lines.append(f"  {name:<20}{seconds:>9.3f}")
    lines.append(
        f"  {batch.micro_batches:,} micro-batches of {one.plan.config.train.micro_batch_size} rows on each of "
        f"{one.plan.layout.data:,} data ranks; {batch.fillers:.1%} of the rows are fillers"
    )
    lines.append(
        f"  {one.tokens_per_second:,.0f} tokens a second and GPU, {one.mfu:.1%} of the peak in the model's own products"
    )
    return lines


def describe_cost(one: Prediction, cost: Cost, name: str) -> list[str]:
    """What the whole run takes with this layout."""
    chain, storage, steps = cost.chain, cost.storage, one.plan.config.train.steps
    interval = one.plan.config.checkpoint.every * one.step.total
    jobs = f", {chain.jobs:,} jobs" if chain.jobs > 1 else ""
    lines = [
        f"{name}: {steps:,} steps, {cost.tokens / 1e9:,.1f} G tokens: {cost.days:,.1f} days, {cost.gpu_hours:,.0f} "
        f"GPU-hours{jobs}",
        f"a checkpoint: {storage.checkpoint / 1e9:,.1f} GB in at most {storage.files:,} files; with {storage.kept} at "
        f"once {storage.quota / 1e12:,.2f} TB and {storage.inodes:,} files of quota",
        f"it holds the loop up {chain.save_s:,.1f} s, and is written in {chain.write_s:,.0f} s",
    ]
    if chain.saves > 1 and chain.write_s > interval:
        lines.append(
            f"writing takes longer than checkpoint.every = {one.plan.config.checkpoint.every} steps "
            f"({interval:,.0f} s): training would wait for the disk"
        )
    return lines


def to_dict(one: Prediction) -> dict[str, Any]:
    """Plain values."""
    config: RunConfig = one.plan.config
    return {
        "layout": {name: value for name, value in asdict(config.layout).items()},
        "zero_stage": config.engine.zero_stage if config.engine.kind == "deepspeed" else None,
        "offload_optimizer": config.engine.offload_optimizer,
        "micro_batch_size": config.train.micro_batch_size,
        "recompute": asdict(config.recompute),
        "fits": one.lacks <= 0,
        "memory_bytes": {**one.memory.parts, "total": one.memory.total, "host": one.memory.host},
        "kept_bytes": dict(one.memory.modules),
        "traffic": [
            {"kind": f.kind, "ranks": f.ring.size, "link": f.ring.link, "sent_bytes": f.sent, "seconds": f.seconds}
            for f in one.flows
        ],
        "step_seconds": {**asdict(one.step), "total": one.step.total},
        "batch": {**asdict(one.batch), "fillers": one.batch.fillers},
        "tokens_per_second_per_gpu": one.tokens_per_second,
        "mfu": one.mfu,
    }


def _row(number: str, one: Prediction) -> str:
    memory = {name: size / GIB for name, size in one.memory.parts.items()}
    config = one.plan.config
    stage = str(config.engine.zero_stage) if config.engine.kind == "deepspeed" else "-"
    return (
        f"{number:>3} {layout_name(config.layout):<21}{stage:>4}{config.train.micro_batch_size:>5} {again(config):<15}"
        f"{memory['weights']:>8.1f}{memory['gradients']:>6.1f}{memory['optimizer']:>6.1f}{memory['activations']:>6.1f}"
        f"{memory['experts']:>8.1f}{memory['working']:>5.1f}{memory['reserve']:>6.1f}{one.memory.total / GIB:>6.1f}"
        f"{one.step.total:>8.2f}{one.tokens_per_second:>10,.0f}"
    )


def again(config: RunConfig) -> str:
    """What is recomputed, and whether the optimizer is offloaded, in few words."""
    recompute = config.recompute
    words = {"none": "-", "full": "all"}.get(
        recompute.granularity, "+".join(recompute.modules).replace("core_attn", "attn")
    )
    return words + (" offl." if config.engine.offload_optimizer else "")


def _name(one: Prediction) -> str:
    config = one.plan.config
    stage = config.engine.zero_stage if config.engine.kind == "deepspeed" else None
    return (
        f"{layout_name(config.layout, stage)}, DP{one.plan.layout.data}, micro-batches of "
        f"{config.train.micro_batch_size}, recomputed: {again(config)}"
    )
