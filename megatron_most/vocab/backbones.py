"""Token maps made from a backbone's numbers: where units and their marks go in its vocabulary.

In: the backbone's sizes and ids, how many units. Out: a checked `TokenMap`.
New ids run in one order everywhere: unit 0, 1, ..., begin audio, end audio, begin wave, end wave.
Surprising: a backbone's embedding can have more rows than its tokenizer has tokens. DeepSeek-V2-Lite does (102400 rows,
100002 tokens), so 500 units fit without a resize, and ids and checkpoints agree with the published model.
"""

from __future__ import annotations

from megatron_most.errors import DataError
from megatron_most.vocab.tags import AUDIO, TEXT, WAVE
from megatron_most.vocab.token_map import TokenMap

NUM_MARKS = 4  # begin audio, end audio, begin wave, end wave


def grow(
    *,
    backbone: str,
    base_vocab_size: int,
    bos: int,
    eos: int,
    pad: int,
    num_units: int,
    multiple: int = 128,
    free_from: int | None = None,
) -> TokenMap:
    """Place units and marks in a backbone's vocabulary, then pad its rows up to a multiple of `multiple`.

    base_vocab_size: rows of the backbone's embedding. free_from: the first row its tokenizer leaves unused (None: every
    row is text). New tokens that fit between there and the last row take those rows, else they go after the last row
    and the spare rows stay unused.
    """
    text_size = base_vocab_size if free_from is None else free_from
    for name, value in (("base_vocab_size", base_vocab_size), ("num_units", num_units), ("multiple", multiple)):
        if value < 1:
            raise DataError(f"token map of {backbone}: {name} = {value}: too small; give at least 1")
    if not 1 <= text_size <= base_vocab_size:
        raise DataError(
            f"token map of {backbone}: free_from = {free_from}: not in 1..{base_vocab_size} (base_vocab_size); "
            "give the number of tokens in the backbone's tokenizer"
        )
    num_new = num_units + NUM_MARKS
    first_unit = text_size if text_size + num_new <= base_vocab_size else base_vocab_size
    begin_audio = first_unit + num_units
    rows = max(base_vocab_size, first_unit + num_new)
    return TokenMap(
        backbone=backbone,
        backbone_vocab_size=base_vocab_size,
        vocab_size=-(-rows // multiple) * multiple,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        num_units=num_units,
        first_unit_id=first_unit,
        begin_audio_id=begin_audio,
        end_audio_id=begin_audio + 1,
        begin_wave_id=begin_audio + 2,
        end_wave_id=begin_audio + 3,
        tag_ranges=(
            (0, text_size - 1, TEXT),
            (first_unit, begin_audio + 1, AUDIO),
            (begin_audio + 2, begin_audio + 3, WAVE),
        ),
    )


def deepseek_token_map(num_units: int = 500, multiple: int = 128) -> TokenMap:
    """DeepSeek-V2-Lite; with 500 units, the published model's ids. The tokenizer pads with EOS."""
    return grow(
        backbone="deepseek",
        base_vocab_size=102400,
        bos=100000,
        eos=100001,
        pad=100001,
        num_units=num_units,
        multiple=multiple,
        free_from=100002,
    )


def llama_token_map(num_units: int = 500, multiple: int = 128, *, eos: int = 128001) -> TokenMap:
    """Llama 3.1 and 3.2: no spare rows, so the vocabulary grows.

    The base models end a text with <|end_of_text|> 128001; for an instruct model pass eos=128009 (<|eot_id|>). The
    tokenizer names no pad token: <|finetune_right_pad_id|> 128004 is there for the purpose and never occurs in text.
    """
    return grow(
        backbone="llama",
        base_vocab_size=128256,
        bos=128000,
        eos=eos,
        pad=128004,
        num_units=num_units,
        multiple=multiple,
    )


def tiny_token_map(base_vocab_size: int = 40, num_units: int = 22, multiple: int = 8) -> TokenMap:
    """For models small enough to train in a test. BOS and EOS = pad are the last two rows of the base vocabulary."""
    return grow(
        backbone="tiny",
        base_vocab_size=base_vocab_size,
        bos=base_vocab_size - 2,
        eos=base_vocab_size - 1,
        pad=base_vocab_size - 1,
        num_units=num_units,
        multiple=multiple,
    )
