"""PackedBatch: documents laid end to end in rows of equal length, with their bounds; what the model trains on.

A row may hold several documents; no token attends to another document's. Labels never cross a bound: the last token
of a document has no label. Tags of inputs choose experts, tags of labels name the loss a token counts in. Row ends
are pads.
"""

# B rows (batch), S sequence, F width of continuous features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from megatron_most.errors import DataError
from megatron_most.vocab import TEXT, TokenMap

MAX_TASKS = 15
"""Losses are kept for tasks 0..14; a fixed number, so that ranks can sum them without asking for names."""


@dataclass(frozen=True, eq=False)
class Wave:
    """Continuous frames of a document."""

    places_N: np.ndarray
    """Where they stand, ascending."""
    features_NF: np.ndarray | None
    """float32; None on ranks that need none."""
    starts_N: np.ndarray | None = None
    """Whether a frame is the first of its utterance; None: each stretch of frames is one utterance."""

    @property
    def is_first_N(self) -> np.ndarray:
        """Of its utterance, or of what is left of it: what comes after no frame is a first one."""
        is_first_N = np.diff(self.places_N, prepend=-2) != 1
        return is_first_N if self.starts_N is None else is_first_N | self.starts_N

    def cut(self, start: int, stop: int) -> Wave:
        """Of the places start..stop-1, counted from start."""
        here = slice(*np.searchsorted(self.places_N, (start, stop)))
        features_NF, starts_N = (None if of is None else of[here] for of in (self.features_NF, self.starts_N))
        return Wave(self.places_N[here] - start, features_NF, starts_N)


@dataclass(frozen=True)
class Document:
    """Token ids, their tags and whether each is trained on; of one length."""

    ids: Sequence[int]
    tags: Sequence[int]
    is_trained: Sequence[bool]
    wave: Wave | None = None
    """Continuous frames, which stand in place of the ids at their places; None: the source has none anywhere."""


@dataclass(frozen=True)
class PackedBatch:
    """Whole sequences, on the host or a device; every rank of a tensor/context/pipeline group holds the same ones."""

    tokens_BS: torch.Tensor
    tags_BS: torch.Tensor
    labels_BS: torch.Tensor
    label_tags_BS: torch.Tensor
    loss_weights_BS: torch.Tensor
    """0 where nothing is learnt: pads, prompts, document ends, filler rows."""
    documents_BS: torch.Tensor
    """Which document of its row a token belongs to; pads form one of their own."""
    tasks_BS: torch.Tensor
    """The number of the task a token's document is of, below MAX_TASKS; -1 where there is none (pads) or it is not
    known.
    """
    is_pad_BS: torch.Tensor
    token_map: TokenMap
    """The vocabulary the ids are of; the model's must be the same."""
    is_packed: bool
    """Some row holds more than one document, so attention needs their bounds."""
    wave_BSF: torch.Tensor | None = None
    """Continuous features that stand in place of embeddings where is_wave_BS. The first pipeline stage needs them."""
    is_wave_BS: torch.Tensor | None = None
    """None where no document comes from a source of frames."""
    wave_starts_BS: torch.Tensor | None = None
    """Where the first frame of an utterance stands; None: each stretch of frames is one utterance."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """A copy on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in tensors.items() if torch.is_tensor(value)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    @property
    def num_rows(self) -> int:
        return self.tokens_BS.size(0)

    @property
    def positions_BS(self) -> torch.Tensor:
        """Place of each token in its own document, from 0."""
        documents = self.documents_BS
        places = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
        is_start = torch.ones_like(documents, dtype=torch.bool)
        is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return places - places.masked_fill(~is_start, 0).cummax(-1).values


def pack_rows(
    rows: Sequence[Sequence[Document]],
    length: int,
    token_map: TokenMap,
    tasks: Sequence[Sequence[int]] | None = None,
) -> PackedBatch:
    """Lay each row's documents end to end and pad to `length`. A document of n ids takes n-1 places (input -> next
    id). `tasks` numbers the task of each document.
    """
    sizes, numbers, task_numbers = [], [], []
    # The batch as one line: what comes in turn, the rest of a row being one stretch more.
    parts: dict[str, list[Any]] = {name: [] for name in _EMPTY}
    empty = {name: np.full(length, value, dtype) for name, (value, dtype) in _EMPTY.items()}
    empty["tokens_BS"][:] = empty["labels_BS"][:] = token_map.pad_id
    if tasks is not None and [len(row) for row in tasks] != [len(row) for row in rows]:
        raise DataError("tasks: not one number for each document of each row")
    for r, row in enumerate(rows):
        left = length
        for d, document in enumerate(row):
            size = _checked_size(document, f"row {r}, document {d}")
            left -= size
            if left < 0:
                raise DataError(
                    f"row {r}, document {d}: {length - left} tokens do not fit a row of {length}; cut or repack"
                )
            parts["tokens_BS"].append(document.ids[:-1])
            parts["labels_BS"].append(document.ids[1:])
            parts["tags_BS"].append(document.tags[:-1])
            parts["label_tags_BS"].append(document.tags[1:])
            parts["loss_weights_BS"].append(document.is_trained[1:])
            sizes.append(size)
            numbers.append(d)
            task_numbers.append(-1 if tasks is None else tasks[r][d])
        for name, values in parts.items():
            values.append(empty[name][:left])
        sizes.append(left)
        numbers.append(-1)
        task_numbers.append(-1)

    def by_stretch(values: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.int64), sizes).reshape(len(rows), length))

    documents_BS = by_stretch(numbers)
    wave_BSF, is_wave_BS, wave_starts_BS = _lay_waves(rows, length)

    return PackedBatch(
        **{name: torch.from_numpy(_in_line(values, name).reshape(len(rows), length)) for name, values in parts.items()},
        documents_BS=documents_BS,
        tasks_BS=by_stretch(task_numbers),
        is_pad_BS=documents_BS < 0,
        token_map=token_map,
        is_packed=any(len(row) > 1 for row in rows),
        wave_BSF=wave_BSF,
        is_wave_BS=is_wave_BS,
        wave_starts_BS=wave_starts_BS,
    )


def _lay_waves(
    rows: Sequence[Sequence[Document]], length: int
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Frames at the places of their documents in the rows; a document's last id is a label only."""
    found, width = [], None
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            size = len(document.ids) - 1
            if document.wave is not None:
                wave = document.wave.cut(0, size)
                found.append((r, at + wave.places_N, wave.features_NF, wave.is_first_N))
                if wave.features_NF is not None:
                    width = wave.features_NF.shape[1]
            at += size
    if not found:
        return None, None, None
    is_wave_BS = torch.zeros(len(rows), length, dtype=torch.bool)
    wave_starts_BS = torch.zeros_like(is_wave_BS)
    wave_BSF = None if width is None else torch.zeros(len(rows), length, width)
    for r, places_N, features_NF, is_first_N in found:
        here = torch.from_numpy(places_N)
        is_wave_BS[r, here] = True
        wave_starts_BS[r, here] = torch.from_numpy(is_first_N)
        if wave_BSF is not None and features_NF is not None:
            wave_BSF[r, here] = torch.from_numpy(np.ascontiguousarray(features_NF, np.float32))
    return wave_BSF, is_wave_BS, wave_starts_BS


_EMPTY: dict[str, tuple[float, type[np.generic]]] = {
    "tokens_BS": (0, np.int64),
    "labels_BS": (0, np.int64),
    "tags_BS": (TEXT, np.int64),
    "label_tags_BS": (TEXT, np.int64),
    "loss_weights_BS": (0.0, np.float32),
}
"""What stands in a place without a token, and the kind of number; tokens and labels have the map's pad there."""


def _checked_size(document: Document, where: str) -> int:
    """The places it takes."""
    num_ids = len(document.ids)
    if not num_ids == len(document.tags) == len(document.is_trained):
        raise DataError(f"{where}: ids, tags and is_trained differ in length")
    if num_ids < 2:
        raise DataError(f"{where}: a document needs at least 2 tokens, this has {num_ids}")
    return num_ids - 1


def _in_line(parts: Sequence[Any], name: str) -> np.ndarray:
    dtype = _EMPTY[name][1]
    try:
        return np.concatenate(parts, dtype=dtype, casting="same_kind") if parts else np.empty(0, dtype)
    except TypeError as error:
        raise DataError(f"{name}: cannot be made {np.dtype(dtype).name} ({error})") from error
