"""Which box of which whole tensor each rank holds: read off Core's sharded state dict, before any engine is built.

Whole tensors have one name in every layout: Core's, with layers counted over all stages and experts by published id, so
neither a pipeline nor a placement shows in a checkpoint. A local tensor is one box of a whole one, or two where gate
and up projections lie in one weight. ZeRO-3 empties local tensors, hence "before".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch

from megatron_most.config import MoEPlan
from megatron_most.errors import CheckpointError

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

Box = tuple[int, ...]
_EXPERTS = re.compile(r"(?P<before>.*\.layers\.(?P<layer>\d+)\.mlp\.experts)\.experts\.(?P<after>.*)")


@dataclass(frozen=True)
class Piece:
    """A box of a whole tensor, and where it lies in a local one."""

    name: str
    """Of the whole tensor."""
    whole: Box
    """Shape of the whole tensor."""
    start: Box
    """The box's corner in the whole tensor."""
    shape: Box
    local: str
    """Name of the local tensor (parameter or buffer)."""
    local_start: Box
    """The box's corner in the local tensor."""

    @property
    def place(self) -> tuple[str, Box, Box]:
        """The same for every rank that holds this box."""
        return self.name, self.start, self.shape

    def of(self, local: torch.Tensor) -> torch.Tensor:
        """This box of the local tensor, as a view."""
        return local[boxed(self.local_start, self.shape)]


def boxed(start: Box, shape: Box) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))


def require_cover(name: str, whole: Box, boxes: Iterable[tuple[Box, Box]]) -> None:
    """CheckpointError unless the boxes (start, shape) fill the whole tensor, every number once.

    A box is the sum of its signed corners, as [a, b) is the step at a less the step at b. So boxes add up to the whole
    just where their corners do, however they lie; to count numbers would let an overlap make up for a gap.
    """
    boxes = list(boxes)
    if boxes == [((0,) * len(whole), whole)] and min(whole, default=0) >= 0:
        return
    corners: Counter[Box] = Counter()
    for sign, start, shape in [(-1, (0,) * len(whole), whole), *((1, *box) for box in boxes)]:
        if not len(start) == len(shape) == len(whole) or min(shape, default=0) < 0:
            raise CheckpointError(f"{name}: {list(shape)} at {list(start)} is no box of the shape {list(whole)}")
        for ends in product((0, 1), repeat=len(whole)):
            at = tuple(a + n * end for a, n, end in zip(start, shape, ends, strict=True))
            corners[at] += sign * (-1) ** sum(ends)
    if any(corners.values()):
        held = sum(prod(shape) for _, shape in boxes)
        raise CheckpointError(
            f"{name}: the {len(boxes)} pieces of it, with {held} numbers, do not fill its shape {list(whole)} exactly"
        )


def find_pieces(model: torch.nn.Module, moe: MoEPlan | None) -> dict[str, list[Piece]]:
    """local name -> its boxes. `moe` says which published expert sits in each slot; None: there are no experts."""
    # Seconds to import, and most of this room's users have no model.
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

    found: dict[str, list[Piece]] = {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        entries = model.sharded_state_dict(metadata={"non_homogeneous_layers": True})  # type: ignore[operator]
    for local, entry in entries.items():
        if isinstance(entry, ShardedObject):  # what Transformer Engine keeps beside weights: of no use to others
            continue
        if local not in tensors:
            raise CheckpointError(f"{local}: in Core's sharded state, but not a weight or buffer of the model")
        built = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        if not all(isinstance(part, ShardedTensor) for part in built):
            raise CheckpointError(f"{local}: Core describes it in a way unknown here ({type(entry).__name__})")
        found[local] = [_piece(local, tensors[local], part, moe) for part in built]
    kept = set(model.state_dict()) & set(tensors)  # without what is made again with the model, such as rotary tables
    missing = sorted(kept - set(found))
    if missing:
        raise CheckpointError(f"{missing[0]}: left out of Core's sharded state; it would not be saved")
    for local, pieces in found.items():
        require_cover(local, tuple(tensors[local].shape), [(piece.local_start, piece.shape) for piece in pieces])
    return found


def _piece(local: str, tensor: torch.Tensor, part: ShardedTensor, moe: MoEPlan | None) -> Piece:
    data = part.data
    assert data is not None and data.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr(), "a view"
    assert data.stride() == tensor.stride(), "a box of it, not turned"
    offset, local_start = data.storage_offset() - tensor.storage_offset(), []
    for stride in tensor.stride():
        local_start.append(offset // stride)
        offset %= stride
    lead = part.prepend_axis_num
    name = part.key
    if lead:
        experts = _EXPERTS.fullmatch(name)
        if experts is None or lead != 1 or moe is None:
            raise CheckpointError(f"{name}: stacked over an axis that is not its experts")
        published = moe.expert_at(int(experts["layer"]))[part.global_offset[0]]
        name = f"{experts['before']}.{published}.{experts['after']}"
    whole, start = tuple(part.global_shape[lead:]), tuple(part.global_offset[lead:])
    return Piece(name, whole, start, tuple(data.shape), local, tuple(local_start))


def divide_work(held: Sequence[Sequence[tuple[str, Box, Box, Box]]]) -> list[set[tuple[str, Box, Box]]]:
    """For each rank the places it writes. `held`: for each rank (name, start, shape, whole) of all it holds.

    Every place is written once, by one of its holders, the one with least to write so far. CheckpointError where the
    places of all ranks together leave a gap in a tensor, or overlap without being equal.
    """
    holders: dict[tuple[str, Box, Box], list[int]] = {}
    wholes: dict[str, Box] = {}
    for rank, places in enumerate(held):
        for name, start, shape, whole in places:
            holders.setdefault((name, start, shape), []).append(rank)
            if wholes.setdefault(name, whole) != whole:
                raise CheckpointError(f"{name}: shape {whole} on rank {rank}, {wholes[name]} elsewhere")
    boxes: dict[str, list[tuple[Box, Box]]] = {name: [] for name in wholes}
    work: list[set[tuple[str, Box, Box]]] = [set() for _ in held]
    load = [0] * len(held)
    for place in sorted(holders, key=lambda place: (-prod(place[2]), place)):
        rank = min(holders[place], key=lambda rank: (load[rank], rank))
        work[rank].add(place)
        load[rank] += prod(place[2])
        boxes[place[0]].append(place[1:])
    for name, whole in wholes.items():
        require_cover(name, whole, boxes[name])
    return work


def lay_out(pieces: Mapping[str, Sequence[Piece]]) -> list[tuple[str, Box, Box, Box]]:
    """What divide_work wants to hear of one rank."""
    return [(p.name, p.start, p.shape, p.whole) for boxes in pieces.values() for p in boxes]
