"""Our whole tensors, read by name from wherever they are: a checkpoint, or a Hugging Face folder through its table."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_most.checkpoint import Piece, TensorReader
from megatron_most.config import Plan, replace
from megatron_most.convert.families import has_modalities
from megatron_most.convert.families.fields import without_modalities
from megatron_most.convert.lent import Read
from megatron_most.convert.shares import plan_for
from megatron_most.convert.sources import HfSource
from megatron_most.convert.tables import Link

CONSTANT = ".mlp.router.group_constant"


def read_import(source: HfSource, links: Sequence[Link]) -> Read:
    """As an import would write them, before it has."""
    by_name = {link.name: link for link in links}

    def read(name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        link = by_name[name]
        count, rest = link.shape[0] if rows is None else rows, link.shape[1:]
        return source.read(link, (first, *[0] * len(rest)), (count, *rest))

    return read


def read_files(reader: TensorReader) -> Read:
    """As they are stored."""

    def read(name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        whole = reader.record.tensors["weight"][name].shape
        start, shape = (first, *[0] * (len(whole) - 1)), (whole[0] if rows is None else rows, *whole[1:])
        return reader.read("weight", Piece(name, whole, start, shape, "", (0,) * len(whole)))

    return read


def as_base(plan: Plan, read: Read) -> tuple[Plan, Read]:
    """The same weights as a model without modalities: one group for all tags, and no constant of another partition."""
    if not has_modalities(plan.config):
        return plan, read
    base = plan_for(replace(plan.config, without_modalities(plan.config.moe.num_experts)), plan.tokens)

    def read_base(name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        return torch.ones(1) if name.endswith(CONSTANT) else read(name, first, rows)

    return base, read_base
