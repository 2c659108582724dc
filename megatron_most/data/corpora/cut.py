"""One row of a speech manifest: a Lhotse MonoCut as a dictionary.

It holds no more than later steps read, so that a million cuts stay small. Every reader of speech makes its rows here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_most.data.corpora.audio_root import Recording

ROUNDING_S = 0.011  # published times are rounded to the millisecond or the centisecond
AlignedWord = tuple[str, float, float]  # word, start and duration in seconds from the cut's start


def make_cut(
    *,
    id: str,
    recording: Recording,
    start: float = 0.0,
    duration: float | None = None,
    channel: int = 0,
    text: str | None,
    speaker: str | None,
    language: str | None,
    words: Sequence[AlignedWord] = (),
) -> dict[str, Any]:
    """The span of `duration` seconds from `start`, all of the rest if None. It is not checked: the writer does that.

    A span that ends behind the recording by no more than published times are rounded ends with the recording.
    """
    rest = recording.duration if start == 0 else round(recording.duration - start, ndigits=8)
    if duration is None or 1e-6 < duration - rest <= ROUNDING_S:
        duration = rest
    said: dict[str, Any] = {
        "id": id,
        "recording_id": recording.id,
        "start": 0.0,
        "duration": duration,
        "channel": channel,
    }
    if text is not None:
        said["text"] = text
    if language is not None:
        said["language"] = language
    if speaker is not None:
        said["speaker"] = speaker
    if words:
        said["alignment"] = {"word": [list(word) for word in words]}
    channels = [0] if recording.num_channels == 1 else list(range(recording.num_channels))
    return {
        "id": id,
        "start": start,
        "duration": duration,
        "channel": channel,
        "supervisions": [said],
        "recording": {
            "id": recording.id,
            "sources": [{"type": "file", "channels": channels, "source": recording.path}],
            "sampling_rate": recording.sampling_rate,
            "num_samples": recording.num_samples,
            "duration": recording.duration,
        },
        "type": "MonoCut",
    }
