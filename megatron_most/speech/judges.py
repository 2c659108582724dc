"""Judges by name.

load_judge("pocketsphinx", sentences=[...])     small, comes with its model; hears the sentences or words it is told
load_judge("whisper", model=folder)             transformers' Whisper, from a local folder
load_judge("faster-whisper", model=folder)      the same on CTranslate2, where that is installed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_most.errors import DataError
from megatron_most.speech.judge import Judge


def load_judge(name: str, **options: Any) -> Judge:
    """A judge by name. Options: of pocketsphinx `sentences`, `words` or `jsgf`; of the Whispers `model`, `language`,
    `device`.
    """
    if name not in JUDGES:
        raise DataError(f"judge {name!r}: no such judge; there are {', '.join(JUDGES)}")
    taken, make = JUDGES[name]
    options = {key: value for key, value in options.items() if value is not None}
    if wrong := sorted(options.keys() - taken):
        raise DataError(f"judge {name}: no option {', '.join(wrong)}; it takes {', '.join(sorted(taken))}")
    return make(options)


def _pocketsphinx(options: Mapping[str, Any]) -> Judge:
    from megatron_most.speech.judge_pocketsphinx import PocketsphinxJudge

    return PocketsphinxJudge(**options)


def _whisper(options: Mapping[str, Any]) -> Judge:
    from megatron_most.speech.judge_whisper import WhisperJudge

    return WhisperJudge(**options)


def _faster_whisper(options: Mapping[str, Any]) -> Judge:
    from megatron_most.speech.judge_whisper import FasterWhisperJudge

    return FasterWhisperJudge(**options)


_OF_WHISPER = {"model", "language", "device"}
JUDGES: Mapping[str, tuple[set[str], Callable[[Mapping[str, Any]], Judge]]] = {
    "pocketsphinx": ({"sentences", "words", "jsgf"}, _pocketsphinx),
    "whisper": (_OF_WHISPER, _whisper),
    "faster-whisper": (_OF_WHISPER, _faster_whisper),
}
