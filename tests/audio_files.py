"""Sound files to test with: voices made of gliding tones and noise bursts, in any format that can be written here.

Lossless formats go through soundfile, the rest through PyAV. Long writes go in blocks: libsndfile's Vorbis encoder
overruns its stack on one long write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 8192


def voice(seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 in -1..1, (samples,) or (samples, channels): syllables of a gliding tone with overtones, and hisses."""
    rng = np.random.default_rng(seed)
    num = round(seconds * rate)
    t = np.arange(num) / rate
    sound = np.zeros((num, channels))
    for channel in range(channels):
        pitch = 2 * np.pi * np.cumsum(130 + 40 * np.sin(2 * np.pi * rng.uniform(0.2, 0.7) * t)) / rate
        tone = sum(np.sin(k * pitch + rng.uniform(0, 6)) / k for k in range(1, 9))
        beat = np.sin(2 * np.pi * rng.uniform(1.5, 3.5) * t + rng.uniform(0, 6))
        sound[:, channel] = 0.2 * tone * np.clip(beat, 0, 1) + 0.05 * rng.standard_normal(num) * np.clip(-beat, 0, 1)
    sound = np.clip(sound + 0.001 * rng.standard_normal((num, channels)), -1, 1).astype(np.float32)
    return sound[:, 0] if channels == 1 else sound


def write_sound(path: Path, samples: np.ndarray, rate: int, **how: Any) -> Path:
    """By soundfile; `how` is its format and subtype, where the extension does not say them."""
    import soundfile

    channels = 1 if samples.ndim == 1 else samples.shape[1]
    how.setdefault("format", path.suffix[1:].upper())
    with soundfile.SoundFile(path, "w", samplerate=rate, channels=channels, **how) as file:
        for at in range(0, len(samples), _BLOCK):
            file.write(samples[at : at + _BLOCK])
    return path


def write_compressed(
    path: Path,
    samples: np.ndarray,
    rate: int,
    codec: str,
    container: str,
    codec_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """By PyAV, mono, 64 kbit/s. `options` are the container's, such as movflags."""
    import av

    with av.open(str(path), "w", format=container, options=options) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        stream.codec_context.options = codec_options or {}
        stream.codec_context.open()
        kind = stream.codec_context.format.name
        size = stream.codec_context.frame_size or 1024
        for at in range(0, len(samples), size):
            block = samples[None, at : at + size]
            if kind[0] == "s":
                bits = int(kind[1:3])
                block = np.round(block * 32767.0).astype(f"int{bits}") << (bits - 16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=kind, layout="mono")
            frame.sample_rate, frame.pts = rate, at
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
