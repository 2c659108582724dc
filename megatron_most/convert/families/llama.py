"""Llama 3: dense, grouped-query attention, embeddings tied or not."""

from __future__ import annotations

from typing import Any

from megatron_most.config import Plan
from megatron_most.convert.families import fields
from megatron_most.convert.families.rows import COPIES, DENSE, FRAME, GQA, OWN_BUFFERS
from megatron_most.convert.settings import Settings

TABLE = (*FRAME, *GQA, *DENSE)
UPCYCLED = (*TABLE, *COPIES, *OWN_BUFFERS)


def read(settings: Settings) -> fields.Changes:
    return {**fields.read_frame(settings), **fields.read_gqa(settings), "moe.num_experts": 0, "moe.dense_layers": []}


def write(plan: Plan) -> dict[str, Any]:
    model = plan.config.model
    fields.refuse(
        "llama",
        {
            "has no experts": plan.config.moe.num_experts > 0,
            "its attention is gqa": model.attention != "gqa",
            "does not norm query and key heads (model.qk_norm)": model.qk_norm,
            "has no place for continuous speech (model.wave_size)": model.wave_size > 0,
        },
    )
    frame = fields.write_frame(plan)
    return {**frame, **fields.write_gqa(plan), **fields.old_rope(plan), "mlp_bias": False}
