"""A training step of most-mini against other ways to the same shape, by turns in one process.

    .venv/bin/python bench/step.py

Forward, backward and AdamW on the same rows: our model and engine's pieces; Megatron-Core's GPTModel as its own local
spec builds it; transformers' DeepseekV2ForCausalLM. A vanilla MoE of ours is the peer of what modalities cost. Peers
have as many weights but for norms of the latents, which Core's local MLA lacks, and no modalities. On a GPU ours with
engine.kernels = plain is a peer too. On a CPU seconds are of CPU time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from race import HEAD, Row, race

from megatron_most.config import load_recipe, replace
from megatron_most.convert.families import family_named
from megatron_most.data import PackedBatch
from megatron_most.engine import Session, make_plan, open_session
from megatron_most.model import build_model
from megatron_most.moe import measure_closely, routers
from megatron_most.runtime import get_logger, run_command, set_threads
from megatron_most.train import synthetic_steps

RATE = 1e-4
say = get_logger(__name__).info
Loss = Callable[[PackedBatch], torch.Tensor]
"""Of a batch, summed over its trained tokens."""


class Steps:
    """One model under training: each call takes a step on the next batches."""

    def __init__(self, model: torch.nn.Module, loss: Loss, batches_of: Callable[[int], list[PackedBatch]]) -> None:
        self.model, self.loss, self._batches_of, self._step = model.train(), loss, batches_of, 0
        self._device = next(model.parameters()).device
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)  # as the engines have it

    def __call__(self) -> None:
        for batch in self._batches_of(self._step):
            here = batch.to(self._device)
            (self.loss(here) / here.loss_weights_BS.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1

    def slow(self, share: float) -> None:
        """Learn at this share of the rate from here on."""
        for group in self._optimizer.param_groups:
            group["lr"] = share * RATE


def ours(session: Session) -> Steps:
    model = build_model(session.plan, session.groups, session.device.torch_device)
    measure_closely(routers(model), False)  # as the loop has it but for the steps that it looks at
    loss = lambda batch: (model(batch) * batch.loss_weights_BS).sum()  # noqa: E731
    return Steps(model, loss, synthetic_steps(session.plan, session.groups))


def stock_core(session: Session) -> Steps:
    """Core's own router, experts, attention and loss."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.moe import moe_utils

    from megatron_most.model.core_config import core_config

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # it asks for this, and without Transformer Engine has no such name
    plan, shape = session.plan, session.plan.config.model
    config = core_config(plan)
    config.moe_router_load_balancing_type, config.moe_aux_loss_coeff = "seq_aux_loss", plan.config.moe.aux_coefficient
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = _local_attention()
    with stock_dispatcher():
        model = GPTModel(
            config, spec, plan.tokens.vocab_size, shape.max_positions,
            position_embedding_type="rope", rotary_base=int(shape.rope_theta),
        ).to(session.device.torch_device)  # fmt: skip
    length = plan.config.train.sequence_length
    hidden_SS = torch.ones(length, length, dtype=torch.bool, device=session.device.torch_device).triu(1)

    def loss(batch: PackedBatch) -> torch.Tensor:
        positions_BS = torch.arange(length, device=hidden_SS.device).expand_as(batch.tokens_BS)
        losses_BS = model(batch.tokens_BS, positions_BS, hidden_SS[None, None], labels=batch.labels_BS)
        return (losses_BS * batch.loss_weights_BS).sum()

    return Steps(model, loss, synthetic_steps(plan, session.groups))


@contextmanager
def stock_dispatcher() -> Iterator[None]:
    """Core's own, in place of ours, for the layers that are made here."""
    from megatron.core.transformer.moe import moe_layer, token_dispatcher

    ours = moe_layer.MoEAlltoAllTokenDispatcher
    moe_layer.MoEAlltoAllTokenDispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
    try:
        yield
    finally:
        moe_layer.MoEAlltoAllTokenDispatcher = ours


def _local_attention() -> type:
    """Core's local attention, which does not take the two words that its own MLA gives it."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class LocalAttention(DotProductAttention):
        def __init__(self, *args: Any, k_channels: int = 0, v_channels: int = 0, **words: Any) -> None:
            super().__init__(*args, **words)
            if v_channels:
                self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition

    return LocalAttention


def transformers_deepseek(session: Session) -> Steps:
    """As from_config makes it, with what it chooses for attention and experts by itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plan = session.plan
    values = {**family_named("deepseek_v2").write(plan), "model_type": "deepseek_v2"}
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[plan.config.engine.precision]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=dtype)
    model = model.to(session.device.torch_device)

    def loss(batch: PackedBatch) -> torch.Tensor:
        logits_BSV = model(batch.tokens_BS, use_cache=False).logits
        losses_N = torch.nn.functional.cross_entropy(
            logits_BSV.flatten(0, 1).float(), batch.labels_BS.flatten(), reduction="none"
        )
        return (losses_N * batch.loss_weights_BS.flatten()).sum()

    return Steps(model, loss, synthetic_steps(plan, session.groups))


def vanilla(session: Session, recipe: str, changes: dict[str, Any]) -> Steps:
    plan = make_plan(replace(load_recipe(recipe), changes), 1, session.device)
    return ours(Session(plan, session.groups, session.ranks))


WANTED = {"core": 1.2, "transformers": 1.0, "vanilla": 1 / 1.02, "plain": 1.0}


def rows_of(
    session: Session, vanilla_recipe: str, changes: dict[str, Any], rounds: int, parts: list[str]
) -> Iterator[Row]:
    train = session.plan.config.train
    amount = (float(train.global_batch_size * train.sequence_length), "tokens")

    def done() -> float:
        """When the device has done what is queued."""
        session.device.synchronize()
        return time.perf_counter()

    clock = time.process_time if session.device.kind == "cpu" else done
    mine = ours(session)
    for name in parts:
        if name == "core":
            peer = stock_core(session)
        elif name == "transformers":
            peer = transformers_deepseek(session)
        elif name == "plain":
            plan = replace(session.plan.config, {"engine.kernels": "plain"})
            peer = ours(Session(make_plan(plan, 1, session.device), session.groups, session.ranks))
        else:
            peer = vanilla(session, vanilla_recipe, changes)
        for steps in (mine, peer):
            steps()
        sizes = [sum(weight.numel() for weight in steps.model.parameters()) for steps in (mine, peer)]
        say("%s: %d weights, of the peer %d", name, *sizes)
        yield race(
            f"step, against {name}", partial(_again, mine), partial(_again, peer),
            rounds=rounds, amount=amount, wanted=WANTED[name], clock=clock,
        )  # fmt: skip


def _again(steps: Steps) -> Steps:
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--vanilla", default="vanilla-moe-mini", help="of the same shape, without modalities")
    parser.add_argument("--part", choices=[*WANTED], action="append", help="these only")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of weights and of AdamW's states"
    )
    parser.add_argument("--layers", type=int, help="the first ones of the recipe; default: all")
    parser.add_argument("--length", type=int, help="tokens in a row; default: the recipe's")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    changes = {"train.global_batch_size": 4, "train.micro_batch_size": 4, "engine.precision": chosen.precision}
    changes |= {"engine.kind": "plain", "layout.expert": 1}
    changes |= {"model.num_layers": chosen.layers} if chosen.layers else {}
    changes |= {"train.sequence_length": chosen.length} if chosen.length else {}
    with open_session(replace(load_recipe(chosen.recipe), changes)) as session:
        if session.device.kind == "cpu":
            set_threads(1)
        parts = [part for part in WANTED if part != "plain" or session.device.kind == "gpu"]  # on a CPU it is the same
        if not chosen.json:
            print(HEAD, flush=True)
        for row in rows_of(session, chosen.vanilla, changes, chosen.rounds, chosen.part or parts):
            print(json.dumps(vars(row)) if chosen.json else row.to_markdown(), flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
