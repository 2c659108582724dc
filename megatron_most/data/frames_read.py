"""What a dataset of frames is read by: documents as the index has them, with the features of their frames.

Features come from the audio (heard.py) or from kept ones (frame_files.py); a rank that only needs to know where frames
stand has neither. What comes is looked over here, where the document still has a name.
"""

# N frames of a document, F width of a frame

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_most.data.batch import Document, Wave
from megatron_most.data.frame_augment import FrameAugment, Key
from megatron_most.data.heard import Features, Heard
from megatron_most.data.indexed import IndexedDocuments
from megatron_most.data.spans import Span, SpanTable
from megatron_most.errors import DataError
from megatron_most.speech import hash_of


class FrameDocuments:
    """A DocumentSource whose documents carry frames."""

    def __init__(
        self, documents: IndexedDocuments, table: SpanTable, width: int, wave_id: int, features: Features | None,
        *, augment: FrameAugment | None = None, stack: int = 1,
    ) -> None:  # fmt: skip
        """`augment`: of training documents; `stack` frames of the encoder stand side by side in each."""
        self._documents, self.table, self._width, self._wave_id = documents, table, width, wave_id
        self._augment, self._stack = augment, stack
        self.features = features
        """None: only where frames stand is read."""

    @property
    def fingerprint(self) -> str:
        of_files = self._documents.fingerprint
        return of_files if self._augment is None else f"{of_files}+{hash_of({'augment': self._augment.name})[:16]}"

    @property
    def lengths(self) -> np.ndarray:
        return self._documents.lengths

    @property
    def is_slow(self) -> bool:
        """Reading a document is work worth a thread."""
        return self.features is not None

    def __len__(self) -> int:
        return len(self._documents)

    def document_id(self, index: int) -> str:
        return self._documents.document_id(index)

    def document(self, index: int) -> Document:
        """As it was recorded."""
        return self._read(index, None)

    def draw(self, index: int, epoch: int) -> Document:
        """As training sees it in an epoch."""
        return self._read(index, None if self._augment is None else epoch)

    def _read(self, index: int, epoch: int | None) -> Document:
        document = self._documents.document(index)
        spans = self.table.of(index)
        try:
            places = self._places(document, spans)
            features = None
            if self.features is not None:
                keys = [None if epoch is None else (self.document_id(index), n, epoch) for n in range(len(spans))]
                parts = [self._checked(span, key) for span, key in zip(spans, keys, strict=True)]
                features = np.concatenate(parts) if parts else np.empty((0, self._width), np.float32)
        except DataError as error:
            raise DataError(f"document {self.document_id(index)}: {error}") from error
        starts = np.isin(places, [span.place for span in spans])
        return Document(document.ids, document.tags, document.is_trained, Wave(places, features, starts))

    def _places(self, document: Document, spans: Sequence[Span]) -> np.ndarray:
        places = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(span.place, span.place + span.audio.frames) for span in spans)]
        )
        if not np.array_equal(np.flatnonzero(np.asarray(document.ids) == self._wave_id), places):
            raise DataError(f"begin wave ids do not stand where its {len(spans)} spans say; verify the dataset")
        return places

    def _checked(self, span: Span, key: Key | None) -> np.ndarray:
        assert self.features is not None, "asked for only where there are some"
        found, wanted = self._features_of(span, key), (span.audio.frames, self._width)
        if found.shape != wanted:
            raise DataError(
                f"{span.audio.audio} from {span.audio.start:g} s: {found.shape[0]} frames of {found.shape[1]} numbers, "
                f"where the dataset has {wanted[0]} of {wanted[1]}; build it again, or make its frames again"
            )
        if not np.isfinite(found).all():
            raise DataError(f"{span.audio.audio} from {span.audio.start:g} s: features hold NaN or infinity")
        if self._augment is not None and key is not None:
            return self._augment.mask(found, key, self._stack)
        return found

    def _features_of(self, span: Span, key: Key | None) -> np.ndarray:
        features, augment = self.features, self._augment
        assert features is not None, "asked for only where there are some"
        if augment is None or key is None or not augment.changes_sound:
            return features.features(span.number, self.table)
        assert isinstance(features, Heard), "FrameOpener refuses kept frames whose sound is to be changed"
        return features.features(span.number, self.table, lambda wave, rate: augment.wave(wave, key, rate))
