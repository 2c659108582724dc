"""Tiny models with wide weights, so that a wrong detail shows, and prompts for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import PackedBatch, pack_rows, synthetic_document
from megatron_most.data.batch import Document
from megatron_most.engine import make_plan, open_groups
from megatron_most.generate import CoreModel, Prompt
from megatron_most.model import MostModel, build_model
from megatron_most.runtime import Ranks
from tests.weights import load_parts, whole_weights

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mla": ("most-tiny", {}),
    "mla compressed queries": ("most-tiny", {"model.q_lora_rank": 20, "model.rope": "plain", "model.rope_factor": 1.0}),
    "gqa": ("most-tiny-upcycled", {}),
    "gqa normed": ("most-tiny-dense", {"model.qk_norm": True}),
}
LENGTHS = (3, 17, 1, 9)


@contextmanager
def opened(
    ranks: Ranks, kind: str, changes: dict[str, Any] | None = None, weights: Path | None = None
) -> Iterator[MostModel]:
    """A model of a kind in the layout that `changes` name. Alone it writes `weights`, otherwise it reads them."""
    recipe, own = KINDS[kind]
    plan = make_plan(
        replace(load_recipe(recipe), {"model.num_layers": 2, **own, **(changes or {})}), ranks.world_size, ranks.device
    )
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        if weights is None or not weights.exists():
            spread(model)
            if weights is not None:
                torch.save(whole_weights(model, plan, session.groups), weights)
        else:
            load_parts(model, torch.load(weights, weights_only=True), plan, session.groups)
        yield model


def spread(model: MostModel) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=draw)


def prompts(model: MostModel | CoreModel, lengths: tuple[int, ...] = LENGTHS) -> list[Prompt]:
    """Mixed ones, each of another content."""
    tokens = model.plan.tokens
    made = [synthetic_document(tokens, "mixed", max(2, size), 3, n) for n, size in enumerate(lengths)]
    return [Prompt.of(list(document.ids)[:size], tokens) for document, size in zip(made, lengths, strict=True)]


def uncached(model: MostModel, prompt: Prompt) -> torch.Tensor:
    """[S, V] by the way that training takes, for a row alone."""
    eos = model.plan.tokens.eos_id  # the last id of a document is a label only
    ids, tags = [*prompt.ids, eos], [*prompt.tags, 0]
    batch: PackedBatch = pack_rows([[Document(ids, tags, [False] * len(ids))]], len(prompt.ids), model.plan.tokens)
    with torch.no_grad():
        return model.eval()(batch, with_labels=False)[0].float()
