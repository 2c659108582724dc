"""What must hold in a `TokenMap`, checked whenever one is made, from a file or in code.

In: a map whose fields are filled in. Out: nothing, or a `DataError` naming the field, its value and what to do.
The aim is that each id has one tag or none, and that every audio and wave id has a name: a map that says less would
let a damaged file route tokens to experts of the other modality.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING

from megatron_most.errors import DataError
from megatron_most.vocab.tags import AUDIO, TAG_NAMES, TEXT, WAVE

if TYPE_CHECKING:
    from megatron_most.vocab.token_map import TokenMap

MARKS = ("begin_audio", "end_audio", "begin_wave", "end_wave")


def _refusal(field: str, value: object, wrong: str, remedy: str) -> DataError:
    return DataError(f"token map: {field} = {value!r}: {wrong}; {remedy}")


def check_fields(tokens: TokenMap) -> None:
    """Types and sizes. A boolean is no integer here, though Python thinks so."""
    for field in fields(tokens):
        value = getattr(tokens, field.name)
        if field.type == "int" and type(value) is not int:
            raise _refusal(field.name, value, f"is a {type(value).__name__}", "give an integer")
        if field.type == "str" and (type(value) is not str or not value):
            raise _refusal(field.name, value, "is no string, or empty", "give a non-empty string")
    for name in ("backbone_vocab_size", "num_units"):
        if getattr(tokens, name) < 1:
            raise _refusal(name, getattr(tokens, name), "too small", "give at least 1")
    if tokens.vocab_size < tokens.backbone_vocab_size:
        wrong = f"less than backbone_vocab_size = {tokens.backbone_vocab_size}"
        raise _refusal("vocab_size", tokens.vocab_size, wrong, "keep every row of the backbone")
    for name in ("bos_id", "eos_id", "pad_id", "first_unit_id", *(f"{mark}_id" for mark in MARKS)):
        if not 0 <= getattr(tokens, name) < tokens.vocab_size:
            wrong = f"not in 0..{tokens.vocab_size - 1} (vocab_size {tokens.vocab_size})"
            raise _refusal(name, getattr(tokens, name), wrong, "give an id of the vocabulary, or a larger vocab_size")
    if tokens.unit_ids[-1] >= tokens.vocab_size:
        wrong = f"from first_unit_id = {tokens.first_unit_id} on, they end beyond vocab_size = {tokens.vocab_size}"
        raise _refusal("num_units", tokens.num_units, wrong, "give fewer units or a larger vocab_size")


def check_ranges(tokens: TokenMap) -> None:
    """Ranges ascend without overlap inside the vocabulary, so each id has one tag or none."""
    ranges = tokens.tag_ranges
    if type(ranges) is not tuple or not ranges:
        raise _refusal("tag_ranges", ranges, "no list of ranges, or empty", "list (first id, last id, tag)")
    end = -1  # last id of the ranges so far
    for entry in ranges:
        if type(entry) is not tuple or len(entry) != 3 or any(type(number) is not int for number in entry):
            raise _refusal("tag_ranges", entry, "not three integers", "give (first id, last id, tag)")
        first, last, tag = entry
        if not 0 <= tag < len(TAG_NAMES):
            raise _refusal("tag_ranges", entry, f"{tag} is no tag", f"use 0..{len(TAG_NAMES) - 1}")
        if not end < first <= last:
            wrong = f"overlaps or goes back (earlier ranges end at {end})"
            raise _refusal("tag_ranges", entry, wrong, "give ascending ranges that share no id")
        bound = tokens.backbone_vocab_size if tag == TEXT else tokens.vocab_size
        if last >= bound:
            name = "backbone_vocab_size" if tag == TEXT else "vocab_size"
            raise _refusal("tag_ranges", entry, f"goes beyond {name} = {bound}", f"end it at {bound - 1} or before")
        end = last


def check_tokens(tokens: TokenMap) -> None:
    """The ranges tag audio and wave exactly the tokens named so, and no two tokens share an id or a string."""
    marks = [getattr(tokens, f"{mark}_id") for mark in MARKS]
    for tag, ids in ((AUDIO, [*tokens.unit_ids, *marks[:2]]), (WAVE, marks[2:])):
        tagged = [i for first, last, of in tokens.tag_ranges if of == tag for i in range(first, last + 1)]
        if sorted(ids) != tagged:
            odd = sorted(set(ids) ^ set(tagged)) or sorted(i for i in ids if ids.count(i) > 1)
            named = "the units and begin/end audio" if tag == AUDIO else "begin/end wave"
            wrong = f"the ids tagged {TAG_NAMES[tag]} are not {named}, each once (first difference: id {odd[0]})"
            raise _refusal("tag_ranges", tokens.tag_ranges, wrong, "make ids and ranges agree")
    for name in ("bos_id", "eos_id", "pad_id"):
        token_id = getattr(tokens, name)
        if not any(first <= token_id <= last for first, last, of in tokens.tag_ranges if of == TEXT):
            raise _refusal(name, token_id, "is not tagged text", "give an id of the backbone's own vocabulary")
    if not re.fullmatch(r"[^0-9{}]+\{\}[^0-9{}]+", tokens.unit_token):
        wrong = "not one {} between other characters"
        raise _refusal("unit_token", tokens.unit_token, wrong, "write it like [Hu{}], without digits or other braces")
    strings = [getattr(tokens, f"{mark}_token") for mark in MARKS]
    for mark, string in zip(MARKS, strings, strict=True):
        if strings.count(string) > 1:
            raise _refusal(f"{mark}_token", string, "names two tokens", "give each mark its own string")
