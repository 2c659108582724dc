"""Before a step: every rank looks at its own batches, and all of them go on or raise the same error together.

A rank that raised alone would leave the others waiting in the first collective; so would one with more micro-batches,
or longer ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields

import torch
import torch.distributed as dist

from megatron_most.config import Plan
from megatron_most.data import PackedBatch, check_batch
from megatron_most.errors import LayoutError
from megatron_most.parallel import Groups
from megatron_most.runtime import agree


def check_together(batches: Sequence[PackedBatch], plan: Plan, groups: Groups) -> None:
    """All ranks call it, with host tensors; costs one all-reduce of a few integers on the CPU, and one for each kind of
    rank that shares a sequence.
    """
    found: Exception | None = None
    try:
        if not batches:
            raise LayoutError("a step got no micro-batches; give every rank the same number")
        for batch in batches:
            check_batch(batch, plan, is_first_stage=groups.is_first_stage)
            if batch.tokens_BS.shape != batches[0].tokens_BS.shape:
                sizes = [tuple(b.tokens_BS.shape) for b in batches]
                raise LayoutError(f"micro-batches of one step differ in shape: {sizes}; pack them alike")
            if batch.tokens_BS.size(1) != plan.config.train.sequence_length:
                wanted = plan.config.train.sequence_length
                raise LayoutError(f"rows of {batch.tokens_BS.size(1)} tokens, but train.sequence_length is {wanted}")
    except Exception as error:  # agree() raises it again, on every rank
        found = error
    other = _other_batch([] if found else batches, groups)
    size = (0, 0) if found else (len(batches), batches[0].num_rows)
    most = torch.tensor([found is not None, other is not None, *size, *(-part for part in size)], dtype=torch.int64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    is_wrong, is_other, num, rows, least_num, least_rows = most.abs().tolist()
    if is_wrong:
        agree(found)
    if (num, rows) != (least_num, least_rows):  # the same numbers everywhere, so all ranks raise
        raise LayoutError(
            f"ranks disagree: {least_num} to {num} micro-batches of {least_rows} to {rows} rows in one step; "
            "give every rank as many (fill up with rows of pads)"
        )
    if is_other:
        agree(other)


def _other_batch(batches: Sequence[PackedBatch], groups: Groups) -> LayoutError | None:
    """Ranks of one tensor, context and pipeline group must hold the same rows: else one stage embeds what another is
    scored on, and nothing would say so. Features of frames only the first stage has.
    """
    mine = torch.tensor([_fingerprint(batches), _fingerprint(batches, of_waves=True)])
    both = torch.stack([mine, -mine])
    for group in (groups.tensor, groups.context):
        if group.size() > 1:
            dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    rows = both[:, :1].contiguous()
    if groups.stages.size() > 1:
        dist.all_reduce(rows, dist.ReduceOp.MAX, group=groups.stages)
    if torch.equal(both[0], -both[1]) and torch.equal(rows[0], -rows[1]):
        return None
    return LayoutError(
        "ranks that share a sequence (tensor, context and pipeline parallel) got different batches; "
        "shard data by data-parallel rank, not by global rank"
    )


def _fingerprint(batches: Sequence[PackedBatch], *, of_waves: bool = False) -> int:
    """62 bits of everything in the batches but the features of frames, or of these."""
    digest = hashlib.blake2b(digest_size=8)
    for batch in batches:
        digest.update(str(batch.is_packed).encode())
        for field in fields(batch):
            value = getattr(batch, field.name)
            if torch.is_tensor(value) and (field.name == "wave_BSF") == of_waves:
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()) >> 2
