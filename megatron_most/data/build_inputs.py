"""What `build` is asked for: from what a dataset is made, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_most.data.build_frames import FrameInputs
from megatron_most.data.manifest import Manifest
from megatron_most.data.overlap import EvaluationSet
from megatron_most.data.tasks import TaskOptions
from megatron_most.data.templates import Templates
from megatron_most.data.tokenizer import TextTokenizer
from megatron_most.data.unit_set import UnitSet
from megatron_most.vocab import TokenMap


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What goes into a dataset."""

    task: str
    part: Literal["all", "train", "valid"] = "all"
    """all rows; or, of a corpus without a validation split, the rows kept for training, or those held out."""
    hold_out: float = 0.0
    """train, valid: the share held out."""
    hold_out_by: Literal["speaker", "recording", "row"] = "speaker"
    """What stays on one side: speakers, so that validation hears new voices, or less. Texts and chats go by row."""
    refuse_overlap: bool = False
    """Reject rows that overlap with an evaluation set instead of listing them."""
    copy: int = 1
    """Chats: which copy of augmented utterances their users are heard by."""
    max_reject_rate: float = 0.05
    workers: int = 1
    task_options: TaskOptions = field(default_factory=TaskOptions)


@dataclass(frozen=True, kw_only=True)
class BuildInputs:
    """What a dataset is made from."""

    manifests: tuple[Manifest, ...]
    units: tuple[UnitSet, ...]
    tokens: TokenMap
    tokenizer: TextTokenizer
    templates: Templates
    evaluation: tuple[EvaluationSet, ...] = ()
    frames: FrameInputs | None = None
    """Speech that is heard comes as continuous frames; None: as units."""
