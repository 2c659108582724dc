"""The modality of one token, as a small integer: its tag.

Tags choose a token's expert group. They are the published numbers: 0 text, 1 audio (units, their begin and end marks,
and continuous frames), 2 wave marker, which owns no expert group: only shared experts act on it.
`OUTSIDE` is not a tag: it marks rows of the embedding that no token uses.
"""

from __future__ import annotations

from megatron_most.errors import DataError

TEXT, AUDIO, WAVE = 0, 1, 2
TAG_NAMES = ("text", "audio", "wave")
OUTSIDE = -1


def tag_id(name: str) -> int:
    """The tag of a modality given by name."""
    if name not in TAG_NAMES:
        raise DataError(f"modality {name!r}: no such tag; use one of {', '.join(TAG_NAMES)}")
    return TAG_NAMES.index(name)
