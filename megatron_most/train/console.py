"""A step as one line that fits 120 columns, whatever the names and sizes: what matters least is left out first."""

from __future__ import annotations

from megatron_most.train.history import Line

WIDTH = 120 - len("12:30:05 [rank 0] ")  # what the log puts before it


def console_line(line: Line, steps: int, seconds_left: float) -> str:
    """`line`: as for metrics.jsonl."""
    mfu = line.get("mfu")
    words = [  # (the lowest is left out first, words) in the order in which they are shown
        (9, f"step {line['step'] + 1}/{steps}"),
        (8, f"loss {line['loss']:.4g}"),
        (3, _named(line, "loss/")),
        (0, _named(line, "task/")),
        (5, f"norm {line['gradient_norm']:.3g}"),
        (6, "skipped" if line["skipped"] else ""),
        (1, f"lr {line['learning_rate']:.3g}"),
        (4, f"{line['tokens_per_second']:,.0f} tok/s"),
        (2, "" if mfu is None else f"mfu {mfu:.0%}"),
        (7, f"{clock(seconds_left)} left"),
    ]
    kept = [(rank, text) for rank, text in words if text]
    while len(shown := "  ".join(text for _, text in kept)) > WIDTH and len(kept) > 1:
        kept.remove(min(kept))
    return shown[:WIDTH]


def clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"


def _named(line: Line, prefix: str) -> str:
    """Losses of one kind, by name."""
    return " ".join(f"{key[len(prefix) :]} {loss:.3f}" for key, loss in line.items() if key.startswith(prefix))
