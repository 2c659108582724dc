"""What is known of an import before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from megatron_most.config import Plan, count_parameters
from megatron_most.convert.families import Family
from megatron_most.convert.hf_folder import HfFolder
from megatron_most.convert.options import ImportOptions
from megatron_most.convert.partition import Strategy
from megatron_most.convert.prompts import Prompts
from megatron_most.convert.readers import CONSTANT
from megatron_most.convert.shares import Place
from megatron_most.convert.sources import HfSource
from megatron_most.convert.tables import Link
from megatron_most.convert.upcycling import describe
from megatron_most.convert.writing import OutFile, describe_work

RECIPE, SOURCE, ASIDE = "resolved.toml", "source.json", "aside.safetensors"
JOB = "job.json"


@dataclass(frozen=True)
class Partition:
    """One that has been checked, with nothing measured yet."""

    strategy: Strategy
    sizes: dict[str, int]
    prompts: Prompts | None
    """None: there is no tokenizer, and the strategy does without."""
    has_page: bool

    @property
    def job(self) -> dict[str, Any]:
        """What makes it this one."""
        prompts = None if self.prompts is None else self.prompts.sha256
        return {"strategy": self.strategy, "sizes": list(self.sizes.items()), "prompts": prompts}

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        prompts = "" if self.prompts is None else f", by {self.prompts.num_tokens:,} tokens ({self.prompts.source})"
        return f"partition by {self.strategy}: {sizes}{prompts}"


@dataclass(frozen=True)
class Import:
    """A conversion that has been checked: headers, shapes, names and sizes fit."""

    source: HfFolder
    family: Family
    plan: Plan
    by_name: dict[str, Link]
    """By which files are read; a partition renumbers experts here before the first of them is."""
    reader: HfSource
    files: list[OutFile]
    places: list[list[Place]]
    dtypes: dict[str, torch.dtype]
    options: ImportOptions
    partition: Partition | None

    @property
    def gives_groups(self) -> bool:
        """Whether it makes another model of its source on purpose."""
        return bool(self.options.groups) or self.partition is not None

    @property
    def links(self) -> list[Link]:
        return list(self.by_name.values())

    @property
    def measures_constants(self) -> bool:
        """Whether groups are given to a base that has none, under a gate whose constants would not be 1."""
        moe, options = self.plan.moe, self.options
        if moe is None or not self.gives_groups or options.constant == "1" or options.upcycle.is_wanted:
            return False  # weights of upcycled experts sum to 1 in a group as they would in all
        is_new = any(link.name.endswith(CONSTANT) and not link.parts for link in self.links)
        return is_new and len(moe.groups) > 1 and not (moe.normalise_top_k and moe.top_k > 1)

    @property
    def can_be_compared(self) -> bool:
        """Noise, jitter and drop leave nothing that the import should equal."""
        return self.options.upcycle.is_exact or not self.options.upcycle.is_wanted

    def __str__(self) -> str:
        size, layout = count_parameters(self.plan), self.options.layout
        cut = ", ".join(f"{name} {count}" for name, count in vars(layout).items() if count and count > 1) or "one rank"
        upcycle = self.options.upcycle
        name = f"{self.family.name}, upcycled: {describe(upcycle.to_dict())}" if upcycle.is_wanted else self.family.name
        return (
            f"{name}: {size.total:,} parameters, {size.active:,} active; {len(self.source.where)} tensors "
            f"in {len(self.source.files)} files -> cut for {cut}: {describe_work(self.files)}{self._looks()}"
        ) + (f"; {self.partition}" if self.partition else "")

    def _looks(self) -> str:
        """What else is done with all of it; no more than one tensor is in memory there either."""
        looks = ["constants are measured"] * self.measures_constants
        if self.options.gate:
            why_not = "noise, jitter and drop leave nothing to compare logits with"
            looks.append("logits are compared" if self.can_be_compared else why_not)
        return "; " + " and ".join(looks) if looks else ""
