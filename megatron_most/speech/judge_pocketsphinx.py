"""PocketsphinxJudge: CMU's recogniser with the English model its package brings. CPU only, no download.

Told which sentences or words can come, it hears them well; free English it hears badly. Time: with sentences about a
tenth of the speech's length or more, by their number; with a loop of more than some hundred words, longer than the
speech itself. Loudness is evened out and silence put around each wave, for vocoders speak as loud as they like.
The acoustic model, half a second to load, is loaded once a thread: judges change its grammar.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError, UpstreamError
from megatron_most.speech.judge import JudgeIdentity, checked_wave, hash_files, read_text

_PEAK, _SILENCE = 0.6, 3200
_HEAD = "#JSGF V1.0;\ngrammar judge;\n"
_NAME = "judge"
_OPTIONS = {"loglevel": "FATAL", "cmn": "batch"}
"""batch: the mean of the cepstra is of this wave alone; live, it would be carried on from the wave before."""
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)*")


def as_words(text: str) -> str:
    """Text as the model's dictionary spells it: lower case, no punctuation."""
    return " ".join(_WORD.findall(text.lower().replace("’", "'")))


def unknown_words(texts: Iterable[str]) -> list[str]:
    """Words of these texts that the dictionary lacks; such sentences cannot be judged."""
    return sorted({word for text in texts for word in as_words(text).split()} - _dictionary())


class PocketsphinxJudge:
    """Hears one of `sentences`, any row of `words`, or what a `jsgf` file allows; told nothing, any English."""

    def __init__(
        self,
        sentences: Sequence[str] | None = None,
        words: Sequence[str] | None = None,
        jsgf: str | Path | None = None,
    ) -> None:
        if sum(given is not None for given in (sentences, words, jsgf)) > 1:
            raise DataError("pocketsphinx: sentences, words and jsgf exclude each other; give one")
        _model()
        if sentences is not None:
            kind, grammar = f"{len(set(sentences))} sentences", _alternatives(sentences, "sentence")
        elif words is not None:
            kind, grammar = f"{len(set(words))} words", _alternatives(words, "word", loop=True)
        elif jsgf is not None:
            kind, grammar = f"grammar {Path(jsgf).name}", read_text(jsgf)
        else:
            kind, grammar = "trigrams", ""
        self._kind, self._grammar = kind, grammar
        _decoder(grammar)  # a grammar that it does not take is told now

    @cached_property
    def identity(self) -> JudgeIdentity:
        files = sorted(path for path in _model().rglob("*") if path.is_file())
        return JudgeIdentity("pocketsphinx", f"en-us, {self._kind}", hash_files(files, self._grammar))

    def transcribe(self, waves: Sequence[np.ndarray]) -> list[str]:
        """See Judge."""
        return [self._hear(checked_wave(wave, index)) for index, wave in enumerate(waves)]

    def _hear(self, wave: np.ndarray) -> str:
        peak = float(np.abs(wave).max(initial=0.0))
        if peak == 0:
            return ""
        padded = np.pad(wave * (_PEAK / peak), _SILENCE)
        decoder = _decoder(self._grammar)
        decoder.start_utt()
        decoder.process_raw((padded * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return re.sub(r"\(\d+\)", "", found.hypstr) if found else ""


def _alternatives(texts: Sequence[str], what: str, loop: bool = False) -> str:
    spelt = sorted({words for text in texts if (words := as_words(text))})
    if not spelt:
        raise DataError(f"pocketsphinx: not one {what} to listen for; give some")
    if missing := unknown_words(spelt):
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(f"pocketsphinx: its dictionary lacks {some}; leave out each {what} that has them")
    either = " | ".join(spelt)
    return f"{_HEAD}public <s> = {f'({either})+' if loop else either};\n"


class _Loaded(threading.local):
    """A thread's decoders: one of free English, one whose grammar changes."""

    free: Any = None
    told: Any = None
    grammar: str | None = None


_LOADED = _Loaded()


def _decoder(grammar: str) -> Any:
    """This thread's decoder, listening for the grammar; "" is free English."""
    from pocketsphinx import Decoder

    if not grammar:
        if _LOADED.free is None:
            _LOADED.free = Decoder(**_OPTIONS)
        return _LOADED.free
    if _LOADED.grammar == grammar:
        return _LOADED.told
    decoder, _LOADED.told, was, _LOADED.grammar = _LOADED.told, None, _LOADED.grammar, None
    if decoder is None:
        decoder = Decoder(lm=None, **_OPTIONS)
    try:
        if was is not None:
            decoder.remove_search(_NAME)
        decoder.add_jsgf_string(_NAME, grammar)
        decoder.activate_search(_NAME)
    except (RuntimeError, ValueError, KeyError) as error:  # the decoder is not used again: who knows what it holds
        raise DataError(
            f"pocketsphinx: it takes the grammar not ({error or type(error).__name__}); every word must be in its "
            "dictionary, and one rule public"
        ) from error
    _LOADED.told, _LOADED.grammar = decoder, grammar
    return decoder


def _model() -> Path:
    try:
        import pocketsphinx
    except ImportError as error:
        raise UpstreamError(
            f"pocketsphinx is not installed ({error}); pip install pocketsphinx (5.1 is known)"
        ) from error
    return Path(pocketsphinx.__file__).parent / "model" / "en-us"


@cache
def _dictionary() -> frozenset[str]:
    with open(_model() / "cmudict-en-us.dict", encoding="utf-8") as file:
        return frozenset(line.split(maxsplit=1)[0] for line in file if line.strip())
