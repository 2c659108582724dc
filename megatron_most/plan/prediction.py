"""One layout in full: memory, traffic, seconds, what it costs; or why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from megatron_most.config import Plan, count_flops
from megatron_most.convert.tables import Link
from megatron_most.errors import ConfigError
from megatron_most.plan.machine import GIB, Assumed, Machine
from megatron_most.plan.memory import Memory, memory_of, state_of
from megatron_most.plan.step import Batch, Step, batch_of, step_of
from megatron_most.plan.storage import Storage, storage_of
from megatron_most.plan.traffic import Flow, flows_of
from megatron_most.plan.weights import Held, held_by_stage


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run is to go."""

    nodes: int
    gpus: int
    """Of a node."""
    machine: Machine

    @property
    def world(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one layout takes."""

    plan: Plan
    cluster: Cluster
    memory: Memory
    flows: tuple[Flow, ...]
    batch: Batch
    step: Step

    @property
    def lacks(self) -> float:
        """Bytes beyond the GPU's memory; not above 0 = it fits."""
        return self.memory.total - self.cluster.machine.memory

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU, pads left out."""
        return self.batch.tokens / self.step.total / self.cluster.world

    @property
    def mfu(self) -> float:
        """The model's own products of documents' tokens, as metrics.jsonl counts them."""
        flops = count_flops(self.plan).of_step(int(self.batch.tokens), int(self.batch.pairs))
        machine = self.cluster.machine
        peak = machine.peak if self.plan.config.engine.precision != "fp32" else machine.peak_fp32
        return flops / self.step.total / self.cluster.world / peak


def predict(plan: Plan, cluster: Cluster, held: list[Held], assumed: Assumed) -> Prediction:
    """Of a plan for as many ranks as the cluster has; `held` as held_by_stage gives it."""
    batch, machine = batch_of(plan, assumed), cluster.machine
    memory = memory_of(plan, held, assumed.reserve(machine), assumed.imbalance, batch.micro_batches)
    flows = [
        flows_of(plan, held[stage], stage, batch.micro_batches, machine, cluster.gpus, assumed)
        for stage in {0, plan.layout.pipeline - 1}
    ]
    slowest = max(flows, key=lambda found: sum(flow.seconds for flow in found))
    states = [state_of(plan, part) for part in held]
    state = max(states, key=lambda state: state.optimizer + state.host)
    return Prediction(
        plan=plan, cluster=cluster, memory=memory, flows=tuple(slowest), batch=batch,
        step=step_of(plan, held, state, slowest, batch, machine, assumed),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A run as a chain of jobs, each of which goes on where the last one stopped."""

    jobs: int
    seconds: float
    """From the first job's start to the last one's end, without waiting in the queue."""
    training_s: float
    save_s: float
    """One checkpoint's hold on the loop: masters and moments gathered, and this rank's share copied to the host."""
    write_s: float
    """Until it is on disk, beside training."""
    saves: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a whole run."""

    chain: Chain
    storage: Storage
    gpu_hours: float
    tokens: float

    @property
    def days(self) -> float:
        return self.chain.seconds / 86400


def cost_of(
    found: Prediction, tensors: list[Link], assumed: Assumed, time_limit_s: float | None = None, jobs: int | None = None
) -> Cost:
    """ConfigError where the time limits cannot hold the run. `jobs`: the chain has no more than these."""
    plan, train, machine = found.plan, found.plan.config.train, found.cluster.machine
    storage = storage_of(plan, tensors)
    every = plan.config.checkpoint.every
    saves = -(-train.steps // every) if every else 1
    held = held_by_stage(plan, tensors)
    whole = 12.0 * max(part.others + part.experts for part in held)
    link = machine.inside if found.cluster.nodes == 1 else min(machine.inside, found.cluster.gpus * machine.between)
    gathered = whole / (link * assumed.link_efficiency) if plan.config.engine.kind == "deepspeed" else 0.0
    save = gathered + storage.checkpoint / plan.layout.world / machine.host
    write = storage.checkpoint / assumed.disk
    training = train.steps * found.step.total + saves * save
    needed, usable = 1, 0.0
    if time_limit_s is not None:
        last = save + write  # a job that is asked to stop saves and waits until that is written
        ending = max(last, assumed.notice_s)
        usable = time_limit_s - assumed.start_s - ending
        if usable < found.step.total:
            raise ConfigError(
                "--time-limit", _hours(time_limit_s), f"a job starts in {assumed.start_s:,.0f} s and stops "
                f"{ending:,.0f} s before its end, so no step of {found.step.total:,.1f} s fits",
                "ask for more time a job",
            )  # fmt: skip
        needed = ceil(training / usable)
    elif jobs is not None:
        raise ConfigError("--jobs", jobs, "says nothing without a time limit", "give --time-limit too")
    seconds = training + needed * (assumed.start_s + (save + write if needed > 1 else write))
    if jobs is not None and time_limit_s is not None and needed > jobs:
        done = jobs * usable / training
        raise ConfigError(
            "--jobs", jobs, f"{train.steps:,} steps of {found.step.total:,.2f} s take {needed:,} jobs of "
            f"{_hours(time_limit_s)}: {jobs:,} would reach step {int(done * train.steps):,}",
            f"allow {needed:,} jobs, or more time or GPUs",
        )  # fmt: skip
    return Cost(
        chain=Chain(jobs=needed, seconds=seconds, training_s=training, save_s=save, write_s=write, saves=saves),
        storage=storage,
        gpu_hours=seconds * found.cluster.world / 3600,
        tokens=found.batch.tokens * train.steps,
    )


def gib(size: float) -> float:
    return size / GIB


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h"
