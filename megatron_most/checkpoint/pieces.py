"""Which box of which whole tensor each rank holds: read off Core's sharded state dict, before any engine is built.

Whole tensors have one name in every layout: Core's, with layers counted over all stages and experts by published id, so
neither a pipeline nor a placement shows in a checkpoint. A local tensor is one box of a whole one, or two where gate
and up projections lie in one weight. ZeRO-3 empties local tensors, hence "before".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

from megatron_most.errors import CheckpointError

Box = tuple[int, ...]
_EXPERTS = re.compile(r"(.*\.mlp\.experts)\.experts\.(.*)")


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


def find_pieces(model: torch.nn.Module, expert_at: Sequence[int]) -> dict[str, list[Piece]]:
    """local name -> its boxes. `expert_at`: the published id of the expert in each slot."""
    found: dict[str, list[Piece]] = {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        entries = model.sharded_state_dict()  # type: ignore[operator]
    for local, entry in entries.items():
        if isinstance(entry, ShardedObject):  # what Transformer Engine keeps beside weights: of no use to others
            continue
        if local not in tensors:
            raise CheckpointError(f"{local}: in Core's sharded state, but not a weight or buffer of the model")
        built = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        if not all(isinstance(part, ShardedTensor) for part in built):
            raise CheckpointError(f"{local}: Core describes it in a way unknown here ({type(entry).__name__})")
        found[local] = [_piece(local, tensors[local], part, expert_at) for part in built]
    missing = sorted({name for name, _ in model.named_parameters()} - set(found))
    if missing:
        raise CheckpointError(f"{missing[0]}: a weight that Core's sharded state leaves out; it would not be saved")
    return found


def _piece(local: str, tensor: torch.Tensor, part: ShardedTensor, expert_at: Sequence[int]) -> Piece:
    data = part.data
    assert data is not None and data.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr(), "a view"
    offset, local_start = data.storage_offset() - tensor.storage_offset(), []
    for stride in tensor.stride():
        local_start.append(offset // stride)
        offset %= stride
    lead = part.prepend_axis_num
    name = part.key
    if lead:
        experts = _EXPERTS.fullmatch(name)
        if experts is None or lead != 1:
            raise CheckpointError(f"{name}: stacked over an axis that is not its experts")
        name = f"{experts[1]}.{expert_at[part.global_offset[0]]}.{experts[2]}"
    whole, start = tuple(part.global_shape[lead:]), tuple(part.global_offset[lead:])
    return Piece(name, whole, start, tuple(data.shape), local, tuple(local_start))


def divide_work(held: Sequence[Sequence[tuple[str, Box, Box, Box]]]) -> list[set[tuple[str, Box, Box]]]:
    """For each rank the places it writes. `held`: for each rank (name, start, shape, whole) of all it holds.

    Every place is written once, by one of its holders, the one with least to write so far. CheckpointError where the
    places of all ranks together leave a gap in a tensor.
    """
    holders: dict[tuple[str, Box, Box], list[int]] = {}
    wholes: dict[str, Box] = {}
    for rank, places in enumerate(held):
        for name, start, shape, whole in places:
            holders.setdefault((name, start, shape), []).append(rank)
            if wholes.setdefault(name, whole) != whole:
                raise CheckpointError(f"{name}: shape {whole} on rank {rank}, {wholes[name]} elsewhere")
    filled: dict[str, int] = dict.fromkeys(wholes, 0)
    work: list[set[tuple[str, Box, Box]]] = [set() for _ in held]
    load = [0] * len(held)
    for place in sorted(holders, key=lambda place: (-prod(place[2]), place)):
        rank = min(holders[place], key=lambda rank: (load[rank], rank))
        work[rank].add(place)
        load[rank] += prod(place[2])
        filled[place[0]] += prod(place[2])
    for name, whole in wholes.items():
        if filled[name] != prod(whole):
            raise CheckpointError(f"{name}: all ranks together hold {filled[name]} of its {prod(whole)} numbers")
    return work


def lay_out(pieces: Mapping[str, Sequence[Piece]]) -> list[tuple[str, Box, Box, Box]]:
    """What divide_work wants to hear of one rank."""
    return [(p.name, p.start, p.shape, p.whole) for boxes in pieces.values() for p in boxes]
