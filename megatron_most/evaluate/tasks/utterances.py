"""What asr and tts share: a manifest's utterances, how answers to them are made, and errors in words and characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_most.evaluate.decoding import Decoding
from megatron_most.evaluate.prompts import Prompts
from megatron_most.evaluate.speech import Utterances
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import About, Record
from megatron_most.generate import Mode
from megatron_most.score import Normaliser, character_errors, find_normaliser, score_of, word_errors


class OfUtterances:
    """The part of a task.Task that does not depend on what is asked."""

    def __init__(
        self, kind: str, mode: Mode, subject: Subject, utterances: Utterances, decoding: Decoding, seed: int,
        language: str | None, speech: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """`speech`: what speech is heard and made with, for the record."""
        self._kind, self._subject, self._utterances = kind, subject, utterances
        self._prompts, self._settings = Prompts(subject), decoding.settings(mode, seed)
        language = language or utterances.manifest.header.language
        self._normaliser = find_normaliser(language)
        self._about = About(
            data=data_of(utterances, language),
            config={
                "generation": decoding.facts(mode),
                "templates": [subject.templates.name, subject.templates.hash],
                "normaliser": self._normaliser.name,
                **speech,
            },
        )

    @property
    def name(self) -> str:
        return f"{self._kind}/{self._utterances.name}"

    @property
    def about(self) -> About:
        return self._about

    def __len__(self) -> int:
        return len(self._utterances)

    def id(self, number: int) -> str:
        return self._utterances.rows[number].id


def data_of(utterances: Utterances, language: str | None) -> dict[str, Any]:
    """What a result says of a manifest."""
    header = utterances.manifest.header
    return {
        "hash": header.sha256,
        "folder": str(utterances.manifest.folder),
        "corpus": header.corpus,
        "split": header.split,
        "language": language,
        "utterances": len(utterances),
        "max_seconds": utterances.max_seconds,
    }


def errors_of(reference: str, heard: str, normaliser: Normaliser) -> dict[str, Any]:
    """Both sides as they are compared, and [errors, total] in words and characters."""
    said, heard = normaliser(reference), normaliser(heard)
    words, characters = word_errors(said, heard), character_errors(said, heard)
    return {
        "compared": [said, heard],
        "words": [words.wrong, words.reference],
        "characters": [characters.wrong, characters.reference],
    }


def rates_of(counted: Sequence[Record], seed: int) -> dict[str, Any]:
    """WER and CER of records with `errors_of`."""
    scores = {}
    for name, unit in (("wer", "words"), ("cer", "characters")):
        wrong, total = zip(*(record[unit] for record in counted), strict=True)
        scores[name] = score_of(wrong, total, f"wrong {unit} / {unit} of the reference", seed=seed)
    return scores
