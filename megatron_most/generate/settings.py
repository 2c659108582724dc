"""What is asked of a model and what it answers: Settings, Prompt, Answer. A wrong value raises when one is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from megatron_most.errors import ConfigError, DataError
from megatron_most.vocab import TokenMap

if TYPE_CHECKING:
    from megatron_most.data import Wave

Mode = Literal["free", "text-only", "audio-only"]
Stopped = Literal["eos", "length", "cancelled"]
_ORDINARY = (1e-5, 1e5)
"""Of what logits are divided or multiplied by. Beyond, float32 overflows, and no token could be told from another."""


def _is_ordinary(value: float) -> bool:
    return _ORDINARY[0] <= value <= _ORDINARY[1]


def is_finite(value: float) -> bool:
    """math's, but for whole numbers that no float can hold: those are not either."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tokens are chosen."""

    max_new_tokens: int = 256
    mode: Mode = "free"
    """free: text and audio spans in any order. text-only: no audio. audio-only: one audio span and nothing else."""
    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Only so many of the likeliest; 0 = all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or answer hold are divided by it where positive, else multiplied; 1 = none."""
    seed: int = 0
    """With the row's number and the token's place it decides every draw."""

    def __post_init__(self) -> None:
        numbers = {"max_new_tokens": int, "top_k": int, "seed": int}
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"):
            value = getattr(self, name)
            wanted: Any = numbers.get(name, (int, float))
            if isinstance(value, bool) or not isinstance(value, wanted) or not is_finite(value):
                kind = "a whole number" if name in numbers else "a number"
                raise ConfigError(name, value, f"not {kind}", f"give {kind}")
        for name, is_right, remedy in (
            ("max_new_tokens", self.max_new_tokens >= 1, "give at least 1"),
            ("temperature", self.temperature == 0 or _is_ordinary(self.temperature),
             f"give 0 for the likeliest token, or {_ORDINARY[0]:g} to {_ORDINARY[1]:g} to draw"),
            ("top_p", 0 < self.top_p <= 1, "give a share above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "give 0 for all tokens, or how many"),
            ("repetition_penalty", _is_ordinary(self.repetition_penalty),
             f"give 1 for none, or more; {_ORDINARY[0]:g} to {_ORDINARY[1]:g}"),
            ("seed", 0 <= self.seed < 2**63, "give a number from 0 to 2**63 - 1"),
        ):  # fmt: skip
            if not is_right:
                raise ConfigError(name, getattr(self, name), "out of range", remedy)
        if self.mode not in get_args(Mode):
            raise ConfigError("mode", self.mode, "no such mode", f"use one of {', '.join(get_args(Mode))}")


@dataclass(frozen=True)
class Prompt:
    """One row: ids with their tags."""

    ids: Sequence[int]
    tags: Sequence[int]
    wave: Wave | None = None
    """Continuous frames, which stand at places that hold the begin wave id, under the tag that the model gives them."""

    @classmethod
    def of(cls, ids: Sequence[int], tokens: TokenMap) -> Prompt:
        """With the tags that the ids have by the token map."""
        return cls(list(ids), [tokens.tag_of(id) for id in ids])


@dataclass(frozen=True)
class Answer:
    """What came after a prompt."""

    ids: list[int]
    """With the EOS that ended it."""
    tags: list[int]
    logprobs: list[float]
    """Of each token, by the model alone: before masks, penalty and temperature, in nats."""
    stopped: Stopped
    seconds: float
    """From the first prompt token to its last one."""


def _check_wave(prompt: Prompt, where: str) -> frozenset[int]:
    """The places of frames."""
    if (wave := prompt.wave) is None:
        return frozenset()
    places, features = wave.places_N, wave.features_NF
    if features is None or features.ndim != 2 or len(features) != len(places):
        raise DataError(f"{where}: {len(places)} places of frames, but not as many features; give one frame a place")
    if len(places) and not (0 <= places[0] and places[-1] < len(prompt.ids) and (np.diff(places) > 0).all()):
        raise DataError(f"{where}: places of frames are not ascending numbers below {len(prompt.ids)}")
    if wave.starts_N is not None and wave.starts_N.shape != places.shape:
        raise DataError(f"{where}: {len(places)} frames, but {len(wave.starts_N)} words on whether one is the first")
    if not np.isfinite(features).all():
        raise DataError(f"{where}: its frames hold NaN or infinity")
    return frozenset(places.tolist())


def check_prompt(prompt: Prompt, tag_V: Sequence[int], max_positions: int, where: str) -> None:
    """DataError where a prompt cannot be continued."""
    if not len(prompt.ids):
        raise DataError(f"{where}: empty; begin with at least the BOS token")
    if len(prompt.ids) != len(prompt.tags):
        raise DataError(f"{where}: {len(prompt.ids)} ids, but {len(prompt.tags)} tags; give one tag an id")
    frames = _check_wave(prompt, where)
    for place, (id, tag) in enumerate(zip(prompt.ids, prompt.tags, strict=True)):
        if not 0 <= id < len(tag_V) or tag_V[id] < 0:
            raise DataError(
                f"{where}, token {place}: id {id} is outside the vocabulary of {len(tag_V)} rows; check that the "
                "tokenizer is this model's"
            )
        if tag != tag_V[id] and place not in frames:
            raise DataError(f"{where}, token {place}: id {id} has tag {tag_V[id]}, not {tag}; take the token map's")
    if len(prompt.ids) >= max_positions:
        raise DataError(
            f"{where}: {len(prompt.ids)} tokens leave no room for an answer in the model's {max_positions} positions; "
            "shorten it"
        )
