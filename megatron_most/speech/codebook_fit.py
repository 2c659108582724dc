"""Fit a CodebookVocoder: one pass over waves and their units, then a few sweeps over tables.

    minimise  sum_t |y_t - mean - sum_k E_k[u(t + k)] - V[s]|^2 + sum of ridge |E|^2 and |V|^2

by backfitting: each table in turn is set to the (shrunk) mean of what the others leave. Then the tables are stretched
until mels vary as much as in real speech: means vary less, and that is heard as mumbling. The pass keeps only counts of
pairs of units and sums of columns by unit, so memory does not grow with the speech.
"""

# K = 2 context + 1 positions and one for the speaker, U units + 1, W values of a frame

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.speech.codebook import CodebookVocoder, columns_of
from megatron_most.speech.codec import CodecIdentity
from megatron_most.speech.source_filter import NUM_MELS, NUM_VALUES, SourceFilter
from megatron_most.speech.units import UnitSequence

_SWEEPS = 20
_RIDGE, _RIDGE_MIDDLE = 3.0, 0.1
_MOST_STRETCH = 1.5
_DURATION_PRIOR = 3.0  # as if each unit had been heard so often with the mean duration


def fit_codebook(
    spoken: Iterable[tuple[np.ndarray, UnitSequence, int]],
    codec: CodecIdentity,
    *,
    num_speakers: int = 1,
    context: int = 2,
) -> CodebookVocoder:
    """From (wave, its units, its speaker) of many utterances, read once."""
    from scipy.sparse import coo_array

    if context < 0 or num_speakers < 1:
        raise DataError(f"codebook: context {context} and {num_speakers} speakers; give 0 or more, and 1 or more")
    num_columns, hop = columns_of(codec)
    sound, width, size = SourceFilter(codec.sample_rate, hop), num_columns * NUM_VALUES, codec.num_units + 1
    sizes = [size] * (2 * context + 1) + [num_speakers]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    sums = np.zeros((starts[-1], width))
    total, squares, frames = np.zeros(width), np.zeros(width), 0
    together = coo_array((starts[-1], starts[-1])).tocsr()
    run_frames, runs = np.zeros(codec.num_units), np.zeros(codec.num_units)
    for wave, units, speaker in spoken:
        units_T = units.per_frame().astype(np.int64)
        if not len(units_T):
            continue
        if units_T.max() >= codec.num_units or not 0 <= speaker < num_speakers:
            raise DataError(
                f"codebook: unit {units_T.max()} or speaker {speaker} beyond {codec}, {num_speakers} voices"
            )
        y_TW = sound.analyse(wave, len(units_T) * num_columns).reshape(len(units_T), width)
        padded = np.pad(units_T, context, constant_values=codec.num_units)
        features = [padded[k : k + len(units_T)] for k in range(2 * context + 1)]
        rows_TK = np.stack([*features, np.full(len(units_T), speaker)], axis=1) + starts[:-1]
        total, squares = total + y_TW.sum(axis=0), squares + (y_TW**2).sum(axis=0)
        frames += len(units_T)
        hot = coo_array(
            (np.ones(rows_TK.size), (rows_TK.ravel(), np.repeat(np.arange(len(units_T)), rows_TK.shape[1]))),
            shape=(starts[-1], len(units_T)),
        ).tocsr()
        sums += hot @ y_TW
        together = together + hot @ hot.T
        np.add.at(run_frames, units.units, units.durations)
        np.add.at(runs, units.units, 1)
    if not frames:
        raise DataError("codebook: no speech to fit on")
    mean = total / frames
    counts = together.diagonal()
    residual = sums - counts[:, None] * mean
    tables = _backfit(together, residual, counts, starts, context)
    tables *= _stretch(together, tables, counts, squares / frames - mean**2, frames)
    typical = run_frames.sum() / max(runs.sum(), 1)
    return CodebookVocoder(
        codec,
        {
            "mean": mean,
            "neighbours": tables[: starts[-2]].reshape(2 * context + 1, size, width),
            "voices": tables[starts[-2] :],
            "durations": (run_frames + _DURATION_PRIOR * typical) / (runs + _DURATION_PRIOR),
        },
    )


def _backfit(together: Any, residual: np.ndarray, counts: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """Gauss-Seidel on the normal equations, a table at a time, the middle one first."""
    tables = np.zeros_like(residual)
    order = sorted(range(len(starts) - 1), key=lambda k: abs(k - context))
    blocks = [together[starts[k] : starts[k + 1]] for k in range(len(starts) - 1)]
    for _ in range(_SWEEPS):
        for k in order:
            own = slice(starts[k], starts[k + 1])
            left = residual[own] - blocks[k] @ tables + counts[own, None] * tables[own]
            tables[own] = left / (counts[own, None] + (_RIDGE_MIDDLE if k == context else _RIDGE))
    return tables


def _stretch(together: Any, tables: np.ndarray, counts: np.ndarray, variance_W: np.ndarray, frames: int) -> np.ndarray:
    """Of mels: the spread of real speech over that of what the tables give. Voicing and pitch stay as they are."""
    given_W = ((together @ tables) * tables).sum(axis=0) / frames - (counts @ tables / frames) ** 2
    stretch_W = np.sqrt(np.maximum(variance_W, 0) / np.maximum(given_W, 1e-9))
    is_mel_W = np.arange(len(stretch_W)) % NUM_VALUES < NUM_MELS
    return np.where(is_mel_W, np.clip(stretch_W, 1.0, _MOST_STRETCH), 1.0)
