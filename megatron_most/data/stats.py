"""What is in datasets, counted from the files: tokens by tag, units, lengths of documents, hours.

In: folders that `build` or `merge` wrote. Out: a DatasetStats each, and a table for the terminal. Every token is read
once, in pieces; documents count in a histogram of lengths, so memory does not grow with them and percentiles are exact.
What `dataset.json` says must agree with what is counted. Units are counted as they are trained on: repeats merged.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_most.data.dataset import open_dataset
from megatron_most.data.dataset_info import INFO, DatasetInfo
from megatron_most.data.indexed import IndexedDocuments, Sequences, is_trained_mode, tag_of_mode
from megatron_most.data.manifest import Manifest, Utterance
from megatron_most.errors import DataError
from megatron_most.runtime import Meter, printable, progress
from megatron_most.vocab import AUDIO, TAG_NAMES, TEXT

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
LONG = (2048, 4096)
"""Lengths that training usually packs to: what is longer needs a policy."""
WIDTH = 120
_TOKENS_AT_ONCE = 1 << 18
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetStats:
    """What was counted in one dataset, beside what it says of itself."""

    name: str
    """The end of its path that tells it from the others."""
    info: DatasetInfo
    tokens_by_tag: tuple[int, ...]
    trained_tokens: int
    unit_counts: NDArray[np.int64]
    """How often each unit of the token map occurs."""
    lengths: NDArray[np.int64]
    """The lengths in tokens that documents have, ascending, each once."""
    length_counts: NDArray[np.int64]
    """How many documents have each of them."""

    @property
    def task(self) -> str:
        return self.info.task

    @property
    def documents(self) -> int:
        return int(self.length_counts.sum())

    @property
    def tokens(self) -> int:
        return sum(self.tokens_by_tag)

    @property
    def trained_share(self) -> float:
        return _share(self.trained_tokens, self.tokens)

    @property
    def hours(self) -> float:
        """Of the speech whose units are in the documents, as `dataset.json` says; but for `info.untimed_units`."""
        return self.info.seconds / 3600

    @property
    def units(self) -> int:
        return int(self.unit_counts.sum())

    @property
    def units_per_second(self) -> float | None:
        """Of the units that are known to last so many seconds."""
        return (self.units - self.info.untimed_units) / self.info.seconds if self.info.seconds else None

    @property
    def text_per_audio(self) -> float | None:
        """Text tokens for each audio token."""
        audio = self.tokens_by_tag[AUDIO]
        return self.tokens_by_tag[TEXT] / audio if audio else None

    @property
    def num_units(self) -> int:
        """Units that could occur: the codec's, which may be fewer than the token map has places for."""
        return self.info.codec.num_units if self.info.codec else self.info.tokens.num_units

    @property
    def unused_units(self) -> int:
        return int((self.unit_counts[: self.num_units] == 0).sum())

    @property
    def unit_entropy(self) -> float:
        """Bits a unit, from how often each occurs; log2(num_units) where all are as frequent."""
        shares = self.unit_counts[self.unit_counts > 0] / max(self.units, 1)
        return float(-(shares * np.log2(shares)).sum()) + 0.0  # never -0.0

    @property
    def unit_perplexity(self) -> float:
        """Of so many equally frequent units the entropy would be the same."""
        return 2.0**self.unit_entropy

    @property
    def longest(self) -> int:
        return int(self.lengths[-1]) if len(self.lengths) else 0

    def percentile(self, percent: float) -> int:
        """The least length that so many per cent of the documents do not exceed; 0 without documents."""
        if not len(self.lengths):
            return 0
        wanted = np.ceil(percent / 100 * self.documents - 1e-9)
        return int(self.lengths[np.searchsorted(np.cumsum(self.length_counts), max(wanted, 1))])

    def share_longer(self, length: int) -> float:
        """Of the documents, by number."""
        return _share(int(self.length_counts[self.lengths > length].sum()), self.documents)


@dataclass(frozen=True)
class SpeakerHours:
    """How much of a manifest is one speaker's; None: of rows that name none."""

    speaker: str | None
    utterances: int
    seconds: float


def count(folders: Sequence[Path | str]) -> tuple[DatasetStats, ...]:
    """Read datasets from end to end. All are opened first: a wrong path is told before hours of counting."""
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise DataError("stats: no data set given; name at least one folder that `build` or `merge` wrote")
    real = [path.resolve() for path in paths]
    if twice := next((path for path, place in zip(paths, real, strict=True) if real.count(place) > 1), None):
        raise DataError(f"{twice}: given more than once; name each data set once")
    names = _names([path.absolute() for path in paths])
    opened = [open_dataset(path) for path in paths]
    try:
        return tuple(_count(name, *found) for name, found in zip(names, opened, strict=True))
    finally:
        for _, documents in opened:
            documents.close()


def count_speakers(manifest: Manifest) -> tuple[SpeakerHours, ...]:
    """Every speaker of a manifest of speech, those with most hours first."""
    found: dict[str | None, tuple[int, float]] = {}
    for row in progress(manifest.rows(), "speakers", "row"):
        if not isinstance(row, Utterance):
            raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; speakers are those of speech")
        utterances, seconds = found.get(row.speaker, (0, 0.0))
        found[row.speaker] = (utterances + 1, seconds + row.duration)
    speakers = (SpeakerHours(name, *sums) for name, sums in found.items())
    return tuple(sorted(speakers, key=lambda one: (-one.seconds, one.speaker or "")))


def facts(stats: DatasetStats) -> dict[str, list[tuple[str, str]]]:
    """All numbers in words: heading -> (what, value). The same headings and whats, in one order, for every dataset."""
    tokens = stats.tokens
    has_units, rate, ratio = stats.units > 0, stats.units_per_second, stats.text_per_audio
    named = [(f"{tag} tokens", n) for tag, n in zip(TAG_NAMES, stats.tokens_by_tag, strict=True)]
    named.append(("trained on", stats.trained_tokens))
    checked = stats.info.overlaps
    return {
        "size": [
            ("documents", f"{stats.documents:,}"),
            ("tokens", f"{tokens:,}"),
            *((what, f"{n:,} ({percent(_share(n, tokens))})" if n else "0") for what, n in named),
        ],
        "speech": [
            ("hours", f"{stats.hours:,.2f}" if stats.info.seconds else "-"),
            ("units of unknown length", f"{stats.info.untimed_units:,}"),
            ("units", f"{stats.units:,}" if has_units else "-"),
            ("units per second", f"{rate:.2f}" if has_units and rate is not None else "-"),
            ("text tokens per audio token", "-" if ratio is None else f"{ratio:.3f}"),
            ("units that never occur", f"{stats.unused_units:,} of {stats.num_units:,}" if has_units else "-"),
            ("unit entropy, bits", f"{stats.unit_entropy:.2f}" if has_units else "-"),
            ("unit perplexity", f"{stats.unit_perplexity:,.1f}" if has_units else "-"),
        ],
        "tokens of a document": [
            ("mean", f"{tokens / max(stats.documents, 1):,.1f}"),
            *(("median" if p == 50 else f"{p} % have at most", f"{stats.percentile(p):,}") for p in PERCENTILES),
            ("longest", f"{stats.longest:,}"),
            *((f"documents over {length:,}", percent(stats.share_longer(length))) for length in LONG),
        ],
        "left out, overlapping": [
            ("rows rejected", f"{sum(stats.info.rejects.values()):,}"),
            ("overlaps with evaluation sets", f"{sum(checked.values()):,}" if checked else "not checked"),
        ],
    }


def as_text(stats: Sequence[DatasetStats]) -> str:
    """A table with a column for each dataset, as many side by side as fit, then units and rejects of each in lines."""
    blocks: list[str] = []
    columns = [_column(one) for one in stats]
    room = WIDTH - max((len(label) for label, _ in columns[0]), default=0) if columns else 0
    while columns:
        taken, used = 0, 0
        while taken < len(columns) and (used + _width(columns[taken]) <= room or not taken):
            used += _width(columns[taken])
            taken += 1
        blocks.append(_table(columns[:taken]))
        columns = columns[taken:]
    return "\n\n".join([*blocks, *("\n".join(_notes(one)) for one in stats)]) + "\n"


def percent(share: float) -> str:
    """None and all look so, and nothing else does."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if share > 1:
        return f"{100 * share:.0f} %"
    if share >= 0.9995:
        return "> 99.9 %"
    return "< 0.01 %" if share < 0.0001 else f"{100 * share:.{2 if share < 0.1 else 1}f} %"


def short(number: int) -> str:
    """1234567 as 1.23M."""
    for size, sign in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (1000, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{sign}"
    return f"{number}"


def span(seconds: float) -> str:
    """Minutes or hours, whichever says more."""
    if seconds < 360:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.2f} h" if seconds < 360000 else f"{seconds / 3600:,.0f} h"


def _count(name: str, info: DatasetInfo, documents: IndexedDocuments) -> DatasetStats:
    by_tag, trained = np.zeros(len(TAG_NAMES), np.int64), 0
    units = np.zeros(info.tokens.num_units, np.int64)
    lengths = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    token = 0
    with Meter(len(documents.tokens), f"stats {name}", _tokens) as meter:
        for chunk in documents.chunks():
            sizes = chunk.lengths.astype(np.int64)
            by_tag += np.bincount(tag_of_mode(chunk.modes), weights=sizes, minlength=len(TAG_NAMES)).astype(np.int64)
            trained += int(sizes[is_trained_mode(chunk.modes)].sum())
            lengths = _add_lengths(lengths, chunk)
            end = token + int(sizes.sum())
            for start in range(token, end, _TOKENS_AT_ONCE):
                ids = documents.tokens[start : min(start + _TOKENS_AT_ONCE, end)]
                units += _count_units(ids, info.tokens.first_unit_id, len(units))
                meter.advance(len(ids))
            token = end
    stats = DatasetStats(
        name=name,
        info=info,
        tokens_by_tag=tuple(by_tag.tolist()),
        trained_tokens=trained,
        unit_counts=units,
        lengths=lengths[0],
        length_counts=lengths[1],
    )
    for what, said, counted in (
        ("tokens_by_tag", info.tokens_by_tag, dict(zip(TAG_NAMES, stats.tokens_by_tag, strict=True))),
        ("trained_tokens", info.trained_tokens, stats.trained_tokens),
        ("longest", info.longest, stats.longest),
    ):
        if said != counted:
            raise DataError(
                f"{documents.folder / INFO}: {what} = {said}, but {counted} in the data; run `verify` on it, then copy "
                "or build it again"
            )
    return stats


def _count_units(ids: NDArray[Any], first: int, num_units: int) -> NDArray[np.int64]:
    """How often each unit is among the ids. Unsigned, ids below the first unit wrap round to beyond the last."""
    unsigned = ids.view(np.uint32) if ids.dtype == np.int32 else ids.astype(np.uint32)
    places = np.minimum(unsigned - np.uint32(first), np.uint32(num_units))
    return np.bincount(places, minlength=num_units + 1)[:num_units]


def _add_lengths(known: tuple[NDArray[np.int64], NDArray[np.int64]], chunk: Sequences) -> tuple[Any, Any]:
    """The histogram of document lengths with a chunk's documents in it."""
    starts = np.cumsum(chunk.counts) - chunk.counts
    found, times = np.unique(np.add.reduceat(chunk.lengths, starts, dtype=np.int64), return_counts=True)
    values, places = np.unique(np.concatenate([known[0], found]), return_inverse=True)
    sums = np.zeros(len(values), np.int64)
    sums[places[: len(known[0])]] += known[1]
    sums[places[len(known[0]) :]] += times
    return values, sums


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has; one depth for all."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _column(stats: DatasetStats) -> list[tuple[str, str]]:
    """Label and value of each line; a heading has no value."""
    lines = [("", printable(stats.name, 32)), ("task", printable(stats.task, 32))]
    for heading, found in facts(stats).items():
        lines += [(heading, ""), *((f"  {label}", value) for label, value in found)]
    return lines


def _width(column: list[tuple[str, str]]) -> int:
    return max(len(value) for _, value in column) + 3


def _table(columns: Sequence[list[tuple[str, str]]]) -> str:
    margin = max(len(label) for label, _ in columns[0])
    lines = []
    for cells in zip(*columns, strict=True):
        values = "".join(value.rjust(_width(column)) for column, (_, value) in zip(columns, cells, strict=True))
        lines.append(f"{cells[0][0]:<{margin}}{values}".rstrip())
    return "\n".join(lines)


def _notes(stats: DatasetStats) -> list[str]:
    lines = [printable(stats.name, WIDTH)]
    if stats.units:
        lines.append(f"  how often each unit occurs, 0 to {len(stats.unit_counts) - 1}: {_bars(stats.unit_counts)}")
        top = np.argsort(-stats.unit_counts, kind="stable")[:8]
        words = (f"{unit} ({percent(int(stats.unit_counts[unit]) / stats.units)})" for unit in top.tolist())
        lines += _wrapped(f"most frequent units: {', '.join(words)}")
    for title, found in (("rejected", stats.info.rejects), ("overlaps", stats.info.overlaps)):
        if found:
            ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
            lines += _wrapped(f"{title}: " + ", ".join(f"{printable(reason)} {n:,}" for reason, n in ranked))
    return lines if len(lines) > 1 else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _bars(counts: NDArray[np.int64]) -> str:
    """A histogram in one line of 60 signs at most; a dot where nothing is."""
    means = np.array([part.mean() for part in np.array_split(counts, min(60, len(counts)))])
    levels = np.ceil(means / means.max() * len(_LEVELS)).astype(int)
    return "".join(_LEVELS[level - 1] if level else "·" for level in levels.tolist())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _tokens(done: float, total: float, seconds: float) -> str:
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} M tokens, {done / 1e6 / max(seconds, 1e-9):.0f} M/s"
