"""Augmenter: an utterance's sound, changed as its seed and id say, the same in any batch, worker, rank or attempt.

In: a wave, and a key that names the sample (its id, its copy, an epoch). Out: the wave changed. Each effect draws from
a stream of its own, made from seed, key and the effect's name alone, so switching one on changes no other's draws.
What the augmentation is, the listed noise files included, has a hash, which travels with all that is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_most.config import AugmentConfig
from megatron_most.errors import ConfigError, DataError
from megatron_most.speech.codec import hash_of
from megatron_most.speech.effects import (
    at_speed,
    at_tempo,
    coloured_noise,
    in_band,
    in_room,
    load,
    louder,
    room_response,
    through_codec,
    through_mulaw,
    with_noise,
    within_scale,
)
from megatron_most.speech.sound_sets import SoundSet, list_sounds

AUGMENT_VERSION = 1
"""Raised when the same key would give another sound."""
Key = tuple[str | int, ...]
_KINDS = ("noise", "room", "voices")
_FOLDERS = tuple(f"{kind}_folders" for kind in _KINDS)
_CODECS: tuple[Literal["mp3", "opus"], ...] = ("mp3", "opus")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings, and the files they draw from."""

    config: AugmentConfig
    noise: SoundSet = SoundSet()
    room: SoundSet = SoundSet()
    voices: SoundSet = SoundSet()

    @property
    def hash(self) -> str:
        """Of all that decides a sample, but not of where folders lie."""
        config = {name: value for name, value in asdict(self.config).items() if name not in _FOLDERS}
        return hash_of(
            {"version": AUGMENT_VERSION, "config": config, **{kind: getattr(self, kind).facts for kind in _KINDS}}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        sets = {kind: getattr(self, kind).to_dict() for kind in _KINDS}
        return {"config": asdict(self.config), **sets, "hash": self.hash}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Augmentation:
        """The inverse of `to_dict`; DataError where it is not what this version makes of the same settings."""
        try:
            config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["config"].items()}
            if set(config) != {field.name for field in fields(AugmentConfig)}:
                raise ValueError("its settings are not those of this version")
            sets = {kind: SoundSet.from_dict(values[kind]) for kind in _KINDS}
            found = cls(config=AugmentConfig(**config), **sets)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"augmentation: cannot be read ({error}); augment again") from error
        if found.hash != values.get("hash"):
            raise DataError("augmentation: of another version, whose draws were others; augment again")
        return found


def open_augmentation(config: AugmentConfig, *, decode: bool = False) -> tuple[Augmentation, list[tuple[str, str]]]:
    """With the files that the settings name, and those of them that cannot be used."""
    bad: list[tuple[str, str]] = []
    sets = {}
    for kind in _KINDS:
        field = f"{kind}_folders"
        sets[kind], more = list_sounds(getattr(config, field), f"data.augment.{field}", decode=decode)
        bad += more
    return Augmentation(config=config, **sets), bad


class Augmenter:
    """Called with waves. Threads may call at will."""

    def __init__(self, augmentation: Augmentation, base: Path = Path()) -> None:
        """`base`: what relative folders of the listing count from."""
        self.augmentation, self._config, self._base = augmentation, augmentation.config, base
        if not self._config.is_on:
            raise ConfigError("data.augment", {}, "nothing is switched on", 'extend "parts/augment", or give a noise')
        for kind in _KINDS:
            getattr(augmentation, kind).require_there(base)
        load()

    def pace(self, key: Key) -> float:
        """How many times faster the sample will be: speed times tempo."""
        return round(self._factor("speed", key) * self._factor("tempo", key), 6)

    def __call__(self, wave: np.ndarray, key: Key, rate: int) -> np.ndarray:
        """The sample's sound. Its length is divided by `pace(key)`, to within a sample."""
        config = self._config
        if not len(wave):
            raise DataError(f"sample {key}: a sound of no samples; leave it out of the manifest")
        count = max(1, round(len(wave) / self.pace(key)))
        if (factor := self._factor("speed", key)) != 1:
            wave = at_speed(wave, factor)
        if (factor := self._factor("tempo", key)) != 1:
            wave = at_tempo(wave, factor, rate)
        wave = np.pad(wave, (0, max(0, count - len(wave))))[:count]  # two roundings may differ from one
        if draw := self._chosen("room", key):
            wave = in_room(wave, self._response(rate, draw))
        if draw := self._chosen("noise", key):
            snr = draw.uniform(*config.noise_db)
            wave = with_noise(wave, self._noise(len(wave), rate, draw), snr)
        if draw := self._chosen("voices", key):
            snr = draw.uniform(*config.voices_db)
            wave = with_noise(wave, self._babble(len(wave), rate, draw), snr)
        if draw := self._chosen("band", key):
            wave = in_band(wave, draw.uniform(*config.band_hz), rate)
        if self._chosen("mulaw", key):
            wave = through_mulaw(within_scale(wave))
        for kind in _CODECS:
            if draw := self._chosen(kind, key):
                wave = through_codec(wave, kind, draw.uniform(*config.coded_level), rate)
        if draw := self._chosen("volume", key):
            wave = louder(wave, draw.uniform(*config.volume_db))
        wave = within_scale(wave)
        if not np.isfinite(wave).all():
            raise DataError(f"sample {key}: NaN or infinite after augmentation; look at its sound and at the noises")
        return np.ascontiguousarray(wave, np.float32)

    def _factor(self, name: Literal["speed", "tempo"], key: Key) -> float:
        draw = self._chosen(name, key)
        return round(float(draw.uniform(*getattr(self._config, f"{name}_range"))), 3) if draw else 1.0

    def _chosen(self, name: str, key: Key) -> np.random.Generator | None:
        """The effect's own stream for a sample; None where the effect is not for it."""
        if not (share := getattr(self._config, name)):
            return None
        draw = stream(self._config.seed, key, name)
        return draw if draw.random() < share else None

    def _noise(self, count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
        if self.augmentation.noise:
            return self.augmentation.noise.stretch(self._base, count, rate, draw)
        return coloured_noise(count, float(draw.uniform(*self._config.noise_slope)), rate, draw)

    def _babble(self, count: int, rate: int, draw: np.random.Generator) -> np.ndarray:
        people = int(draw.integers(1, self._config.voices_most + 1))
        voices = [self.augmentation.voices.stretch(self._base, count, rate, draw) for _ in range(people)]
        loudest = [max(float(np.abs(voice).max()), 1e-6) for voice in voices]
        return np.stack([voice / most for voice, most in zip(voices, loudest, strict=True)]).sum(axis=0)

    def _response(self, rate: int, draw: np.random.Generator) -> np.ndarray:
        if self.augmentation.room:
            return self.augmentation.room.whole(self._base, rate, draw)
        seconds, direct_db = draw.uniform(*self._config.room_seconds), draw.uniform(*self._config.room_db)
        return room_response(float(seconds), float(direct_db), rate, draw)


def stream(seed: int, key: Key, what: str) -> np.random.Generator:
    """A generator that depends on these alone: no state, the same in every process."""
    text = "\0".join(map(str, (AUGMENT_VERSION, seed, what, *key)))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
