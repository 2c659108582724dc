"""Steps whose gradient was not finite: skipped, counted, and past a bound the end, with the documents named.

Which rows are to blame is found out at the end only: every micro-batch is evaluated by itself, on each data rank in
turn, which leaves the weights as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_most.data import PackedBatch, PackedRow, Reader, Step, deal_rows
from megatron_most.engine import Engine
from megatron_most.errors import MostError
from megatron_most.runtime import get_rank, write_atomically

_MOST_NAMES = 12


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How rows are dealt: to `ranks` data ranks, of which this is `rank`."""

    rank: int
    ranks: int
    micro_batch_size: int


def give_up(step: int, times: int, data: Step, reader: Reader, engine: Engine, dealing: Dealing, folder: Path) -> None:
    """Raise MostError that names the documents of the rows whose loss is not finite. All ranks call it."""
    wrong = rows_not_finite(data, reader, engine, dealing)
    path = folder / f"not-finite-{step:08d}.txt"
    if get_rank() == 0:
        write_atomically(path, _listing(data.rows, wrong, reader))
    if len(wrong) == sum(bool(row.pieces) for row in data.rows):
        blame = "nor is the loss of any of its rows, so the weights themselves may be spoilt: go back to a checkpoint"
    elif wrong:
        names = [name for row in reader.names(wrong) for name in row]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        blame = (
            f"the loss is not finite in {len(wrong)} of its {len(data.rows)} rows, which hold "
            f"{', '.join(names[:_MOST_NAMES])}{more}: look at these documents"
        )
    else:
        blame = f"though the loss of each of its {len(data.rows)} rows is: lower train.learning_rate"
    raise MostError(
        f"step {step}: the gradient was not finite {times} times in a row; {blame}; {path} lists all documents of the "
        "step"
    )


def rows_not_finite(data: Step, reader: Reader, engine: Engine, dealing: Dealing) -> list[PackedRow]:
    """Rows of the step, on whichever data rank, whose micro-batch has a loss that is not finite. All ranks call it."""
    size = dealing.micro_batch_size
    dealt = [deal_rows(data.rows, rank, dealing.ranks, size) for rank in range(dealing.ranks)]
    fillers = reader.batch([PackedRow()] * size)
    wrong: list[PackedRow] = []
    for at, mine in enumerate(data.batches):
        if _is_finite(engine, mine):
            continue
        for rank in range(dealing.ranks):
            if dealing.ranks == 1 or not _is_finite(engine, mine if rank == dealing.rank else fillers):
                wrong += [row for row in dealt[rank][at] if row.pieces]
    return wrong


def _is_finite(engine: Engine, batch: PackedBatch) -> bool:
    return math.isfinite(float(engine.evaluate([batch]).mean))


def _listing(rows: list[PackedRow], wrong: list[PackedRow], reader: Reader) -> str:
    """A row a line, those to blame first."""
    blamed = set(wrong)
    ordered = [*wrong, *(row for row in rows if row not in blamed)]
    lines = zip(ordered, reader.names(ordered), strict=True)
    return "".join(f"{'not finite' if row in blamed else 'finite':<12}{' '.join(names)}\n" for row, names in lines)
