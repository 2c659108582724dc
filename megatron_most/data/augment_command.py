"""Augmentation on the command line of data preparation: the step `augment`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_most.config import load_recipe
from megatron_most.data.augment import augment_manifest
from megatron_most.data.manifest import open_manifest
from megatron_most.runtime import get_logger

say = get_logger(__name__).info
DEFAULT = "parts/augment"


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Make a manifest of augmented speech: each row several times, to be changed when `units` hears it."""

    manifest: Path
    out: Path
    copies: int = 1
    """Draws of each row, each another: as many passes over the speech as should differ."""
    augment: str = "default"
    """default, or a recipe whose [data.augment] says what is done: a shipped name, or a TOML file."""
    seed: int | None = None
    """Not set: the recipe's."""
    noise_folders: tuple[Path, ...] = ()
    """Recorded noises; not set: the recipe's, or noise made up."""
    room_folders: tuple[Path, ...] = ()
    """Recorded room responses; not set: the recipe's, or rooms made up."""
    voices_folders: tuple[Path, ...] = ()
    """Recorded speech, for recipes that mix voices in."""

    def run(self) -> None:
        config = load_recipe(DEFAULT if self.augment == "default" else self.augment).data.augment
        config = replace(
            config,
            seed=config.seed if self.seed is None else self.seed,
            noise_folders=tuple(map(str, self.noise_folders)) or config.noise_folders,
            room_folders=tuple(map(str, self.room_folders)) or config.room_folders,
            voices_folders=tuple(map(str, self.voices_folders)) or config.voices_folders,
        )
        header = augment_manifest(open_manifest(self.manifest), self.out, config, self.copies)
        say("%s: %d rows, %.2f h, augmented", self.out, header.rows, header.seconds / 3600)
