"""Our model run layer by layer from files: the stage of a pipeline that holds one layer, again and again.

It is the code that training runs (MostModel over Core's layers), built without memory for weights; they are lent to
each module while it computes, so that a model runs in the memory of one expert or projection, whatever its size.
"""

# B rows, S tokens of a row, T = S*B tokens in the router's order, D width, E routed experts, F width of wave features

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_most.config import Plan
from megatron_most.config import replace as change
from megatron_most.convert.lent import ROWS_AT_ONCE, EmbeddingRows, Read, lend
from megatron_most.convert.prompts import Prompts
from megatron_most.convert.shares import plan_for
from megatron_most.engine import open_groups
from megatron_most.errors import LayoutError
from megatron_most.model import MostModel, WaveProjector, core_config
from megatron_most.moe import ModalityRouter, routers
from megatron_most.parallel import Groups
from megatron_most.runtime import Launch, Ranks, find_device, process_group
from megatron_most.upstream import RMSNorm, Unallocated

ONE_RANK = {f"layout.{name}": 1 for name in ("tensor", "expert", "pipeline", "context")} | {
    "layout.expert_tensor": None, "engine.precision": "fp32",
}  # fmt: skip
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)(?=\.)")


@dataclass(frozen=True)
class LayerOutput:
    """The residual stream behind a layer, and what its router did, where it has one."""

    layer: int
    """From 0; -1: the embedding."""
    hidden_BSD: torch.Tensor
    chosen_BSE: torch.Tensor | None = None
    """Which experts each token got, by published id."""
    probs_BSE: torch.Tensor | None = None
    """Softmax over all experts, whatever the gate."""


@torch.no_grad()
def run_layers(plan: Plan, read: Read, prompts: Prompts) -> Generator[LayerOutput, None, None]:
    """The embedding's output, then every layer's, in float32. Exhaust it or close it: process groups are open."""
    plan = plan_for(change(plan.config, ONE_RANK), plan.tokens)
    with _alone(plan) as groups:
        x_SBD = _embedded(plan, read, prompts)
        yield LayerOutput(-1, x_SBD.transpose(0, 1))
        stages: dict[bool, _Stage] = {}
        for layer in range(plan.config.model.num_layers):
            is_dense = plan.moe is None or layer in plan.config.moe.dense_layers
            if is_dense not in stages:
                stages[is_dense] = _Stage(plan, groups, is_dense, read)
            output = stages[is_dense].run(layer, x_SBD, prompts)
            yield output
            x_SBD = output.hidden_BSD.transpose(0, 1)


@torch.no_grad()
def final_norm(plan: Plan, read: Read, hidden_BSD: torch.Tensor) -> torch.Tensor:
    """What the head is given."""
    model = plan.config.model
    norm = RMSNorm(core_config(plan_for(change(plan.config, ONE_RANK), plan.tokens)), model.hidden_size, model.norm_eps)
    lend(norm, ["weight"], lambda _: read("decoder.final_layernorm.weight"))
    return norm(hidden_BSD)


def head_blocks(plan: Plan, read: Read, rows: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, some rows) of the head, which makes logits, in float32."""
    name = "embedding.word_embeddings.weight" if plan.config.model.tied_embeddings else "output_layer.weight"
    rows = rows or plan.tokens.vocab_size
    for first in range(0, rows, ROWS_AT_ONCE):
        yield first, read(name, first, min(ROWS_AT_ONCE, rows - first)).float()


class _Stage:
    """A pipeline stage in the middle of the model that holds one layer of a kind."""

    def __init__(self, plan: Plan, groups: Groups, is_dense: bool, read: Read) -> None:
        self.tokens, self.layer = plan.tokens, 0
        self.routing: dict[str, torch.Tensor] = {}
        alone: dict[str, Any] = {"model.num_layers": 1, "moe.dense_layers": [], "moe.load_file": None}
        if is_dense:
            alone["moe.num_experts"] = 0  # to the config a model whose only layer is dense has no experts
        single = plan_for(change(plan.config, alone), plan.tokens)
        with Unallocated():
            self.model = MostModel(single, replace(groups, is_first_stage=False, is_last_stage=False)).eval()
        for router in routers(self.model):
            router.register_forward_hook(self._look)  # before its weight goes: hooks run in the order they came in
        expert_at = single.moe.expert_at(0) if single.moe else ()
        state = self.model.state_dict()
        for path, module in self.model.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if names := [name for name, _ in own if f"{path}.{name}" in state]:
                lend(module, names, partial(self._read, read, _whole_path(path, expert_at)))

    def run(self, layer: int, x_SBD: torch.Tensor, prompts: Prompts) -> LayerOutput:
        self.layer, self.routing = layer, {}
        self.model.set_input_tensor(x_SBD)
        hidden_SBD = self.model(prompts.batch(self.tokens), with_labels=False)
        return LayerOutput(layer, hidden_SBD.transpose(0, 1), **self.routing)

    def _read(self, read: Read, at: str, name: str) -> torch.Tensor:
        return read(f"decoder.layers.{self.layer}.{at}.{name}")

    def _look(self, router: ModalityRouter, inputs: Any, outputs: Any) -> None:
        logits_SBE, (_, map_TE) = router.gating(inputs[0]), outputs
        chosen_SBE = map_TE[:, router.tables.slot_of_E].view_as(logits_SBE)
        by_name = {"chosen_BSE": chosen_SBE, "probs_BSE": logits_SBE.softmax(-1)}
        self.routing = {name: of_SBE.transpose(0, 1) for name, of_SBE in by_name.items()}


def _whole_path(path: str, expert_at: tuple[int, ...]) -> str:
    """A module of the stage as whole tensors name it: experts by published id, without its layer."""
    path = path.removeprefix("decoder.layers.0.")
    if (expert := _EXPERT.match(path)) is None:
        return path
    return f"mlp.experts.{expert_at[int(expert[1])]}{path[expert.end() :]}"


def _embedded(plan: Plan, read: Read, prompts: Prompts) -> torch.Tensor:
    x_SBD = EmbeddingRows(read, "embedding.word_embeddings.weight")(prompts.ids_BS).transpose(0, 1).contiguous()
    if prompts.wave_BSF is None or prompts.is_wave_BS is None:
        return x_SBD
    with Unallocated():
        wave = WaveProjector(plan.config.model, core_config(plan))
    for path, module in wave.named_modules():
        if names := [name for name, _ in module.named_parameters(recurse=False)]:
            lend(module, names, lambda name, at=path: read(f"wave.{at}.{name}"))  # type: ignore[misc]
    return wave(x_SBD, wave.encode(prompts.wave_BSF, prompts.is_wave_BS), prompts.is_wave_BS)


@contextmanager
def _alone(plan: Plan) -> Iterator[Groups]:
    """Core's groups of one rank, on the CPU, whatever started this process."""
    launch, device = Launch(), find_device("cpu")
    if dist.is_initialized():
        if dist.get_world_size() > 1:
            raise LayoutError("a conversion runs in one process, and this is one of many; start it by itself")
        with open_groups(plan, Ranks(launch, device)) as session:
            yield session.groups
        return
    with process_group(launch, device) as ranks, open_groups(plan, ranks) as session:
        yield session.groups
