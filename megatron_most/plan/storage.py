"""What a run leaves on disk: checkpoints, their files, and the room that the shelf takes at its fullest."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from megatron_most.checkpoint import KINDS
from megatron_most.config import Plan
from megatron_most.convert.tables import Link

_PIECE_BYTES = 330  # of the manifest and of headers, for each stored box: names, shapes, offsets


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes and files."""

    checkpoint: int
    files: int
    """At most, of one checkpoint: ranks that hold nothing of their own to write have none."""
    kept: int
    """Checkpoints that are there at once, with the one being written."""

    @property
    def quota(self) -> int:
        return self.kept * self.checkpoint

    @property
    def inodes(self) -> int:
        return self.kept * (self.files + 1)


def storage_of(plan: Plan, tensors: list[Link]) -> Storage:
    """Weights in float32 and two moments of each; a rank writes a file of weights and one of moments."""
    keep, train = plan.config.checkpoint, plan.config.train
    weights = moments = places = 0
    for tensor in tensors:
        copies = 1 if tensor.expert is None else plan.config.moe.num_experts
        size = copies * 4 * prod(tensor.shape)
        weights += size
        moments += 0 if tensor.is_buffer else (len(KINDS) - 1) * size
        ranks = (
            1 if tensor.row.cut is None else plan.layout.tensor if tensor.expert is None else plan.layout.expert_tensor
        )
        boxes = copies * ranks * (2 if tensor.row.join == "halves" else 1)
        places += boxes * (1 if tensor.is_buffer else len(KINDS))
    saves = -(-train.steps // keep.every) if keep.every else 1
    kept = min(saves, keep.keep) if keep.keep else saves
    return Storage(
        checkpoint=weights + moments + places * _PIECE_BYTES,
        files=2 * min(plan.layout.world, places) + 4,  # manifest, its sum, recipe, token map
        kept=kept + (saves > kept),
    )
