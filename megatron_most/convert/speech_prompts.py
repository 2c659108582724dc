"""Prompts that stand for speech: units, where the model knows them, or transcripts, where it knows text alone."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_most.convert.prompts import Kind, Prompts, read_lines, text_prompts
from megatron_most.data import TextTokenizer
from megatron_most.errors import DataError
from megatron_most.vocab import AUDIO, TEXT, TokenMap


def speech_prompts(
    path: Path, tokenizer: TextTokenizer | None, tokens: TokenMap, *, vocab: int, rows: int, length: int
) -> Prompts:
    """From a file of utterances, a line each: all as units ("[Hu7][Hu90]", as published) or all as transcripts.

    vocab: rows of the model's own vocabulary. DataError for units that it has no rows for.
    """
    lines = [line.strip() for line in read_lines(path)]
    mark = tokens.unit_token.partition("{}")[0]
    is_units = [line.startswith(mark) for line in lines]
    if not any(is_units):
        if tokenizer is None:
            raise DataError(f"{path}: transcripts need a tokenizer; put the model's tokenizer.json into its folder")
        source = f"transcripts, {path.name}"
        return text_prompts(lines, tokenizer, tokens, rows=rows, length=length, source=source, kind="audio")
    if not all(is_units):
        kinds = ("units", "words") if is_units[0] else ("words", "units")
        at = is_units.index(not is_units[0]) + 1
        wrong = f"utterance 1 is {kinds[0]}, utterance {at} {kinds[1]}"
        raise DataError(f"{path}: {wrong}; give a file of units or one of transcripts")
    if tokens.unit_ids[-1] >= vocab:
        wrong = f"units, but the model's vocabulary of {vocab} rows has none for them: they begin as new rows"
        raise DataError(f"{path}: {wrong}; give transcripts of speech")
    ids: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            units = tokens.text_to_units(line)
        except DataError as error:
            raise DataError(f"{path}: utterance {number}: {error}") from error
        ids += [tokens.begin_audio_id, *(tokens.id_of_unit(unit) for unit in units), tokens.end_audio_id]
    count = min(rows, max(1, len(ids) // (length - 1)))
    inner = min(length - 1, len(ids) // count)
    cut = torch.tensor(ids[: count * inner]).view(count, inner)
    ids_BS = torch.cat([torch.full((count, 1), tokens.bos_id), cut], 1)
    tags_BS = torch.full_like(ids_BS, AUDIO)
    tags_BS[:, 0] = TEXT
    kind: Kind = "audio"
    return Prompts(ids_BS, tags_BS, (kind,) * count, f"units, {path.name}")
