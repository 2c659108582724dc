"""The plots of a page about datasets, as SVG that is part of the page. Whoever draws does so inside `drawing()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_most.data.stats import LONG, DatasetStats, percent, short
from megatron_most.data.stats_examples import Example
from megatron_most.runtime import printable
from megatron_most.runtime.drawing import colour, make_panels, svg, ticks, title
from megatron_most.vocab import TAG_NAMES

_SIGNS = 55  # that fit side by side above a bar
_MOST_BINS = 600


def draw_plots(stats: Sequence[DatasetStats]) -> dict[str, Any]:
    """Name -> SVG; those of units only where there are units."""
    most = max((one.tokens for one in stats), default=0) or 1
    counts, shares = [], []
    for one in stats:
        parts = [(n, tag) for n, tag in zip(one.tokens_by_tag, TAG_NAMES, strict=True) if n]
        words = " · ".join(f"{tag} {short(n)}" for n, tag in parts)
        counts.append((one.name, words, [(n / most, tag) for n, tag in parts]))
        words = " · ".join(f"{tag} {percent(n / one.tokens)}" for n, tag in parts)
        shares.append((one.name, words, [(n / one.tokens, tag) for n, tag in parts]))
    plots = {"counts": draw_bars("counts", counts), "shares": draw_bars("shares", shares)}
    plots["lengths"] = _plot_lengths(stats)
    if spoken := [one for one in stats if one.units]:
        plots |= {"units": _plot_units(spoken, False), "ranks": _plot_units(spoken, True)}
    return plots


def draw_bars(plot: str, rows: Sequence[tuple[str, str, list[tuple[float, str]]]]) -> Any:
    """Rows of (name, value in words, parts as shares of the full width, each of a colour): text above its bar."""
    figure, [axes] = make_panels(1, 0.36 * len(rows), edge=0.0, above=0.0, below=0.04)
    axes.set(xlim=(0, 1), ylim=(len(rows), 0))
    axes.axis("off")
    for y, (name, words, parts) in enumerate(rows):
        axes.text(0, y + 0.45, printable(name, max(_SIGNS - len(words), 8)), color=colour("ink"))
        axes.text(1, y + 0.45, words, color=colour("muted"), ha="right")
        axes.barh(y + 0.74, 1, 0.26, color=colour("grid"))
        ends = np.cumsum([share for share, _ in parts])
        for end, (share, tag) in zip(ends, parts, strict=True):
            axes.barh(y + 0.74, share, 0.26, left=end - share, color=colour(tag))
    return svg(figure, plot)


def _plot_units(stats: Sequence[DatasetStats], is_ranked: bool) -> Any:
    """The share of each unit, by its number or by its rank."""
    figure, panels = make_panels(len(stats), 0.95, above=0.27, below=0.42)
    for axes, one in zip(panels, stats, strict=True):
        size = len(one.unit_counts)
        shares = (np.sort(one.unit_counts)[::-1] if is_ranked else one.unit_counts) / one.units
        edges = np.linspace(0, size, min(size, _MOST_BINS) + 1).round().astype(int)
        means = np.add.reduceat(shares, edges[:-1]) / np.diff(edges)
        axes.fill_between(edges, np.append(means, means[-1]), step="post", color=colour("audio"), lw=0)
        axes.axhline(1 / one.num_units, color=colour("muted"), lw=0.8, dashes=(3, 2))
        title(axes, one.name, f"{one.num_units - one.unused_units:,} of {one.num_units:,} units occur")
        axes.set(xlim=(0, size), ylim=(0, means.max() * 1.08))
        ticks(axes, lambda x: f"{x:,.0f}", percent_ticks=True)
    panels[-1].set_xlabel("rank" if is_ranked else "unit")
    return svg(figure, f"units {is_ranked}")


def _plot_lengths(stats: Sequence[DatasetStats]) -> Any:
    """How long documents are, on one logarithmic scale for all."""
    longest = max([one.longest for one in stats] + [2])
    shortest = min([int(one.lengths[0]) for one in stats if one.documents] + [longest])
    low, high = int(np.floor(np.log2(shortest) * 4)), int(np.floor(np.log2(longest) * 4)) + 1
    edges = 2.0 ** (np.arange(low, high + 1) / 4)
    step = max(1, -(-(high - low) // (4 * 6)))
    figure, panels = make_panels(len(stats), 0.62, above=0.27, below=0.42)
    for axes, one in zip(panels, stats, strict=True):
        counts, _ = np.histogram(one.lengths, edges, weights=one.length_counts)
        shares = counts / max(one.documents, 1)
        axes.fill_between(edges, np.append(shares, shares[-1]), step="post", color=colour("ink"), lw=0, alpha=0.6)
        for length in LONG:
            if edges[0] < length < edges[-1]:
                axes.axvline(length, color=colour("muted"), lw=0.8, dashes=(3, 2))
        title(axes, one.name, f"median {one.percentile(50):,} · 95 % ≤ {one.percentile(95):,}")
        axes.set_xscale("log", base=2)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(shares.max() * 1.08, 1e-9)))
        powers = range(-(-low // 4), high // 4 + 1)
        axes.set_xticks([2**power for power in powers if power % step == 0])
        ticks(axes, lambda x: f"{x:,.0f}", percent_ticks=True)
    panels[-1].set_xlabel("tokens of a document")
    return svg(figure, "lengths")


def draw_example(example: Example, name: str) -> Any:
    """The wave above the units, on one scale of time."""
    units, samples = example.units, example.wave
    seconds = len(samples) / example.codec.sample_rate
    figure, (above, below) = make_panels(2, 0.62, above=0.06, below=0.42)
    edges = np.linspace(0, len(samples), min(len(samples), 400), endpoint=False).astype(int)
    highs, lows = (cut.reduceat(samples, edges) for cut in (np.maximum, np.minimum))
    above.fill_between(edges / example.codec.sample_rate, lows, highs, color=colour("muted"), lw=0.3)
    loudest = max(float(np.abs(samples).max()), 1e-4) * 1.05
    above.set(xlim=(0, seconds), ylim=(-loudest, loudest))
    above.axis("off")
    ends = np.cumsum(units.durations, dtype=np.int64) * units.frame_s
    times = np.stack([ends - units.durations * units.frame_s, ends, np.full(len(ends), np.nan)], axis=1)
    below.plot(times.ravel(), np.repeat(units.units, 3), color=colour("audio"), lw=2, solid_capstyle="butt")
    below.set(xlim=(0, seconds), ylim=(-0.04 * example.codec.num_units, 1.04 * example.codec.num_units))
    below.set(xlabel="seconds", ylabel="unit")
    ticks(below, lambda x: f"{x:g}")
    return svg(figure, name)
