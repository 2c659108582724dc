"""What a phase will take, told before its first step: tokens, epochs of each task, GPU-hours.

Tokens are counted from the first rows of the stream, as they are packed; hours are arithmetic on an assumed
utilisation, and said to be: the console's time left is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_most.config import Plan, batch_rows, count_flops
from megatron_most.data import PackedRow, Reader
from megatron_most.engine import Session
from megatron_most.runtime import Device

_LOOKED_AT = 4096  # documents of the stream's beginning
_ASSUMED_MFU = 0.2


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of the steps from `first` on."""

    steps: int
    documents: float
    rows: float
    tokens: float
    filled: float
    """Share of the rows' places that are not pads."""
    task_documents: dict[str, float]
    epochs: dict[str, float]
    flops: float


def peak_flops(plan: Plan, device: Device) -> float | None:
    """Of one device, where the recipe or the maker says."""
    said = plan.config.telemetry.peak_flops
    return said if said is not None or plan.config.engine.precision == "fp32" else device.peak_flops


def forecast(plan: Plan, reader: Reader, first: int = 0) -> Forecast:
    """By looking at the first windows' packing, of a short phase at no more than it takes; reads no document."""
    train = plan.config.train
    steps, counts_rows = train.steps - first, train.batch_counts == "rows"
    grown = min(max(first, train.ramp_steps), train.steps)  # from then on all batches are alike
    taken = sum(batch_rows(train, step) for step in range(first, grown)) if counts_rows else 0
    taken += (train.steps - grown if counts_rows else steps) * train.global_batch_size  # rows, or documents
    sample: list[PackedRow] = []
    sampled = 0
    while sampled < _LOOKED_AT and (len(sample) if counts_rows else sampled) < taken:
        sample += reader.window_rows(sampled // reader.window)
        sampled += reader.window
    pieces = [piece for row in sample for piece in row.pieces]
    tokens, pairs = sum(row.filled for row in sample), sum(row.pairs for row in sample)
    documents = taken * sampled / len(sample) if counts_rows else float(taken)
    times = documents / sampled
    shares = {task.name: task for task in reader.summaries() if task.share}
    drawn = {name: documents * task.share for name, task in shares.items()}
    return Forecast(
        steps=steps,
        documents=documents,
        rows=times * len(sample),
        tokens=times * tokens,
        filled=tokens / (len(sample) * reader.row_length) if pieces else 0.0,
        task_documents=drawn,
        epochs={name: drawn[name] / shares[name].documents for name in shares},
        flops=times * count_flops(plan).of_step(tokens, pairs),
    )


def describe(session: Session, reader: Reader, first: int) -> list[str]:
    """Lines for the console, none where all steps are taken."""
    plan, train = session.plan, session.plan.config.train
    if first >= train.steps:
        return []
    found, peak = forecast(plan, reader, first), peak_flops(plan, session.device)
    lines = [
        f"{found.steps:,} steps of {found.documents / found.steps:,.0f} documents in {found.rows / found.steps:,.0f} "
        f"rows of {reader.row_length:,}: {_short(found.tokens)} tokens to come, {found.filled:.1%} of the places filled"
    ]
    for task in reader.summaries():
        if not task.share:
            if not train.validate_every:
                continue
            used = min(task.documents, reader.validation_documents)
            lines.append(f"validation {task.name}: {used:,} documents every {train.validate_every:,} steps")
            continue
        drawn, epochs = found.task_documents[task.name], found.epochs[task.name]
        line = f"{task.name}: {task.share:.0%} of the documents, {_short(drawn)} of them, {epochs:,.2f} epochs"
        if task.long_documents:
            line += f"; {task.long_documents:,} of {task.documents:,} are longer than a row: {task.long_policy}"
            if task.ids_left_out:
                line += f", {_short(task.ids_left_out)} tokens left out"
        lines.append(line)
    if peak is None:
        lines.append(f"{found.flops:.2e} FLOPs on {plan.layout}; the time is told as soon as steps have been measured")
    else:
        hours = found.flops / (_ASSUMED_MFU * peak) / 3600
        days = hours / plan.layout.world / 24
        lines.append(
            f"{found.flops:.2e} FLOPs on {plan.layout}: {hours:,.0f} GPU-hours, {days:,.1f} days, if "
            f"{_ASSUMED_MFU:.0%} of {peak / 1e12:,.0f} TFLOP/s are reached (assumed; the time left is measured)"
        )
    return lines


def _short(number: float) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:,.2f}{unit}"
    return f"{number:,.0f}"
