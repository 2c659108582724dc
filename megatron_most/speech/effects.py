"""Effects on a wave: how speed, rooms, noise, narrow bands and codecs change sound. Each is a pure function.

In and out: mono float32 at `rate` samples a second. None changes the number of samples but `at_speed` and `at_tempo`,
whose result has exactly `stretched(len(wave), factor)`; none delays speech, so word times stay true. Results may pass
full scale: `within_scale` is for the end. What draws takes a generator and nothing else of chance.
"""

from __future__ import annotations

import importlib
import io
import math
from typing import Literal

import numpy as np

from megatron_most.errors import DataError

FULL = 0.99
"""The loudest sample of what had to be scaled down."""
_LOWEST_HZ = 20.0
_ECHO_BEGINS_S = 0.002
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def load() -> None:
    """Import what effects use, in the thread that opens them: of threads that import scipy's parts at the same time,
    one can find half of it.
    """
    for name in ("av.filter", "scipy.fft", "scipy.signal", "soundfile", "soxr"):
        importlib.import_module(name)


def stretched(count: int, factor: float) -> int:
    """Samples that are left of `count` at a speed."""
    return max(1, math.floor(count / factor + 0.5))


def at_speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """Played `factor` times as fast: shorter and higher."""
    import soxr

    faster = soxr.resample(wave, factor, 1.0, quality="HQ").astype(np.float32, copy=False)
    return _of_length(faster, stretched(len(wave), factor))


def at_tempo(wave: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """Spoken `factor` times as fast, the pitch kept: FFmpeg's overlap-add, atempo."""
    import av
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=f"1/{rate}")
    tempo, sink = graph.add("atempo", repr(float(factor))), graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="flt", layout="mono")
    frame.sample_rate = rate
    source.push(frame)
    source.push(None)
    parts = []
    while True:
        try:
            parts.append(sink.pull().to_ndarray()[0])  # type: ignore[union-attr]
        except (EOFError, BlockingIOError):
            break
    spoken = np.concatenate(parts) if parts else wave
    return _of_length(spoken, stretched(len(wave), factor))


def in_room(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """With the echo of a room. The response's loudest sample counts as the direct sound: it delays and amplifies
    nothing.
    """
    import scipy.signal

    direct = int(np.abs(response).argmax())
    if not response[direct]:
        return wave
    echo = (response[direct:] / response[direct]).astype(np.float32)
    return scipy.signal.oaconvolve(wave, echo)[: len(wave)].astype(np.float32, copy=False)


def room_response(seconds: float, direct_db: float, rate: int, draw: np.random.Generator) -> np.ndarray:
    """Noise that falls by 60 dB in `seconds`, after a direct sound that has `direct_db` more energy than all of it."""
    count, begins = max(2, round(seconds * rate)), max(1, round(_ECHO_BEGINS_S * rate))
    response = draw.standard_normal(count + begins, np.float32)
    response *= np.exp(np.arange(-begins, count) * np.float32(-math.log(1000) / (seconds * rate)), dtype=np.float32)
    response[:begins] = 0
    response *= math.sqrt(10 ** (-direct_db / 10) / float(np.square(response, dtype=np.float64).sum()))
    response[0] = 1
    return response


def coloured_noise(count: int, slope: float, rate: int, draw: np.random.Generator) -> np.ndarray:
    """Noise whose power falls as 1 / frequency^slope above 20 Hz."""
    import scipy.fft

    white = draw.standard_normal(count, np.float32)
    if not slope:
        return white
    size = scipy.fft.next_fast_len(count, real=True)
    hertz = np.maximum(np.arange(size // 2 + 1, dtype=np.float32) * np.float32(rate / size), np.float32(_LOWEST_HZ))
    spectrum = scipy.fft.rfft(white, size) * np.exp(np.log(hertz) * np.float32(-slope / 2))
    return scipy.fft.irfft(spectrum, size)[:count].astype(np.float32, copy=False)


def with_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """The noise added, `snr_db` below the wave by mean power. Silence stays: no noise is as far below it."""
    power, loud = _power(wave), _power(noise)
    if not power or not loud:
        return wave
    return wave + noise * np.float32(math.sqrt(power / loud) * 10 ** (-snr_db / 20))


def in_band(wave: np.ndarray, highest_hz: float, rate: int) -> np.ndarray:
    """Nothing above `highest_hz`, by resampling down and up again."""
    import soxr

    if 2 * highest_hz >= rate:
        return wave
    narrow = soxr.resample(wave, rate, 2 * highest_hz, quality="HQ")
    return _of_length(
        soxr.resample(narrow, 2 * highest_hz, rate, quality="HQ").astype(np.float32, copy=False), len(wave)
    )


def through_mulaw(wave: np.ndarray) -> np.ndarray:
    """Rounded to 8 bits on the mu-law scale (G.711's curve, mu = 255)."""
    mu = np.float32(255)
    steps = np.rint(np.log1p(mu * np.minimum(np.abs(wave), 1)) * (np.float32(127) / np.log1p(mu)))
    return np.copysign(np.expm1(steps * (np.log1p(mu) / np.float32(127))) / mu, wave)


def through_codec(wave: np.ndarray, kind: Literal["mp3", "opus"], level: float, rate: int) -> np.ndarray:
    """Compressed and decompressed in memory; `level` says how hard, from 0 to below 1."""
    import soundfile

    if kind == "opus" and rate not in OPUS_RATES:
        raise DataError(f"Opus knows no sound of {rate} samples a second; set data.augment.opus = 0")
    file = io.BytesIO()
    form, subtype = ("MP3", "MPEG_LAYER_III") if kind == "mp3" else ("OGG", "OPUS")
    soundfile.write(file, within_scale(wave), rate, format=form, subtype=subtype, compression_level=level)
    file.seek(0)
    return _of_length(soundfile.read(file, dtype="float32")[0], len(wave))


def louder(wave: np.ndarray, db: float) -> np.ndarray:
    return wave * np.float32(10 ** (db / 20))


def within_scale(wave: np.ndarray) -> np.ndarray:
    """Scaled down as a whole where it passes full scale: clipping would be another effect."""
    highest = float(np.abs(wave).max(initial=0.0))
    return wave * np.float32(FULL / highest) if highest > 1 else wave


def _power(wave: np.ndarray) -> float:
    return float(np.square(wave, dtype=np.float64).mean()) if len(wave) else 0.0


def _of_length(wave: np.ndarray, count: int) -> np.ndarray:
    return wave[:count] if len(wave) >= count else np.pad(wave, (0, count - len(wave)))
