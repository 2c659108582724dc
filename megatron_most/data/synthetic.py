"""Made-up tagged documents for demos, tests and benchmarks: learnable, and a pure function of (seed, index).

Each modality counts upwards through its own ids with its own stride, from a random start, so a model can learn either
without the other: text by +1, units by +3. A mixed document is text, then units between their markers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from megatron_most.data.batch import Document, PackedBatch, pack_rows
from megatron_most.vocab import AUDIO, TEXT, WAVE, TokenMap

Kind = Literal["text", "audio", "mixed", "wave"]


def synthetic_document(tokens: TokenMap, kind: Kind, length: int, seed: int, index: int, spread: int = 32) -> Document:
    """One document of `length` ids over `spread` text tokens and units; "wave" has wave markers around every six of
    its text. Text is of the ids below the first special one, or above them where they come first.
    """
    draw = random.Random(f"{seed}/{index}/{kind}")
    start_text, start_unit = draw.randrange(spread), draw.randrange(spread)
    num_units = min(spread, tokens.num_units)
    specials = sorted({tokens.bos_id, tokens.eos_id, tokens.pad_id})
    first, limit = (0, specials[0]) if specials[0] else (specials[-1] + 1, tokens.backbone_vocab_size)
    text = [first + (start_text + i) % min(spread, limit - first) for i in range(length)]
    units = [tokens.first_unit_id + (start_unit + 3 * i) % num_units for i in range(length)]
    if kind == "text" or length < 4:  # no room for markers
        pairs = [(token, TEXT) for token in text]
    elif kind == "audio":
        pairs = [(token, AUDIO) for token in units]
    elif kind == "wave":
        marks = {0: tokens.begin_wave_id, 7: tokens.end_wave_id}
        pairs = [(marks[i % 8], WAVE) if i % 8 in marks else (token, TEXT) for i, token in enumerate(text)]
    else:
        half = length // 2
        inner_units = [(token, AUDIO) for token in units[: length - half - 2]]
        pairs = [
            *((token, TEXT) for token in text[:half]),
            (tokens.begin_audio_id, AUDIO),
            *inner_units,
            (tokens.end_audio_id, AUDIO),
        ]
    return Document(ids=[token for token, _ in pairs], tags=[tag for _, tag in pairs], is_trained=[True] * length)


def synthetic_batch(
    tokens: TokenMap, kinds: Sequence[Kind], length: int, seed: int, first: int | Sequence[int]
) -> PackedBatch:
    """One row a kind: a document that fills it, numbered from `first` on (or by `first`, one number a row)."""
    numbers = range(first, first + len(kinds)) if isinstance(first, int) else first
    rows = [
        [synthetic_document(tokens, kind, length + 1, seed, number)]
        for kind, number in zip(kinds, numbers, strict=True)
    ]
    return pack_rows(rows, length, tokens)
