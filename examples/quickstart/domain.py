"""A small closed domain, some sixty words about animals: sentences, questions about them, and who says what.

Everything follows from the seed. Sentences for evaluation are drawn apart: none of them is ever trained on, though all
of their words are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = "two three four five six seven eight nine".split()
COLOURS = "red blue green black white brown yellow purple golden gray".split()
ANIMALS = "cats dogs birds horses sheep foxes rabbits mice tigers monkeys frogs ducks bears wolves lions camels".split()
ACTS = "run sleep sing jump eat swim dance play hide wait drink laugh".split()
PLACES = "garden river kitchen mountain forest harbor village castle station meadow island market".split()
WHERE = "in near behind under".split()
SENTENCES = ("number animal act", "number colour animal act", "number colour animal act where place")
PHRASES = ("number animal", "colour animal", "animal act", "where place")  # to begin with: words in company
_OF = {
    "number": NUMBERS, "colour": COLOURS, "animal": ANIMALS, "act": ACTS, "where": WHERE,
    "place": [f"the {place}" for place in PLACES],
}  # fmt: skip
QUESTIONS = {"number": "how many", "colour": "which color", "animal": "who", "act": "what do they do"}


@dataclass(frozen=True)
class Sentence:
    """What is said, and the words that questions ask for."""

    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return " ".join(word for _, word in self.parts)

    def scrambled(self, draw: random.Random) -> str:
        """Its words in another order."""
        words = self.text.split()
        while (mixed := draw.sample(words, len(words))) == words:
            pass
        return " ".join(mixed)

    def ask(self, draw: random.Random) -> tuple[str, str]:
        """A question about it, and the answer, one word."""
        kind, word = draw.choice([part for part in self.parts if part[0] in QUESTIONS])
        return QUESTIONS[kind], word


def words() -> list[str]:
    """Every word of the domain."""
    said = [word for kind in _OF.values() for phrase in kind for word in phrase.split()]
    return list(dict.fromkeys(said + [word for asked in QUESTIONS.values() for word in asked.split()]))


def sentences(count: int, draw: random.Random, shapes: Sequence[str] = SENTENCES) -> list[Sentence]:
    """So many, no two alike. Of all phrases together there are 528."""
    found: dict[str, Sentence] = {}
    while len(found) < count:
        kinds = draw.choice(shapes).split()
        one = Sentence(tuple((kind, draw.choice(_OF[kind])) for kind in kinds))
        found.setdefault(one.text, one)
    return list(found.values())
