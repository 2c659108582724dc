"""Which documents share a row, from their lengths alone; and what becomes of a document longer than a row.

Best fit, longest first: each document goes to the fullest row that still holds it. All rows' room is kept as one
whole number, bit k set where some row has room for k more places, so the fullest fit is the lowest bit from the
document's size on, and thousands of documents take milliseconds. A document of n ids takes n-1 places (input -> next
id), so one of row_length + 1 ids just fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

LongPolicy = Literal["split", "drop", "cut_left", "refuse"]
"""What becomes of a document longer than a row: `split` in pieces that overlap by one id, so that every label is learnt
once; `drop` leaves it out; `cut_left` keeps its end, as the MoST release does; `refuse` is an error that names it.
"""
LONG_POLICIES: tuple[LongPolicy, ...] = ("split", "drop", "cut_left", "refuse")


def pack_lengths(num_ids: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Rows of positions in `num_ids` (ids of each document, 2..row_length + 1), each in ascending order."""
    sizes = np.asarray(num_ids, dtype=np.int64) - 1
    assert not sizes.size or 1 <= sizes.min() <= sizes.max() <= row_length, "a document that fits no row"
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by room left
    rooms = 0  # bit k: with_room[k] is not empty
    order = np.argsort(-sizes, kind="stable")
    for position, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(position)
        else:
            room, row = row_length, len(rows)
            rows.append([position])
        if left := room - size:
            with_room[left].append(row)
            rooms |= 1 << left
    return [sorted(row) for row in rows]


def cut_long(num_ids: np.ndarray, keeps_end: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces as (which document, its first id, the id after its last), in the documents' order: one of most documents,
    several of a long one, or only its end where `keeps_end` says so.
    """
    most = row_length + 1
    pieces = np.where(keeps_end, 1, -(-(num_ids - 1) // row_length))
    which = np.repeat(np.arange(len(num_ids)), pieces)
    number = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    stops = num_ids[which]
    starts = np.where(keeps_end[which], np.maximum(stops - most, 0), number * row_length)
    return which, starts, np.minimum(starts + most, stops)


class Piece(NamedTuple):
    """Ids start..stop-1 of one document: most often all of them. Numbers only, nothing is read for it."""

    task: int
    source: int
    """Which of the task's sources."""
    document: int
    """Its number in that source."""
    start: int
    stop: int
    epoch: int = 0
    """Of its task. Augmentation draws anew in each; documents of one are read once in a step."""

    @property
    def key(self) -> tuple[int, int, int, int]:
        """Which document, in which epoch."""
        return self.task, self.source, self.document, self.epoch


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What one row of a batch will hold; none = a filler, a row of pads."""

    pieces: tuple[Piece, ...] = ()

    @property
    def filled(self) -> int:
        """Places that are not pads."""
        return sum(piece.stop - piece.start - 1 for piece in self.pieces)

    @property
    def pairs(self) -> int:
        """Of a token and one that it sees: itself and those before it in its document."""
        return sum((size := piece.stop - piece.start - 1) * (size + 1) // 2 for piece in self.pieces)


def deal_rows(rows: Sequence[PackedRow], rank: int, ranks: int, micro_batch_size: int) -> list[list[PackedRow]]:
    """The micro-batches of data rank `rank` of `ranks`: as many and as large on each, filled up with fillers."""
    mine = list(rows[rank::ranks])
    most = -(-len(rows) // ranks)
    mine += [PackedRow()] * (-(-most // micro_batch_size) * micro_batch_size - len(mine))
    return [mine[at : at + micro_batch_size] for at in range(0, len(mine), micro_batch_size)]
