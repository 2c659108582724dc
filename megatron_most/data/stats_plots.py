"""The plots of a page about datasets, as SVG that is part of the page.

Matplotlib draws in stand-in colours which become variables of the page's style, so plots follow the reader's light or
dark scheme. Names are hostile: matplotlib reads no formulas, and text between tags is left alone. Equal inputs give
equal bytes. Whoever draws does so inside `drawing()`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_most.data.stats import LONG, DatasetStats, percent, printable, short
from megatron_most.data.stats_examples import Example
from megatron_most.vocab import TAG_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"ink": "#fe0101", "muted": "#fe0102", "grid": "#fe0103"} | {
    name: f"#fe02{tag:02d}" for tag, name in enumerate(TAG_NAMES)
}
_INCHES, _LEFT, _RIGHT = 4.2, 0.45, 0.08  # of a plot: its width and margins; the page scales it
_SIGNS, _PANEL_SIGNS = 55, 47  # that fit side by side above a bar, and above a panel
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
    figure, [axes] = _panels(1, 0.36 * len(rows), edge=0.0, above=0.0, below=0.04)
    axes.set(xlim=(0, 1), ylim=(len(rows), 0))
    axes.axis("off")
    for y, (name, words, parts) in enumerate(rows):
        axes.text(0, y + 0.45, printable(name, max(_SIGNS - len(words), 8)), color=_COLOURS["ink"])
        axes.text(1, y + 0.45, words, color=_COLOURS["muted"], ha="right")
        axes.barh(y + 0.74, 1, 0.26, color=_COLOURS["grid"])
        ends = np.cumsum([share for share, _ in parts])
        for end, (share, colour) in zip(ends, parts, strict=True):
            axes.barh(y + 0.74, share, 0.26, left=end - share, color=_COLOURS[colour])
    return _svg(figure, plot)


def _plot_units(stats: Sequence[DatasetStats], is_ranked: bool) -> Any:
    """The share of each unit, by its number or by its rank."""
    figure, panels = _panels(len(stats), 0.95, above=0.27, below=0.42)
    for axes, one in zip(panels, stats, strict=True):
        size = len(one.unit_counts)
        shares = (np.sort(one.unit_counts)[::-1] if is_ranked else one.unit_counts) / one.units
        edges = np.linspace(0, size, min(size, _MOST_BINS) + 1).round().astype(int)
        means = np.add.reduceat(shares, edges[:-1]) / np.diff(edges)
        axes.fill_between(edges, np.append(means, means[-1]), step="post", color=_COLOURS["audio"], lw=0)
        axes.axhline(1 / one.num_units, color=_COLOURS["muted"], lw=0.8, dashes=(3, 2))
        _title(axes, one.name, f"{one.num_units - one.unused_units:,} of {one.num_units:,} units occur")
        axes.set(xlim=(0, size), ylim=(0, means.max() * 1.08))
        _ticks(axes, lambda x: f"{x:,.0f}", percent_ticks=True)
    panels[-1].set_xlabel("rank" if is_ranked else "unit")
    return _svg(figure, f"units {is_ranked}")


def _plot_lengths(stats: Sequence[DatasetStats]) -> Any:
    """How long documents are, on one logarithmic scale for all."""
    longest = max([one.longest for one in stats] + [2])
    shortest = min([int(one.lengths[0]) for one in stats if one.documents] + [longest])
    low, high = int(np.floor(np.log2(shortest) * 4)), int(np.floor(np.log2(longest) * 4)) + 1
    edges = 2.0 ** (np.arange(low, high + 1) / 4)
    step = max(1, -(-(high - low) // (4 * 6)))
    figure, panels = _panels(len(stats), 0.62, above=0.27, below=0.42)
    for axes, one in zip(panels, stats, strict=True):
        counts, _ = np.histogram(one.lengths, edges, weights=one.length_counts)
        shares = counts / max(one.documents, 1)
        axes.fill_between(edges, np.append(shares, shares[-1]), step="post", color=_COLOURS["ink"], lw=0, alpha=0.6)
        for length in LONG:
            if edges[0] < length < edges[-1]:
                axes.axvline(length, color=_COLOURS["muted"], lw=0.8, dashes=(3, 2))
        _title(axes, one.name, f"median {one.percentile(50):,} · 95 % ≤ {one.percentile(95):,}")
        axes.set_xscale("log", base=2)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(shares.max() * 1.08, 1e-9)))
        powers = range(-(-low // 4), high // 4 + 1)
        axes.set_xticks([2**power for power in powers if power % step == 0])
        _ticks(axes, lambda x: f"{x:,.0f}", percent_ticks=True)
    panels[-1].set_xlabel("tokens of a document")
    return _svg(figure, "lengths")


def draw_example(example: Example, name: str) -> Any:
    """The wave above the units, on one scale of time."""
    units, samples = example.units, example.wave
    seconds = len(samples) / example.codec.sample_rate
    figure, (above, below) = _panels(2, 0.62, above=0.06, below=0.42)
    edges = np.linspace(0, len(samples), min(len(samples), 400), endpoint=False).astype(int)
    highs, lows = (cut.reduceat(samples, edges) for cut in (np.maximum, np.minimum))
    above.fill_between(edges / example.codec.sample_rate, lows, highs, color=_COLOURS["muted"], lw=0.3)
    loudest = max(float(np.abs(samples).max()), 1e-4) * 1.05
    above.set(xlim=(0, seconds), ylim=(-loudest, loudest))
    above.axis("off")
    ends = np.cumsum(units.durations, dtype=np.int64) * units.frame_s
    times = np.stack([ends - units.durations * units.frame_s, ends, np.full(len(ends), np.nan)], axis=1)
    below.plot(times.ravel(), np.repeat(units.units, 3), color=_COLOURS["audio"], lw=2, solid_capstyle="butt")
    below.set(xlim=(0, seconds), ylim=(-0.04 * example.codec.num_units, 1.04 * example.codec.num_units))
    below.set(xlabel="seconds", ylabel="unit")
    _ticks(below, lambda x: f"{x:g}")
    return _svg(figure, name)


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user's settings; no pyplot, so no window and nothing left open."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # a name in a script that the font lacks: the reader's browser has it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings())
        yield


def _settings() -> Any:
    named = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
    named |= {"axes.edgecolor": _COLOURS["grid"], "axes.labelcolor": _COLOURS["muted"], "axes.labelsize": 9}
    ticks = {"color": _COLOURS["grid"], "labelcolor": _COLOURS["muted"], "labelsize": 8, "major.size": 3}
    return named | {f"{side}tick.{what}": value for side in "xy" for what, value in ticks.items()}


def _panels(count: int, height: float, *, above: float, below: float, edge: float = _LEFT) -> tuple[Figure, list[Axes]]:
    """Axes one under the other, in inches, each with room for a title above; below the last, room for a label."""
    from matplotlib.figure import Figure

    row = above + height + 0.26 * (below > 0.2)
    total = count * row + below - 0.26 * (below > 0.2)
    figure = Figure(figsize=(_INCHES, total))
    width = (_INCHES - edge - (_RIGHT if edge else 0)) / _INCHES
    tops = [total - i * row - above for i in range(count)]
    return figure, [figure.add_axes((edge / _INCHES, (top - height) / total, width, height / total)) for top in tops]


def _title(axes: Axes, name: str, words: str) -> None:
    axes.set_title(
        printable(name, max(_PANEL_SIGNS - len(words), 8)), loc="left", fontsize=9, color=_COLOURS["ink"], pad=5
    )
    axes.set_title(words, loc="right", fontsize=9, color=_COLOURS["muted"], pad=5)


def _ticks(axes: Axes, words: Callable[[float], str], percent_ticks: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(3 if percent_ticks else 4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %" if percent_ticks else f"{y:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=_COLOURS["grid"], lw=0.6)
    axes.set_axisbelow(True)


def _svg(figure: Figure, name: str) -> Any:
    """The drawing as an element of the page: its colours are the page's, its size that of its place."""
    import matplotlib
    from markupsafe import Markup

    matplotlib.rcParams["svg.hashsalt"] = name  # ids within it are then its own, and the same each time
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)

    def page_like(tag: re.Match[str]) -> str:  # in tags only: text between them is data
        named = re.sub(r' (?:id="[A-Za-z][\w.]*_\d+"|xmlns(?::\w+)?="[^"]*"|version="[^"]*")', "", tag[0])
        named = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", named)
        for name, colour in _COLOURS.items():
            named = named.replace(colour, f"var(--{name})")
        return re.sub(r' (?:width|height)="[\d.]+pt"', "", named) if named.startswith("<svg") else named

    return Markup(re.sub(r"<[^>]*>", page_like, text))
