"""open_model: one of our checkpoints, ready to generate, in any layout and without its optimizer's state.

The recipe in the checkpoint says what the model is; how it was trained (layout, engine, recomputation) does not matter
here. Every file is proven by its hash before it is used.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from megatron_most.checkpoint import RECIPE, TOKEN_MAP, LocalTensors, Record, TensorReader, find_checkpoint, find_pieces
from megatron_most.config import LayoutConfig, Plan, build, load_recipe, replace
from megatron_most.engine import open_groups, spare_threads
from megatron_most.errors import CheckpointError
from megatron_most.generate.core_model import CoreModel
from megatron_most.model import build_model, core_config
from megatron_most.runtime import Launch, Ranks, find_device, find_launch, num_cores, process_group, set_threads
from megatron_most.upstream import find_facts
from megatron_most.vocab import TokenMap


def open_model(
    folder: Path | str,
    *,
    layout: LayoutConfig | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Literal["fp32", "bf16"] | None = None,
    launch: Launch | None = None,
    ranks: Ranks | None = None,
) -> CoreModel:
    """A run's newest checkpoint, or a step's. All ranks of the job call it; close it, or use it in `with`.

    `layout`: other than one process a model. `precision`: other than the one it was trained in. `ranks`: have met
    already; else they meet here, and part when the model is closed. One model at a time in a process.
    """
    with ExitStack() as stack:
        if ranks is None:
            launch = launch or find_launch()
            on = find_device(device, launch.local_rank)
            set_threads(max(1, num_cores() // launch.local_world_size))
            ranks = stack.enter_context(process_group(launch, on))
        found = find_checkpoint(folder, "--model")
        plan = _plan(found, ranks, layout or LayoutConfig(), precision)
        spare_threads(plan, ranks.device)
        session = stack.enter_context(open_groups(plan, ranks))
        model = build_model(plan, session.groups, ranks.device.torch_device)
        pieces = find_pieces(model, plan.moe)
        LocalTensors(TensorReader(*found), pieces).fill(model)
        model.requires_grad_(False)
        return CoreModel(model.eval(), stack.pop_all(), found[0])
    raise AssertionError("process groups swallow no error")


def _plan(found: tuple[Path, Record], ranks: Ranks, layout: LayoutConfig, precision: str | None) -> Plan:
    folder, record = found
    for name in (RECIPE, TOKEN_MAP):
        if name not in record.files:
            raise CheckpointError(f"{folder}: holds no {name}, so nothing says what model it is")
    stored = load_recipe(folder / RECIPE)
    changes = {f"layout.{name}": value for name, value in vars(layout).items()}
    trained_in = stored.engine.precision
    precision = precision or ("fp32" if trained_in == "fp16" else trained_in)  # the plain engine knows no fp16
    changes |= {"engine.kind": "plain", "engine.precision": precision}
    changes |= {"engine.offload_optimizer": False, "recompute.granularity": "none", "deepspeed": {}}
    changes |= {"moe.placement": "auto", "moe.load_file": None, "moe.dispatcher": "auto"}
    config = replace(stored, changes)
    plan = build(config, find_facts(ranks.world_size, ranks.device.kind), TokenMap.load(folder / TOKEN_MAP))
    core_config(plan)  # Core has opinions of its own
    return plan
