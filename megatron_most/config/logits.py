"""How much of the logits a loss has at once. Whole, they are often the most that a step holds: 4,096 tokens of 102,400
words take 1.7 GB in float32, and in bf16 half as much again for their rounded copy.

Large ones are made and dropped in pieces of the vocabulary; the model and the memory planner both ask here how wide.
"""

from __future__ import annotations

LOGITS_BYTES = 64 << 20
"""Of float32 logits that a rank holds at once. What fits is not cut, so small models have one piece."""
LEAST_COLUMNS = 1024
"""Of a piece, also where so many tokens' take more: every piece adds to the gradient of all hidden states, and a
narrower one would do little else.
"""
STRIDE = 64
"""Pieces are multiples of it, for kernels want rows to begin at round addresses."""


def columns_at_once(tokens: int, columns: int) -> int:
    """Of the `columns` of the vocabulary that a rank has, for as many tokens as it sees; all of them if they fit."""
    fitting = LOGITS_BYTES // (4 * tokens)
    return columns if fitting >= columns else min(columns, max(fitting // STRIDE * STRIDE, LEAST_COLUMNS))
