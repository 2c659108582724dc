"""Where the features of a dataset come from in training: from kept ones where there are some, else from the audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_most.data.dataset_info import DatasetInfo
from megatron_most.data.frame_files import KeptFrames, open_kept
from megatron_most.data.heard import Features, Heard
from megatron_most.data.spans import FRAME_FILES, SpanTable
from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import Device
from megatron_most.speech import FrameIdentity, FrameSource, reopen_frames


class FrameOpener:
    """Called with each dataset of frames; kept frames are found by the hash of what they were made of."""

    def __init__(
        self,
        *,
        kept: Sequence[str] = (),
        audio_roots: Sequence[str] = (),
        model: str | None = None,
        device: Device | None = None,
        needs_features: bool = True,
    ) -> None:
        """`needs_features`: False on ranks that only have to know where frames stand."""
        self._kept: dict[tuple[str, ...], KeptFrames] = {}
        self._sources: dict[str, FrameSource] = {}
        self._roots, self._model, self._device = [Path(root) for root in audio_roots], model, device
        self._needs_features = needs_features
        self._unused: dict[tuple[str, ...], Path] = {}
        for path in kept:
            found = open_kept(path)
            self._kept[found.spans] = found
            self._unused[found.spans] = found.path

    def __call__(
        self, folder: Path, info: DatasetInfo, table: SpanTable, *, changes_sound: bool = False
    ) -> Features | None:
        """`changes_sound`: data.augment is for this dataset, so kept frames, which are heard already, will not do."""
        assert info.frames is not None, "a dataset of frames"
        spans = tuple(info.files[name][1] for name in FRAME_FILES)
        self._unused.pop(spans, None)
        if (kept := self._kept.get(spans)) is not None:
            kept.require(info, table, folder)
            if changes_sound:
                wrong = f"holds the frames of {folder}, whose sound data.augment is to change before frames are made"
                remedy = (
                    "name data.audio_roots instead, or switch data.augment off: data.spec_augment masks kept frames"
                )
                raise ConfigError("data.frames", str(kept.path), wrong, remedy)
            return kept if self._needs_features else None
        if not self._needs_features:
            return None
        if not self._roots:
            raise DataError(
                f"{folder}: its frames are neither kept nor is there sound to make them of; give data.frames (made by "
                "prepare_data.py frames) or data.audio_roots"
            )
        return Heard(self._source(info.frames), self._roots)

    def _source(self, identity: FrameIdentity) -> FrameSource:
        if identity.key not in self._sources:
            self._sources[identity.key] = reopen_frames(identity, model=self._model, device=self._device)
        return self._sources[identity.key]

    def require_all_used(self) -> None:
        """ConfigError where kept frames are of no dataset that was opened: a mistake that would cost hours."""
        for path in self._unused.values():
            wrong = "frames of no dataset of this run"
            raise ConfigError("data.frames", str(path), wrong, "make them of the datasets as they are, or leave it out")
