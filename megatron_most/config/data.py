"""The settings of what a phase learns from: part of schema.py, which says what all of them are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_most.config.augment import AugmentConfig, SpecAugmentConfig


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of the blend."""

    weight: float = 0.0
    """Share of the documents drawn, beside the other tasks' weights; 0 = not used."""
    train: tuple[str, ...] = ()
    """Folders of datasets, read as one."""
    valid: tuple[str, ...] = ()
    """Folders of validation datasets; may be given without a weight."""
    real: tuple[str, ...] = ()
    """Folders of datasets of real speech, where `train` is synthetic: replayed beside it as a stream of its own, which
    reports name TASK-real.
    """
    real_share: float = 0.0
    """Of the task's documents, the share that is of `real`."""
    long: Literal["default", "drop", "split", "cut_left", "refuse"] = "default"
    """Documents longer than a row: leave them out, split them into rows, keep their end, or stop. default: split
    text-lm, audio-lm and interleaved, drop the others.
    """


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a phase learns from."""

    asr: TaskConfig = field(default_factory=TaskConfig)
    tts: TaskConfig = field(default_factory=TaskConfig)
    text_lm: TaskConfig = field(default_factory=TaskConfig)
    audio_lm: TaskConfig = field(default_factory=TaskConfig)
    interleaved: TaskConfig = field(default_factory=TaskConfig)
    speech_instruct: TaskConfig = field(default_factory=TaskConfig)
    text_instruct: TaskConfig = field(default_factory=TaskConfig)
    window: int = 2048
    """Documents that are packed into rows together."""
    validation_documents: int = 256
    """Of each validation set, its first."""
    frames: tuple[str, ...] = ()
    """Folders of kept frames (prepare_data.py frames); each is found by the dataset that it was made of."""
    audio_roots: tuple[str, ...] = ()
    """Where the recordings lie of which datasets have continuous frames that are not kept; searched in this order."""
    frames_model: str | None = None
    """The HuBERT model that makes those, if it is not where the dataset says."""
    frames_threads: int = 0
    """How many hear at once; 0 = as many as there are cores for the process, eight at most."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to the sound that training hears, of training documents only."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
