"""Dialogues into speech: voices for each, waves for the sides that speak, each wave heard by a judge.

Out come the lists that `prepare_data.py` reads: utterances.jsonl (`manifest jsonl`), spoken.jsonl and written.jsonl
(`manifest chat`: with speech in them, or none), and the waves in audio/. A dialogue of which one turn cannot be spoken
is set aside whole. Dialogues are spoken in parallel and written in their order: killed, the same command goes on, and
where a voice says the same text the same way twice, the bytes are those of an unbroken run. Where the judge is gone
the rest is spoken and kept, and the same command has it heard.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.rejects import Rejects, RowError
from megatron_most.data.seal import sealed
from megatron_most.data.shards import Shard, shard_folder
from megatron_most.errors import DataError
from megatron_most.runtime import Journal, Meter, is_done, open_journal, sha256_file, write_atomically
from megatron_most.speech import write_sound
from megatron_most.synthesize.casting import Cast, Weights, cast
from megatron_most.synthesize.dialogue import Dialogue
from megatron_most.synthesize.hearing import Ears, JudgeOptions, spoken_text
from megatron_most.synthesize.ledger import BudgetSpent
from megatron_most.synthesize.unheard import OUTAGE, Ahead, Unheard, Utterance
from megatron_most.synthesize.voices import SAMPLE_RATE, Speaker
from megatron_most.synthesize.wer import check_wave
from megatron_most.synthesize.writer import JudgeFailed, WriterFailed

UTTERANCES, SPOKEN, WRITTEN, REJECTS = "utterances.jsonl", "spoken.jsonl", "written.jsonl", "rejects.jsonl"
FILES = (UTTERANCES, SPOKEN, WRITTEN, REJECTS)
HEADER, AUDIO = "speech.json", "audio"
_COMMIT_EVERY, _IN_FOLDER = 8, 1000
_HEARD = ("said otherwise", "judge failed")
"""Reasons that only a judge gives."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """All that decides the speech, but the speaker."""

    dialogues: Sequence[Dialogue]
    hash: str
    """Of the dialogues."""
    name: str
    """Of the corpus: the first part of the utterances' ids."""
    voices: tuple[str, ...]
    assistant_voices: tuple[str, ...]
    weights: Weights
    judge: JudgeOptions
    seed: int
    max_reject_rate: float
    workers: int


@dataclass
class _Progress:
    """What a commit remembers."""

    taken: int = 0
    spoken: int = 0
    written: int = 0
    utterances: int = 0
    seconds: float = 0.0
    rejects: dict[str, int] = field(default_factory=dict)


def speak_dialogues(speech: Speech, speaker: Speaker, out: Path, shard: Shard) -> Path:
    """The speech of one shard's dialogues: in `out`, or, where there are several, in a folder below."""
    folder = shard_folder(out, shard)
    ears = Ears(speech.judge, speech.dialogues)
    job = {
        "what": "speech",
        **speaker.identity,
        "dialogues": speech.hash,
        "name": speech.name,
        "voices": list(speech.voices),
        "assistant_voices": list(speech.assistant_voices),
        "weights": asdict(speech.weights),
        "judge": [ears.identity, speech.judge.max_wer],
        "seed": speech.seed,
        "shard": list(shard),
    }
    if is_done(folder, job):
        return folder
    mine = list(speech.dialogues)[shard[0] :: shard[1]]
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(folder, job, FILES, reports=(REJECTS,)))
        unheard = Unheard(journal.part, speaker.identity)
        writing = _Writing(
            speech, journal, unheard,
            lambda dialogue, roles: _speak(dialogue, roles, speaker, ears, unheard, speech.judge.max_wer),
        )  # fmt: skip
        pool = ThreadPoolExecutor(speech.workers)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(speaker.stop)
        meter = stack.enter_context(Meter(len(mine), "speak", _words, done=writing.done.taken))
        ahead = Ahead(len(mine), unheard)
        left = mine[writing.done.taken :]
        if ears.gone is not None and any(_cast(speech, dialogue).is_spoken for dialogue in left):
            ahead.begin(ears.gone, writing.done.taken, 0)
        for dialogue, roles, turns in _in_order(speech, left, speaker, ears, unheard, pool):
            try:
                if ahead.why is None:
                    writing.take(dialogue, roles, turns)
                else:
                    ahead.take(dialogue.id, turns)
            except JudgeFailed as error:
                ears.gone = str(error)
                ahead.begin(ears.gone, writing.done.taken, writing.stop())
            except WriterFailed as error:
                too = ", and the judge" if ahead.why else ""
                gone = f"{writing.done.taken} of {len(mine)} dialogues are spoken; the voice is gone{too}"
                raise DataError(f"{journal.part}: {gone}: {error}; run the same command again to go on") from error
            except BudgetSpent as error:
                if ahead.why is None:
                    raise
                raise DataError(f"{error}. Besides, {ahead.told(writing.done.taken)}") from error
            meter.advance(1)
        if ahead.why is None and (doubt := writing.in_doubt) is not None and not ears.lives():
            ahead.begin(str(doubt), writing.done.taken, writing.stop())
        if ahead.why is not None:
            raise DataError(f"{journal.part}: {ahead.told(writing.done.taken)}")
        writing.finish()
        unheard.clear()
        journal.seal(lambda part: _finish(part, job, writing.done))
    return folder


def _speak(
    dialogue: Dialogue, roles: Cast, speaker: Speaker, ears: Ears, unheard: Unheard, max_wer: float
) -> list[Utterance]:
    """The turns that are speech, said and heard; said only, they are kept."""
    said = [
        (number, roles.voices[turn.role], spoken_text(turn))
        for number, turn in enumerate(dialogue.turns)
        if roles.speaks(turn.role)
    ]
    kept = unheard.find(dialogue.id, said)
    waves = kept or [_say(*turn, speaker) for turn in said]
    texts = [text for _, _, text in said]
    try:
        rates = ears.rates(waves, texts)
    except JudgeFailed:
        if kept is None:
            unheard.keep(dialogue.id, said, waves)
        raise
    for (number, voice, _), rate in zip(said, rates, strict=True):
        if rate is not None and rate > max_wer:
            raise RowError("said otherwise", f"turn {number + 1}, voice {voice}: word error rate {rate:.2f}")
    return [Utterance(*of, wave, rate) for of, wave, rate in zip(said, waves, rates, strict=True)]


def _say(number: int, voice: str, text: str, speaker: Speaker) -> np.ndarray:
    try:
        wave = speaker.say(text, voice)
        check_wave(wave, text, SAMPLE_RATE)
    except RowError as error:
        raise RowError(error.reason, f"turn {number + 1}, voice {voice}: {error.detail}") from error
    return wave


def _cast(speech: Speech, dialogue: Dialogue) -> Cast:
    return cast(dialogue, speech.weights, speech.voices, speech.assistant_voices, speech.seed)


def _in_order(
    speech: Speech, mine: Sequence[Dialogue], speaker: Speaker, ears: Ears, unheard: Unheard, pool: ThreadPoolExecutor
) -> Iterator[tuple[Dialogue, Cast, Future[list[Utterance]]]]:
    flying: deque[tuple[Dialogue, Cast, Future[list[Utterance]]]] = deque()
    for dialogue in mine:
        roles = _cast(speech, dialogue)
        made = pool.submit(_speak, dialogue, roles, speaker, ears, unheard, speech.judge.max_wer)
        flying.append((dialogue, roles, made))
        if len(flying) > 2 * speech.workers:
            yield flying.popleft()
    yield from flying


_Again = Callable[[Dialogue, Cast], list[Utterance]]


class _Writing:
    """The lists so far, and what was set aside."""

    def __init__(self, speech: Speech, journal: Journal, unheard: Unheard, again: _Again) -> None:
        """`again`: speak a dialogue, or have its waves heard where they were kept."""
        self._speech, self._journal, self._unheard, self._again = speech, journal, unheard, again
        self.done = _Progress(**journal.progress) if journal.progress else _Progress()
        self._rejects = Rejects(
            lambda line: journal.write(REJECTS, line),
            speech.max_reject_rate,
            self.done.rejects,
            where=journal.path(REJECTS),
        )
        self._held: list[tuple[Dialogue, Cast, WriterFailed | RowError | None]] = []
        """Failures of which nobody knows yet whose they are, and what came between them that is no sign of life."""
        self._in_lists: list[str] = []
        """Since the last commit: dialogues whose waves need not be kept any more."""

    def take(self, dialogue: Dialogue, roles: Cast, turns: Future[list[Utterance]]) -> None:
        """Put one dialogue into the lists, or say why not."""
        try:
            made = turns.result()
        except RowError as error:
            if error.reason not in _HEARD and any(isinstance(failed, JudgeFailed) for *_, failed in self._held):
                self._held.append((dialogue, roles, error))  # the voice lives, which says nothing of the judge
                return
            self._take_held()
            self._set_aside(dialogue.id, error.reason, error.detail)
            return
        except WriterFailed as error:
            self._held.append((dialogue, roles, error))
            if sum(type(failed) is type(error) for *_, failed in self._held) >= OUTAGE:
                raise  # not committed: these are tried again
            return
        if self._held and not made:
            self._held.append((dialogue, roles, None))
            return
        self._take_held()
        self._write(dialogue, roles, {turn.number: turn for turn in made})
        self._took(dialogue.id)

    def _write(self, dialogue: Dialogue, roles: Cast, made: dict[int, Utterance]) -> None:
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(dialogue.turns):
            content: Any = turn.text
            if number in made:
                content = [{"speech": f"{self._speech.name}-{self._utterance(dialogue, made[number])}"}]
            marks = {mark: True for mark in ("interrupted", "interrupts") if getattr(turn, mark)}
            messages.append({"role": turn.role, "content": content} | marks)
        row = {"id": dialogue.id, "messages": messages, "mode": roles.mode, "origin": dialogue.origin}
        self._journal.write(SPOKEN if made else WRITTEN, json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if made:
            self.done.spoken += 1
        else:
            self.done.written += 1

    def _utterance(self, dialogue: Dialogue, turn: Utterance) -> str:
        """Its wave and its row; the id it has in the manifest, but for the corpus' name."""
        id = f"{dialogue.id}-{turn.number}"
        path = f"{self.done.taken // _IN_FOLDER:05d}/{id.replace('/', '_')}.wav"
        write_sound(self._journal.path(AUDIO) / path, turn.wave, SAMPLE_RATE)
        seconds = len(turn.wave) / SAMPLE_RATE
        row: dict[str, Any] = {"id": id, "audio": path, "text": turn.text, "speaker": turn.voice, "language": "en"}
        row |= {} if turn.wer is None else {"wer": round(turn.wer, 4)}
        self._journal.write(UTTERANCES, json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.done.utterances += 1
        self.done.seconds = round(self.done.seconds + seconds, 4)
        return id

    def _take_held(self) -> None:
        held, self._held = self._held, []
        for dialogue, roles, error in held:
            if error is None:
                self._write(dialogue, roles, {})
                self._took(dialogue.id)
            elif isinstance(error, RowError):
                self._set_aside(dialogue.id, error.reason, error.detail)
            elif isinstance(error, JudgeFailed):
                self._hear_again(dialogue, roles)
            else:
                self._set_aside(dialogue.id, "no reply from the voice", str(error))

    def _hear_again(self, dialogue: Dialogue, roles: Cast) -> None:
        """The judge lives, so it was away for a moment, and the waves were kept; what fails twice is set aside."""
        try:
            made = self._again(dialogue, roles)
        except RowError as error:
            self._set_aside(dialogue.id, error.reason, error.detail)
        except WriterFailed as error:
            reason = "judge failed" if isinstance(error, JudgeFailed) else "no reply from the voice"
            self._set_aside(dialogue.id, reason, str(error))
        else:
            self._write(dialogue, roles, {turn.number: turn for turn in made})
            self._took(dialogue.id)

    def _set_aside(self, id: str, reason: str, detail: str) -> None:
        self._rejects.add(id, reason, detail)
        self._took(id)
        self._rejects.check(self.done.taken)

    def _took(self, id: str) -> None:
        self._in_lists.append(id)
        self.done.taken += 1
        if self.done.taken % _COMMIT_EVERY == 0:
            self._commit()

    @property
    def in_doubt(self) -> JudgeFailed | None:
        """A failure of the judge that no answer of its has followed: it may have been gone since."""
        return next((failed for *_, failed in self._held if isinstance(failed, JudgeFailed)), None)

    def stop(self) -> int:
        """Go no further: what is held waits for the same command. How many dialogues the judge has failed on."""
        self._commit()
        return sum(isinstance(failed, JudgeFailed) for *_, failed in self._held)

    def _commit(self) -> None:
        self.done.rejects = dict(self._rejects.counts)
        self._journal.commit(asdict(self.done))
        for id in self._in_lists:
            self._unheard.drop(id)
        self._in_lists = []

    def finish(self) -> None:
        self._take_held()
        self._commit()
        self._rejects.check(self.done.taken, at_end=True)


def _words(done: float, total: float, seconds: float) -> str:
    return f"{done:.0f}/{total:.0f} dialogues, {done / seconds:.3g} a second"


def _finish(part: Path, job: dict[str, Any], done: _Progress) -> None:
    for torn in part.glob(f"{AUDIO}/*/.*.tmp"):  # waves that a kill has cut short; each was written again
        torn.unlink()
    files = {name: [(part / name).stat().st_size, sha256_file(part / name)] for name in FILES}
    write_atomically(part / HEADER, sealed({"format": "most-speech-1", **asdict(done), "made_by": job, "files": files}))
