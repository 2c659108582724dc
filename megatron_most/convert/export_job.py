"""What is known of an export before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_most.config import Plan
from megatron_most.convert import hf_tokenizer
from megatron_most.convert.families import Family
from megatron_most.convert.options import ExportOptions
from megatron_most.convert.ours import Ours
from megatron_most.convert.writing import OutFile, describe_work


@dataclass(frozen=True)
class Export:
    """A conversion that has been checked."""

    ours: Ours
    family: Family
    plan: Plan
    """Of the model as it is exported."""
    config: dict[str, Any]
    files: list[OutFile]
    options: ExportOptions
    folded: dict[int, float]
    """What the experts of a layer are multiplied by, where a constant has no other place."""
    tokenizer: hf_tokenizer.Files

    def __str__(self) -> str:
        return f"{self.family.name} from {self.ours.folder}, step {self.ours.record.step}: {describe_work(self.files)}"
