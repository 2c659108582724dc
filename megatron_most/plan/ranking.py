"""Every layout that the checks of a run accept: those that fit ranked by their step time, and why others are refused.

Sizes tried are the divisors of what they cut: tensor ranks of heads, stages of layers, expert ranks of experts; context
ranks are powers of two. Within a layout the micro-batch grows by doubling, and of recomputation and offloading no more
is taken than memory asks for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from megatron_most.config import Facts, LayoutConfig, Plan, RecomputeConfig, RunConfig, build, token_map
from megatron_most.config.data import DataConfig
from megatron_most.config.schema import ForgettingConfig, SamplesConfig
from megatron_most.convert.tables import Link
from megatron_most.errors import ConfigError, LayoutError
from megatron_most.plan.machine import GIB, Assumed
from megatron_most.plan.prediction import Cluster, Prediction, predict
from megatron_most.plan.weights import Held, held_by_stage, tensors_of

_MOST_CONTEXT, _MOST_TENSOR, _MOST_ROWS = 16, 16, 16
RECOMPUTES = (  # from the fastest to the one that needs least memory
    RecomputeConfig(),
    RecomputeConfig(granularity="selective", modules=("core_attn",)),
    RecomputeConfig(granularity="selective", modules=("core_attn", "moe")),
    RecomputeConfig(granularity="full"),
)


@dataclass(frozen=True)
class Refused:
    """Layouts that are out for one reason."""

    reason: str
    count: int
    example: str


@dataclass
class Found:
    """What a search came to."""

    ranked: list[Prediction]
    """The best of each parallel layout, the fastest first."""
    refused: list[Refused]
    tried: int


def for_planning(config: RunConfig) -> RunConfig:
    """The run without its data and measured loads, which need not be there yet, nor what looks at it."""
    moe = replace(config.moe, load_file=None)
    return replace(config, data=DataConfig(), forgetting=ForgettingConfig(), samples=SamplesConfig(), moe=moe)


def facts_for(cluster: Cluster, core_version: tuple[int, int]) -> Facts:
    """GPUs that this machine need not have."""
    return Facts(world_size=cluster.world, device="gpu", core_version=core_version)


def search(config: RunConfig, facts: Facts, cluster: Cluster, assumed: Assumed) -> Found:
    """Try them all; see above."""
    tokens = token_map(config.tokens)
    known: dict[tuple[int, ...], list[Held]] = {}
    tensors: list[Link] = []
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    best: list[Prediction] = []
    found = Found([], [], 0)
    for layout in _layouts(config, cluster):
        fitting: list[Prediction] = []
        for stage in _stages(config):
            tried = replace(config, layout=layout, engine=replace(config.engine, zero_stage=stage))
            found.tried += 1
            try:
                plan = build(replace(tried, train=replace(tried.train, micro_batch_size=1)), facts, tokens)
            except (ConfigError, LayoutError) as error:
                reasons[_reason(error)][layout_name(layout, stage)] += 1
                continue
            tensors = tensors or tensors_of(plan)  # of the model, whatever the layout
            fits, least = _variants(plan, config, cluster, assumed, _held(plan, tensors, known))
            fitting += fits
            if not fits and least is not None:
                reasons[_memory_reason(least)][
                    f"{layout_name(layout, stage)}: {least.memory.total / GIB:,.0f} GiB"
                ] += 1
        if fitting:
            best.append(min(fitting, key=lambda one: (one.step.total, one.memory.total)))
    found.ranked = sorted(best, key=lambda one: (one.step.total, one.memory.total))
    found.refused = sorted(
        (Refused(reason, sum(names.values()), next(iter(names))) for reason, names in reasons.items()),
        key=lambda refused: -refused.count,
    )
    return found


def predict_recipe(config: RunConfig, facts: Facts, cluster: Cluster, assumed: Assumed) -> Prediction:
    """The recipe's own layout, as it stands."""
    plan = build(config, facts, token_map(config.tokens))
    return predict(plan, cluster, held_by_stage(plan, tensors_of(plan)), assumed)


def without_refused_by(check: Callable[[Plan], object], found: Found, most: int) -> Found:
    """The `most` best that pass one more check, which is too slow for all of them."""
    kept: list[Prediction] = []
    refused = list(found.refused)
    for one in found.ranked:
        if len(kept) == most:
            break
        try:
            check(one.plan)
            kept.append(one)
        except ConfigError as error:
            refused.append(Refused(_reason(error), 1, layout_name(one.plan.config.layout)))
    return replace(found, ranked=kept, refused=refused)


def _held(plan: Plan, tensors: list[Link], known: dict[tuple[int, ...], list[Held]]) -> list[Held]:
    """held_by_stage, once for the layouts that cut weights alike."""
    layout = plan.layout
    key = layout.tensor, layout.expert, layout.expert_tensor, layout.pipeline
    if key not in known:
        known[key] = held_by_stage(plan, tensors)
    return known[key]


def _layouts(config: RunConfig, cluster: Cluster) -> Iterator[LayoutConfig]:
    """Sizes that could be; the checks say which are."""
    model, moe = config.model, config.moe
    tensors = [size for size in _divisors(model.num_heads) if size <= _MOST_TENSOR]
    experts = _divisors(moe.num_experts) if moe.num_experts else [1]
    contexts = [2**power for power in range(_MOST_CONTEXT.bit_length()) if 2**power <= _MOST_CONTEXT]
    for tensor, pipeline, context, expert in product(tensors, _divisors(model.num_layers), contexts, experts):
        if max(tensor * pipeline * context, expert * pipeline) > cluster.world:
            continue  # more than there are GPUs: no reason worth telling
        for expert_tensor in sorted({1, tensor}) if expert > 1 else (None,):
            yield LayoutConfig(
                tensor=tensor, pipeline=pipeline, context=context, expert=expert, expert_tensor=expert_tensor
            )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _stages(config: RunConfig) -> Iterable[int]:
    return (1, 2, 3) if config.engine.kind == "deepspeed" else (config.engine.zero_stage,)


def _variants(
    plan: Plan, config: RunConfig, cluster: Cluster, assumed: Assumed, held: list[Held]
) -> tuple[list[Prediction], Prediction | None]:
    """(those that fit, the one that needs least)."""
    fits: list[Prediction] = []
    least: Prediction | None = None
    recomputes = [one for one in RECOMPUTES if plan.moe is not None or "moe" not in one.modules]
    offloads = (False, True) if config.engine.kind == "deepspeed" and plan.layout.pipeline == 1 else (False,)
    rows = 1
    while rows <= min(_MOST_ROWS, config.train.global_batch_size):
        is_any = False
        for offload, recompute in product(offloads, recomputes):
            if is_any:
                break
            changed = replace(
                plan.config,
                engine=replace(plan.config.engine, offload_optimizer=offload),
                recompute=recompute,
                train=replace(plan.config.train, micro_batch_size=rows),
            )
            one = predict(replace(plan, config=changed), cluster, held, assumed)
            is_host_full = bool(assumed.host_gib) and one.memory.host > assumed.host_gib * GIB
            if one.lacks <= 0 and not is_host_full:
                fits.append(one)
                is_any = True
            elif least is None or one.memory.total < least.memory.total:
                least = one
        if not is_any:
            break
        rows *= 2
    return fits, least


def _reason(error: ConfigError | LayoutError) -> str:
    if isinstance(error, ConfigError):
        return f"{error.field}: {error.wrong}"
    return "the number of GPUs is no multiple of what the sizes need together"


def _memory_reason(least: Prediction) -> str:
    largest = max(least.memory.parts, key=lambda name: least.memory.parts[name])
    size = least.cluster.machine.memory / GIB
    return f"does not fit {size:,.0f} GiB with all recomputed and offloaded that can be; most of it: {largest}"


def layout_name(layout: LayoutConfig, stage: int | None = None) -> str:
    """ "TP2 PP1 CP1 EP8 ETP1 ZeRO-2", sizes of 1 left out."""
    sizes = {"TP": layout.tensor, "PP": layout.pipeline, "CP": layout.context, "EP": layout.expert}
    sizes["ETP"] = layout.expert_tensor or 1
    words = [f"{name}{size}" for name, size in sizes.items() if size > 1]
    return " ".join([*(words or ["DP alone"]), *([f"ZeRO-{stage}"] if stage is not None else [])])
