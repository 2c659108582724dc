"""Before a step: every rank looks at its own batches, and all of them go on or raise the same error together.

A rank that raised alone would leave the others waiting in the first collective; so would one with more micro-batches,
or longer ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_most.config import Plan
from megatron_most.data import PackedBatch, check_batch
from megatron_most.errors import LayoutError, MostError
from megatron_most.runtime import agree


def check_together(batches: Sequence[PackedBatch], plan: Plan) -> None:
    """All ranks call it, with host tensors; costs two all-reduces of a few integers on the CPU."""
    found: MostError | None = None
    try:
        if not batches:
            raise LayoutError("a step got no micro-batches; give every rank the same number")
        for batch in batches:
            check_batch(batch, plan)
            if batch.tokens_BS.shape != batches[0].tokens_BS.shape:
                sizes = [tuple(b.tokens_BS.shape) for b in batches]
                raise LayoutError(f"micro-batches of one step differ in shape: {sizes}; pack them alike")
            if batch.tokens_BS.size(1) != plan.config.train.sequence_length:
                wanted = plan.config.train.sequence_length
                raise LayoutError(f"rows of {batch.tokens_BS.size(1)} tokens, but train.sequence_length is {wanted}")
    except MostError as error:
        found = error
    agree(found)
    mine = torch.tensor([len(batches), batches[0].num_rows])
    most = torch.cat([mine, -mine])
    dist.all_reduce(most, dist.ReduceOp.MAX)
    (num, rows), (least_num, least_rows) = most[:2].tolist(), (-most[2:]).tolist()
    if (num, rows) != (least_num, least_rows):  # the same numbers everywhere, so all ranks raise
        raise LayoutError(
            f"ranks disagree: {least_num} to {num} micro-batches of {least_rows} to {rows} rows in one step; "
            "give every rank as many (fill up with rows of loss weight 0)"
        )
