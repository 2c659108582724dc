"""One HTML file that shows what is in datasets: numbers, plots, origins, and a few utterances to hear.

In: DatasetStats, examples found by a hash of utterance ids, hours of speakers. Out: a page that loads nothing from
anywhere: sounds and plots are inside it. Equal inputs give equal bytes.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.dataset_info import Source
from megatron_most.data.stats import DatasetStats, SpeakerHours, facts, percent, short, span
from megatron_most.data.stats_examples import Example, find_examples
from megatron_most.data.stats_plots import draw_bars, draw_example, draw_plots
from megatron_most.runtime import page
from megatron_most.runtime.drawing import drawing

__all__ = ["TEMPLATE", "Example", "find_examples", "require_page", "write_page"]

TEMPLATE = Path(__file__).with_name("pages") / "stats.html.jinja"
_MOST_SPEAKERS = 10


def require_page(out: Path) -> None:
    """Raise where no page could be written: better before hours of counting than after."""
    page.require_page(out, "or leave out --out to see the numbers only")


def write_page(
    stats: Sequence[DatasetStats], examples: Sequence[Example], out: Path, speakers: Sequence[SpeakerHours] = ()
) -> None:
    """Write the page; one that is there is replaced."""
    require_page(out)
    with drawing():
        page.write_page(
            out,
            TEMPLATE,
            title=" · ".join(one.name for one in stats),
            tiles=_tiles(stats),
            facts=_side_by_side(stats),
            plots=draw_plots(stats),
            speakers=_speakers(speakers),
            examples=[_example(number, one) for number, one in enumerate(examples)],
            stats=stats,
            sources=_sources(stats),
        )


def _tiles(stats: Sequence[DatasetStats]) -> list[tuple[str, str]]:
    seconds = sum(one.info.seconds for one in stats)
    units, tokens = sum(one.units for one in stats), sum(one.tokens for one in stats)
    spoken = [one for one in stats if one.info.seconds]
    rate = sum(one.units - one.info.untimed_units for one in spoken) / seconds if seconds else None
    return [
        (short(tokens), "tokens"),
        (short(sum(one.documents for one in stats)), "documents"),
        (span(seconds) if seconds else "-", "of speech"),
        (short(units), "units"),
        ("-" if rate is None else f"{rate:.1f}", "units per second"),
        (percent(sum(one.trained_tokens for one in stats) / max(tokens, 1)), "trained on"),
    ]


def _side_by_side(stats: Sequence[DatasetStats]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Heading -> label -> the value of each dataset."""
    columns = [facts(one) for one in stats]
    return [
        (heading, [(label, [column[heading][i][1] for column in columns]) for i, (label, _) in enumerate(found)])
        for heading, found in (columns[0] if columns else {}).items()
    ]


def _sources(stats: Sequence[DatasetStats]) -> list[tuple[Source, str]]:
    """Each manifest once, with the datasets that use it."""
    users: dict[Source, list[str]] = {}
    for one in stats:
        for source in one.info.provenance:
            users.setdefault(source, []).append(one.name)
    return [(source, ", ".join(names)) for source, names in users.items()]


def _example(number: int, example: Example) -> dict[str, Any]:
    """What the template shows of an example."""
    from markupsafe import Markup

    units, frame_ms = example.units, example.codec.frame_s * 1000
    runs = zip(units.units.tolist(), units.durations.tolist(), strict=True)
    seconds = len(example.wave) / example.codec.sample_rate
    return {
        "row": example.utterance,
        "seconds": f"{seconds:.2f} s",
        "wav": Markup(base64.b64encode(_wav(example.wave, example.codec.sample_rate)).decode()),
        "units": " ".join(f"{unit}×{frames}" if frames > 1 else f"{unit}" for unit, frames in runs),
        "rate": f"{len(units):,} units, {len(units) / seconds:.1f} per second",
        "codec": f"{example.codec.name} ({example.codec.hash[:12]}), frames of {frame_ms:g} ms",
        "plot": draw_example(example, f"example {number}"),
    }


def _wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.clip(np.round(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


def _speakers(speakers: Sequence[SpeakerHours]) -> dict[str, Any] | None:
    if not speakers:
        return None
    top, total = speakers[:_MOST_SPEAKERS], sum(one.seconds for one in speakers)
    bars = [
        (one.speaker or "(not named)", f"{span(one.seconds)} · {one.utterances:,} utterances",
         [(one.seconds / top[0].seconds, "audio")])
        for one in top
    ]  # fmt: skip
    share = percent(sum(one.seconds for one in top) / total)
    return {"plot": draw_bars("speakers", bars), "shown": len(top), "of": f"{len(speakers):,}", "share": share}
