"""What is done to training speech so that a model does not learn the sameness of synthetic voices; all of it off.

One table, [data.augment], serves two callers: `prepare_data.py augment` reads it from a recipe and changes sound before
units are made of it; training applies it to sound that it hears itself (continuous frames). [data.spec_augment] masks
frames in training. A number named as an effect is its probability, an utterance at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_most.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Effects on sound, in the order in which they are applied. A range is drawn from evenly."""

    seed: int = 0
    """With an utterance's id it decides every draw."""
    speed: float = 0.0
    """Played faster or slower: length and pitch change together."""
    speed_range: Range = (0.9, 1.1)
    """Times as fast."""
    tempo: float = 0.0
    """Spoken faster or slower: the pitch stays."""
    tempo_range: Range = (0.85, 1.15)
    """Times as fast."""
    room: float = 0.0
    """An echo: a response of `room_folders`, or one made up where there are none."""
    room_seconds: Range = (0.1, 0.6)
    """Made up: in which the echo falls by 60 dB."""
    room_db: Range = (0.0, 15.0)
    """Made up: the direct sound over the echo."""
    room_folders: tuple[str, ...] = ()
    """Folders of recorded room responses, as sound files."""
    noise: float = 0.0
    """A stretch of a file of `noise_folders`, or noise made up where there are none."""
    noise_db: Range = (5.0, 30.0)
    """The utterance over the noise, by mean power: the SNR."""
    noise_slope: Range = (0.0, 2.0)
    """Made up: power falls with frequency to this power (0 white, 1 pink, 2 brown)."""
    noise_folders: tuple[str, ...] = ()
    """Folders of recorded noise, as sound files."""
    voices: float = 0.0
    """Other people in the background: stretches of files of `voices_folders`, one to `voices_most` at once."""
    voices_db: Range = (10.0, 25.0)
    """The utterance over each of them."""
    voices_most: int = 3
    """At once, at most."""
    voices_folders: tuple[str, ...] = ()
    """Folders of speech, as sound files."""
    band: float = 0.0
    """Nothing above a frequency, as of a telephone or an old recording."""
    band_hz: Range = (3000.0, 7000.0)
    """That frequency."""
    mulaw: float = 0.0
    """Rounded to 8 bits on the mu-law scale."""
    mp3: float = 0.0
    """Through the MP3 codec. It takes a hundredth of real time, so keep its probability low."""
    opus: float = 0.0
    """Through the Opus codec. It takes a thirtieth of real time, so keep its probability low."""
    coded_level: Range = (0.4, 0.9)
    """mp3, opus: how hard they compress, from 0 to below 1, as libsndfile counts it."""
    volume: float = 0.0
    """Louder or softer. What would pass full scale is scaled down as a whole, never clipped."""
    volume_db: Range = (-15.0, 6.0)
    """By how much."""

    @property
    def is_on(self) -> bool:
        return any(getattr(self, name) for name in EFFECTS)

    @property
    def changes_length(self) -> bool:
        return bool(self.speed or self.tempo)


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """Masks on continuous frames in training. What they hide becomes the utterance's mean: others must tell it."""

    seed: int = 0
    """With an utterance's id it decides every mask."""
    time_masks: int = 0
    """Stretches of time hidden in an utterance; 0 = none."""
    time_frames: int = 10
    """Frames of one, at most; and never more than a fifth of the utterance."""
    feature_masks: int = 0
    """Bands of neighbouring features hidden in the whole utterance; 0 = none."""
    feature_share: float = 0.15
    """Of the features in one, at most."""

    @property
    def is_on(self) -> bool:
        return bool(self.time_masks or self.feature_masks)


EFFECTS = ("speed", "tempo", "room", "noise", "voices", "band", "mulaw", "mp3", "opus", "volume")
_LIMITS = {
    "speed_range": (0.5, 2.0), "tempo_range": (0.5, 2.0), "room_seconds": (0.02, 5.0), "room_db": (-20.0, 60.0),
    "noise_db": (-20.0, 100.0), "noise_slope": (-2.0, 4.0), "voices_db": (-20.0, 100.0), "band_hz": (100.0, 96000.0),
    "coded_level": (0.0, 0.95), "volume_db": (-60.0, 30.0),
}  # fmt: skip
_MOST_VOICES, _MOST_MASKS = 16, 100


def check_augment(config: AugmentConfig, at: str = "data.augment") -> None:
    """ConfigError, by field, where a probability or a range is none, or background voices have no files."""
    for name in EFFECTS:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ConfigError(f"{at}.{name}", value, "is no probability", "use 0 to 1")
    for name, (lowest, highest) in _LIMITS.items():
        low, high = value = getattr(config, name)
        if not lowest <= low <= high <= highest:
            raise ConfigError(f"{at}.{name}", value, "is no range", f"give two numbers of {lowest:g} to {highest:g}")
    if not 1 <= config.voices_most <= _MOST_VOICES:
        raise ConfigError(f"{at}.voices_most", config.voices_most, "is no number of people", f"use 1 to {_MOST_VOICES}")
    if config.voices and not config.voices_folders:
        wrong = "voices cannot be made up, and there are no files of them"
        raise ConfigError(f"{at}.voices_folders", config.voices_folders, wrong, "name folders of speech, or voices = 0")


def check_spec_augment(config: SpecAugmentConfig, at: str = "data.spec_augment") -> None:
    for name, most in (("time_masks", _MOST_MASKS), ("feature_masks", _MOST_MASKS), ("time_frames", 10**4)):
        low = 1 if name == "time_frames" else 0
        if not low <= (value := getattr(config, name)) <= most:
            raise ConfigError(f"{at}.{name}", value, "is no such number", f"use {low} to {most}")
    if not 0 < config.feature_share <= 0.5:
        raise ConfigError(f"{at}.feature_share", config.feature_share, "is no such share", "use more than 0, up to 0.5")
