"""A manifest of speech that will be changed before units are made of it: each row several times, each another draw.

In: a manifest and the settings of [data.augment]. Out: another manifest. No sound is read or written: a row says which
copy of which row it is and how much faster, so that durations and word times are true before anything is heard, and the
header holds the settings and the listed noise files. `units` changes the sound as it reads it. The augmentation's hash
stands in every row, so such a manifest, its units and its datasets are never those of the plain speech.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.config import AugmentConfig, check_augment
from megatron_most.data.manifest import Manifest, ManifestHeader, parse_row
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import AUGMENTED, Utterance
from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import get_logger, progress
from megatron_most.speech import Augmentation, Augmenter, open_augmentation

warn = get_logger(__name__).warning
MOST_COPIES = 100
_SHOWN = 3


def augment_manifest(manifest: Manifest, out: Path, config: AugmentConfig, copies: int) -> ManifestHeader:
    """The manifest `out`, of `copies` draws of each row."""
    if manifest.header.kind != "speech":
        raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; speech is augmented")
    manifest.require_plain("another augmentation")
    if not 1 <= copies <= MOST_COPIES:
        raise DataError(f"--copies {copies}: give 1 to {MOST_COPIES}")
    check_augment(config)
    if not config.is_on:
        raise ConfigError("data.augment", {}, "nothing is switched on", "give default, or a recipe that has some")
    augmentation, bad = open_augmentation(config, decode=True)
    for path, wrong in bad[:_SHOWN]:
        warn("%s: left out: %s", path, wrong)
    if len(bad) > _SHOWN:
        warn("and %d more files of noise, rooms or voices are left out", len(bad) - _SHOWN)
    manifest.verify()
    augmenter = Augmenter(augmentation)
    head, by = manifest.header, augmentation.hash[:12]
    with ManifestWriter(
        out,
        kind="speech",
        corpus=head.corpus,
        split=head.split,
        licence=head.licence,
        source=f"{head.source}; augmented ({by}), {copies} draws of each row of {head.sha256[:12]}",
        normalisation=head.normalisation,
        language=head.language,
        audio_root=_moved(head.audio_root, manifest.folder, out),
        augmentation=_placed(augmentation, out),
    ) as writer:
        for _, line in progress(manifest.lines(), "augment", "row"):
            try:
                row = parse_row("speech", line)
            except RowError as error:
                raise DataError(f"{manifest.folder}: {error}; make the manifest again") from error
            cut = json.loads(line)
            for copy in range(1, copies + 1):
                writer.add_cut(_drawn(cut, row.id, copy, by, augmenter.pace((row.id, copy))))
    return writer.header


def augmenter_of(manifest: Manifest) -> Augmenter | None:
    """What changes the sound of a manifest's rows; None where nothing does."""
    if manifest.header.augmentation is None:
        return None
    try:
        return Augmenter(Augmentation.from_dict(manifest.header.augmentation), manifest.folder)
    except DataError as error:
        raise DataError(f"{manifest.folder}: {error}") from error


def augmented(augmenter: Augmenter | None, row: Utterance, wave: np.ndarray, rate: int) -> np.ndarray:
    """The sound of a row, which was read as its recording has it."""
    drawn = row.augmented
    if augmenter is None and drawn is None:
        return wave
    if augmenter is None or drawn is None:
        raise DataError(f"row {row.id!r}: rows and header of its manifest do not agree on augmentation; augment again")
    key = (drawn.of, drawn.copy)
    if augmenter.augmentation.hash[: len(drawn.by)] != drawn.by or augmenter.pace(key) != drawn.pace:
        raise DataError(f"row {row.id!r}: of another augmentation than its manifest's; augment again")
    return augmenter(wave, key, rate)


def drawn_id(id: str, by: str, copy: int) -> str:
    """The id of a row's copy. It carries the augmentation, so that sets of several may be trained on together."""
    return f"{id}~{by[:6]}.{copy}"


def _drawn(cut: dict[str, Any], id: str, copy: int, by: str, pace: float) -> dict[str, Any]:
    """A copy of a row."""
    name = drawn_id(id, by, copy)
    supervisions = [{**said, "id": name} for said in cut.get("supervisions") or []]
    drawn = {AUGMENTED: {"of": id, "copy": copy, "by": by, "pace": pace}}
    return {**cut, "id": name, "supervisions": supervisions, "custom": {**(cut.get("custom") or {}), **drawn}}


def _moved(folder: str, was: Path, now: Path) -> str:
    """A folder's path, if relative from another place."""
    return folder if os.path.isabs(folder) else os.path.relpath((was / folder).resolve(), now.resolve())


def _placed(augmentation: Augmentation, out: Path) -> dict[str, Any]:
    """For the header: folders given as relative paths count from the manifest, so that they may be moved together."""
    values = augmentation.to_dict()
    for kind in ("noise", "room", "voices"):
        for folder in values[kind]:
            folder["folder"] = _moved(folder["folder"], Path(), out)
    return values
