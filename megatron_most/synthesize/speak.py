"""Dialogues into speech: voices for each, waves for the sides that speak, each wave heard by a judge.

Out come the lists that `prepare_data.py` reads: utterances.jsonl (`manifest jsonl`), spoken.jsonl and written.jsonl
(`manifest chat`: with speech in them, or none), and the waves in audio/. A dialogue of which one turn cannot be spoken
is set aside whole. Dialogues are spoken in parallel and written in their order: killed, the same command goes on, and
where a voice says the same text the same way twice, the bytes are those of an unbroken run.
"""

from __future__ import annotations

import bisect
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_most.data.rejects import Rejects, RowError
from megatron_most.data.seal import sealed
from megatron_most.data.shards import Shard, shard_folder
from megatron_most.errors import DataError, MostError, UpstreamError
from megatron_most.runtime import Journal, Meter, is_done, open_journal, sha256_file, write_atomically
from megatron_most.speech import Judge, load_judge, write_sound
from megatron_most.speech.judge_pocketsphinx import unknown_words
from megatron_most.synthesize.casting import Cast, Weights, cast
from megatron_most.synthesize.dialogue import CUT, Dialogue
from megatron_most.synthesize.voices import SAMPLE_RATE, Speaker
from megatron_most.synthesize.wer import check_wave, word_error_rate
from megatron_most.synthesize.writer import JudgeFailed, WriterFailed

UTTERANCES, SPOKEN, WRITTEN, REJECTS = "utterances.jsonl", "spoken.jsonl", "written.jsonl", "rejects.jsonl"
FILES = (UTTERANCES, SPOKEN, WRITTEN, REJECTS)
HEADER, AUDIO = "speech.json", "audio"
_DECOYS = 16
_COMMIT_EVERY, _OUTAGE, _IN_FOLDER = 8, 8, 1000


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who hears the waves."""

    name: Literal["pocketsphinx", "whisper", "faster-whisper", "none"] = "pocketsphinx"
    """pocketsphinx chooses between the turn and others of its length; none: only
    silence, noise and wrong lengths are found."""
    model: Path | None = None
    """The Whispers: the model's folder."""
    max_wer: float = 0.3
    """Word error rate above which a dialogue is set aside."""


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


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn that was spoken."""

    number: int
    voice: str
    text: str
    wave: np.ndarray
    wer: float | None


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
    ears = _Ears(speech)
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
        writing = _Writing(speech, journal)
        pool = ThreadPoolExecutor(speech.workers)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(speaker.stop)
        meter = stack.enter_context(Meter(len(mine), "speak", _words, done=writing.done.taken))
        for dialogue, roles, turns in _in_order(speech, mine[writing.done.taken :], speaker, ears, pool):
            try:
                writing.take(dialogue, roles, turns)
            except WriterFailed as error:
                who = "judge" if isinstance(error, JudgeFailed) else "voice"
                gone = f"{writing.done.taken} of {len(mine)} dialogues are spoken; the {who} is gone"
                raise DataError(f"{journal.part}: {gone}: {error}; run the same command again to go on") from error
            meter.advance(1)
        writing.finish()
        journal.seal(lambda part: _finish(part, job, writing.done))
    return folder


class _Ears:
    """The judge: one for all, or, where it must be told what may come, one for each dialogue."""

    def __init__(self, speech: Speech) -> None:
        options = speech.judge
        if not 0 <= options.max_wer <= 10:
            raise DataError(f"--judge.max-wer {options.max_wer}: not an error rate; give 0 or more")
        self._options, self._lock = options, threading.Lock()
        self._judge: Judge | None = None
        self.identity: str = options.name
        if options.name in ("whisper", "faster-whisper"):
            if options.model is None:
                raise DataError(f"--judge.name {options.name}: give its folder with --judge.model")
            self._judge = load_judge(options.name, model=options.model)
            self.identity = str(self._judge.identity)
        elif options.name == "pocketsphinx":
            try:
                load_judge("pocketsphinx", words=["yes"])  # not installed? better known now than in every row
            except UpstreamError as error:
                raise UpstreamError(f"{error}; or speak without a judge: --judge.name none") from error
            texts = sorted({_said(turn.text) for dialogue in speech.dialogues for turn in dialogue.turns})
            self._texts = sorted((text for text in texts if not unknown_words([text])), key=len)
            self._lengths = [len(text) for text in self._texts]

    def rates(self, waves: list[np.ndarray], texts: list[str]) -> list[float | None]:
        """The word error rate of each wave. RowError "judge failed" if these cannot be heard, JudgeFailed if none."""
        if self._options.name == "none" or not waves:
            return [None] * len(waves)
        try:
            if self._judge is None:
                heard = load_judge("pocketsphinx", sentences=self._choices(texts)).transcribe(waves)
            else:
                with self._lock:  # one model, many threads
                    heard = self._judge.transcribe(waves)
        except DataError as error:
            raise RowError("judge failed", str(error)[:200]) from error
        except (MostError, RuntimeError, OSError, MemoryError) as error:
            raise JudgeFailed(f"{type(error).__name__}: {error}"[:200]) from error
        return [word_error_rate(text, found) for text, found in zip(texts, heard, strict=True)]

    def _choices(self, texts: list[str]) -> list[str]:
        """The texts among others that are as long: told only what is right, a judge hears it in any noise."""
        found = set(texts)
        for text in texts:
            at = bisect.bisect_left(self._lengths, len(text))
            found.update(self._texts[max(at - _DECOYS // 2, 0) : at + _DECOYS // 2])
        return sorted(found)


def _said(text: str) -> str:
    return text.removesuffix(CUT).strip()


def _speak(dialogue: Dialogue, roles: Cast, speaker: Speaker, ears: _Ears, max_wer: float) -> list[_Turn]:
    """The turns that are speech, said and heard."""
    said = [
        (number, roles.voices[turn.role], _said(turn.text))
        for number, turn in enumerate(dialogue.turns)
        if roles.speaks(turn.role)
    ]
    waves = []
    for number, voice, text in said:
        try:
            wave = speaker.say(text, voice)
            check_wave(wave, text, SAMPLE_RATE)
        except RowError as error:
            raise RowError(error.reason, f"turn {number + 1}, voice {voice}: {error.detail}") from error
        waves.append(wave)
    texts = [text for _, _, text in said]
    rates = ears.rates(waves, texts)
    for (number, voice, _), rate in zip(said, rates, strict=True):
        if rate is not None and rate > max_wer:
            raise RowError("said otherwise", f"turn {number + 1}, voice {voice}: word error rate {rate:.2f}")
    return [_Turn(*of, wave, rate) for of, wave, rate in zip(said, waves, rates, strict=True)]


def _in_order(
    speech: Speech, mine: Sequence[Dialogue], speaker: Speaker, ears: _Ears, pool: ThreadPoolExecutor
) -> Iterator[tuple[Dialogue, Cast, Future[list[_Turn]]]]:
    flying: deque[tuple[Dialogue, Cast, Future[list[_Turn]]]] = deque()
    for dialogue in mine:
        roles = cast(dialogue, speech.weights, speech.voices, speech.assistant_voices, speech.seed)
        made = pool.submit(_speak, dialogue, roles, speaker, ears, speech.judge.max_wer)
        flying.append((dialogue, roles, made))
        if len(flying) > 2 * speech.workers:
            yield flying.popleft()
    yield from flying


class _Writing:
    """The lists so far, and what was set aside."""

    def __init__(self, speech: Speech, journal: Journal) -> None:
        self._speech, self._journal = speech, journal
        self.done = _Progress(**journal.progress) if journal.progress else _Progress()
        self._rejects = Rejects(
            lambda line: journal.write(REJECTS, line),
            speech.max_reject_rate,
            self.done.rejects,
            where=journal.path(REJECTS),
        )
        self._held: list[tuple[Dialogue, Cast, WriterFailed | None]] = []
        """Failures of which nobody knows yet whose they are, and what came between them that nobody had to say."""

    def take(self, dialogue: Dialogue, roles: Cast, turns: Future[list[_Turn]]) -> None:
        """Put one dialogue into the lists, or say why not."""
        try:
            made = turns.result()
        except RowError as error:
            self._take_held()
            self._set_aside(dialogue.id, error.reason, error.detail)
            return
        except WriterFailed as error:
            self._held.append((dialogue, roles, error))
            if sum(failed is not None for *_, failed in self._held) >= _OUTAGE:
                raise  # not committed: these are tried again
            return
        if self._held and not made:
            self._held.append((dialogue, roles, None))
            return
        self._take_held()
        self._write(dialogue, roles, {turn.number: turn for turn in made})
        self._took()

    def _write(self, dialogue: Dialogue, roles: Cast, made: dict[int, _Turn]) -> None:
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

    def _utterance(self, dialogue: Dialogue, turn: _Turn) -> str:
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
                self._took()
            else:
                reason = "judge failed" if isinstance(error, JudgeFailed) else "no reply from the voice"
                self._set_aside(dialogue.id, reason, str(error))

    def _set_aside(self, id: str, reason: str, detail: str) -> None:
        self._rejects.add(id, reason, detail)
        self._took()
        self._rejects.check(self.done.taken)

    def _took(self) -> None:
        self.done.taken += 1
        if self.done.taken % _COMMIT_EVERY == 0:
            self._commit()

    def _commit(self) -> None:
        self.done.rejects = dict(self._rejects.counts)
        self._journal.commit(asdict(self.done))

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
