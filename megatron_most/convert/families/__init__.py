"""The model families that can be converted: how each reads and writes config.json, and its two-way table of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_most.config import Plan, RunConfig
from megatron_most.convert.families import deepseek_v2, fields, llama, most, qwen3_moe, rows
from megatron_most.convert.families.most import has_modalities
from megatron_most.convert.settings import Settings
from megatron_most.convert.tables import Row
from megatron_most.errors import CheckpointError

__all__ = [
    "EMBEDDING", "FAMILIES", "HEAD", "Family", "add_family", "family_for", "family_named", "family_of", "fields",
    "has_modalities", "rows",
]  # fmt: skip

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of Hugging Face model."""

    name: str
    model_types: tuple[str, ...]
    """As config.json has them; the first is written."""
    architecture: str
    table: tuple[Row, ...]
    read: Callable[[Settings], dict[str, Any]]
    """config.json -> changes of a RunConfig, by dotted name."""
    write: Callable[[Plan], dict[str, Any]]
    """CheckpointError where the family cannot say what the model is."""
    backbone: str | None = None
    """Whose token map is meant where none is given."""
    aside: tuple[str, ...] = ()
    """HF tensors, by pattern, that belong to no model of ours and are kept beside it."""
    derived: tuple[str, ...] = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
    """HF tensors, by pattern, that follow from config.json, as old versions stored them."""
    upcycled: tuple[Row, ...] | None = None
    """Of a dense family: the table that makes a model with experts of it."""

    claims: Callable[[RunConfig], bool] | None = None
    """Of an added family: which models of ours are exported as it."""

    def derived_in(self, config: RunConfig) -> tuple[str, ...]:
        """Likewise for one model: tied to the embedding, the head is stored by some all the same."""
        return (*self.derived, HEAD) if config.model.tied_embeddings else self.derived


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="deepseek_v2", model_types=("deepseek_v2",), architecture="DeepseekV2ForCausalLM",
            table=deepseek_v2.TABLE, read=deepseek_v2.read, write=deepseek_v2.write, backbone="deepseek",
        ),
        Family(
            name="most", model_types=("MoST", "MoSTC"), architecture="MostForCausalLM",
            table=most.TABLE, read=most.read, write=most.write, backbone="deepseek", aside=most.ASIDE,
        ),
        Family(
            name="llama", model_types=("llama",), architecture="LlamaForCausalLM",
            table=llama.TABLE, read=llama.read, write=llama.write, backbone="llama",
            upcycled=llama.UPCYCLED,
        ),
        Family(
            name="qwen3_moe", model_types=("qwen3_moe",), architecture="Qwen3MoeForCausalLM",
            table=qwen3_moe.TABLE, read=qwen3_moe.read, write=qwen3_moe.write,
        ),
    )
}  # fmt: skip


def add_family(family: Family) -> None:
    """Let a family that this package does not know be converted too, by this process."""
    for known in FAMILIES.values():
        if known.name == family.name or {*known.model_types} & {*family.model_types}:
            wrong = f"family {family.name} ({', '.join(family.model_types)}): {known.name} is here already"
            raise CheckpointError(f"{wrong}; give it another name and its own model_types")
    FAMILIES[family.name] = family


def family_of(settings: Settings) -> Family:
    """The family that a config.json is of."""
    kind = settings.get("model_type")
    for family in FAMILIES.values():
        if kind in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES.values() for name in family.model_types)
    raise settings.wrong("model_type", f"no family that can be converted; known are {known}")


def family_for(config: RunConfig) -> Family:
    """The family that says all of a model of ours."""
    for family in FAMILIES.values():
        if family.claims is not None and family.claims(config):
            return family
    if not config.moe.num_experts:
        return FAMILIES["llama"]
    if has_modalities(config) or config.model.wave_size:
        return FAMILIES["most"]
    if config.model.attention == "mla":
        return FAMILIES["deepseek_v2"]
    return FAMILIES["qwen3_moe" if config.model.qk_norm else "most"]  # Llama's heads with experts: most alone


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise CheckpointError(f"{name!r}: no family that can be converted; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]
