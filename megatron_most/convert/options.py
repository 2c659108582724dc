"""What imports and exports are asked for. Without torch, which a command line does without until it has been read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_most.convert.partition import Strategy
from megatron_most.convert.upcycling import Upcycling


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where files are cut: one for each rank of such a layout. Any other can read them."""

    tensor: int = 1
    expert: int = 1
    expert_tensor: int | None = None
    pipeline: int = 1


@dataclass(frozen=True, kw_only=True)
class PartitionOptions:
    """Whose the experts of a model without modalities become, instead of --groups."""

    strategy: Strategy | None = None
    """index: runs of their numbers, as in the paper. alternate: in turns. load: layer by layer, so that text uses each
    group as much as its size is. affinity: layer by layer, each to the modality that uses it more. All but index
    renumber a layer's experts.
    """
    sizes: tuple[str, ...] = ()
    """Experts of each group, like text=32 audio=32; not set = halves for text and audio."""
    page: bool = True
    """Draw partition.html, beside partition.json."""

    @property
    def is_wanted(self) -> bool:
        return self.strategy is not None or bool(self.sizes)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a folder is imported."""

    layout: Layout = field(default_factory=Layout)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """float32, bfloat16 or float16; not set = as stored."""
    groups: tuple[str, ...] = ()
    """The partition, as moe.groups has it ("text: 0-31"); not set = that of config.json, or one group for all."""
    partition: PartitionOptions = field(default_factory=PartitionOptions)
    audio: Path | None = None
    """Utterances, a line each: all as units ([Hu7][Hu90]), for a model that knows them, or all as transcripts."""
    token_map: Path | None = None
    """token_map.json; not set = the one in the folder, or the backbone's."""
    num_units: int = 500
    """Speech units of the backbone's token map."""
    allow_nonfinite: bool = False
    """Take NaN and infinite weights as they are."""
    ignore: tuple[str, ...] = ()
    """Fields of config.json that are known to change nothing."""
    upcycle: Upcycling = field(default_factory=Upcycling)
    """Make a dense model one with experts."""
    constant: Literal["measured", "1"] = "measured"
    """Of groups given here: what masked_softmax multiplies a group's weights by. measured: the base's mean in-group
    mass on the text, so that training begins near the base; 1: as from scratch."""
    text: Path | None = None
    """What is measured on: lines of UTF-8, some 500 tokens of them are read; not set = a page that comes along."""
    tokenizer: Path | None = None
    """For the text; not set = tokenizer.json of the folder."""
    gate: bool = True
    """Compare logits with transformers before the checkpoint gets its name."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What only the user knows of the model."""

    licence: str | None = None
    """As the hub names it ("apache-2.0", "other"); the backbone's licence binds its descendants."""
    base_model: str | None = None
    """The backbone's name on the hub."""
    languages: tuple[str, ...] = ()
    """ISO codes."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported."""

    family: Literal["auto", "most", "deepseek_v2", "llama", "qwen3_moe"] = "auto"
    """What it is exported as; auto: what can say all of it."""
    text_only: bool = False
    """Keep the text experts alone, as a model without modalities."""
    drop_routing: bool = False
    """Keep all experts and forget whose they are: another model."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Not set = as stored (training stores float32)."""
    shard_size: str = "5GB"
    tokenizer: Path | None = None
    """A tokenizer's folder, which goes with the model; units and marks are added to it."""
    aside: Path | None = None
    """MoST-C: the imported checkpoint that holds what was kept beside the model."""
    card: Card = field(default_factory=Card)
    gate: bool = True
    """Compare logits with the checkpoint's before the folder gets its name."""
