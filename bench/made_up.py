"""A made-up language, written and spoken, that a small model has to keep much of in mind: its experts find work.

There are topics, and voices, each with a table of its own: after each word (or unit) one of a few may follow, some
oftener than others. A document keeps to one. The entropy of a table is what the best of models would lose. Everything
follows from the seed.
"""

# V words or units, N that may follow one

from __future__ import annotations

import numpy as np

from megatron_most.data import Document
from megatron_most.vocab import AUDIO, TEXT, TokenMap, grow

WORDS, UNITS, TABLES = 80, 64, 4
KINDS = ("text", "audio", "mixed")
CHANCES = np.array([0.6, 0.25, 0.1, 0.05])


def token_map() -> TokenMap:
    """Words from id 0 on, then BOS and EOS, then units and marks."""
    bos, eos = WORDS, WORDS + 1
    return grow(backbone="made-up", base_vocab_size=WORDS + 2, bos=bos, eos=eos, pad=eos, num_units=UNITS, multiple=8)


class Language:
    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng([seed, 1])
        self.tokens = token_map()
        self._next = {
            size: np.stack([draw.permuted(np.tile(np.arange(size), (size, 1)), axis=1)[:, : len(CHANCES)]
                            for _ in range(TABLES)])
            for size in (WORDS, UNITS)
        }  # fmt: skip
        self._seed = seed

    def sequence(self, size: int, length: int, draw: np.random.Generator, tables: int = TABLES) -> list[int]:
        """Words or units of one topic or voice, out of so many."""
        table = self._next[size][draw.integers(tables)]
        which = draw.choice(len(CHANCES), length, p=CHANCES)
        found = [int(draw.integers(size))]
        while len(found) < length:
            found.append(int(table[found[-1], which[len(found)]]))
        return found

    def document(self, kind: str, length: int, number: int) -> Document:
        """Of `length` tokens, BOS first; mixed: half of it written, half spoken, between marks. Numbers below 0 are
        those held out.
        """
        draw = np.random.default_rng([self._seed, 2, number & 0xFFFFFFFF, KINDS.index(kind)])
        tokens, num_words = self.tokens, {"text": length - 1, "audio": 0, "mixed": length // 2}[kind]
        ids = [tokens.bos_id, *(self.sequence(WORDS, num_words, draw) if num_words else ())]
        tags = [TEXT] * len(ids)
        if kind != "text":
            units = self.sequence(UNITS, length - len(ids) - 2, draw)
            ids += [tokens.begin_audio_id, *(tokens.id_of_unit(unit) for unit in units), tokens.end_audio_id]
        return Document(ids=ids, tags=tags + [AUDIO] * (len(ids) - len(tags)), is_trained=[True] * len(ids))

    def tokenizer(self) -> str:
        """tokenizer.json: a word is a token."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        special = {self.tokens.bos_id: "<s>", self.tokens.eos_id: "</s>"}
        made = Tokenizer(
            models.WordLevel({word(n): n for n in range(WORDS)} | {name: n for n, name in special.items()})
        )
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return made.to_str()

    def lines(self, kind: str, count: int, length: int) -> list[str]:
        """As calibration files have them, and nobody else has seen: words, units as published, or transcripts, which
        are words that keep to few topics.
        """
        draw = np.random.default_rng([self._seed, 3, len(kind)])
        if kind == "audio":
            return [self.tokens.units_to_text(self.sequence(UNITS, length, draw)) for _ in range(count)]
        few = TABLES // 4 if kind == "transcript" else TABLES
        return [" ".join(map(word, self.sequence(WORDS, length, draw, few))) for _ in range(count)]


def word(number: int) -> str:
    return f"w{number}"
