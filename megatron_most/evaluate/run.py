"""A run: the model opened once, its tasks one after the other; one that fails does not take the others with it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from megatron_most.converse import Ears, FrameEars, UnitEars, frame_ears, is_hf, open_hf
from megatron_most.data.manifest import open_manifest
from megatron_most.data.unit_set import UnitSet, open_units
from megatron_most.errors import ConfigError, DataError, MostError
from megatron_most.evaluate.harness import Harness, open_lm
from megatron_most.evaluate.job import Setting, Share, run_task, slug
from megatron_most.evaluate.measures import Measure, SpeakerSimilarity, Utmos
from megatron_most.evaluate.options import Options, check_options, named
from megatron_most.evaluate.result import Result
from megatron_most.evaluate.sandbox import find_sandbox
from megatron_most.evaluate.speech import Utterances, open_utterances
from megatron_most.evaluate.subject import Subject, a_model_each, hf_facts, open_subject
from megatron_most.evaluate.task import Task
from megatron_most.evaluate.tasks.asr import Asr
from megatron_most.evaluate.tasks.nll import Nll
from megatron_most.evaluate.tasks.questions import Questions
from megatron_most.evaluate.tasks.stories import Stories
from megatron_most.evaluate.tasks.text import Text, require_hf
from megatron_most.evaluate.tasks.tts import Hearing, Tts
from megatron_most.evaluate.tasks.zerospeech import ZeroSpeech
from megatron_most.runtime import (
    Launch,
    Ranks,
    agree,
    find_device,
    find_launch,
    get_logger,
    num_cores,
    process_group,
    set_threads,
    sha256_file,
)
from megatron_most.speech import Judge, SpeechCodec, load_codec, load_judge, load_vocoder
from megatron_most.speech.vocoder_files import VOCODER_FILE
from megatron_most.upstream import find_versions, versions_of

_log = get_logger(__name__)
_LIBRARIES = ("transformers", "jiwer", "whisper-normalizer", "numpy", "lm-eval", "datasets")


def evaluate(options: Options, launch: Launch | None = None) -> list[Result]:
    """All results, in the order of the tasks. All ranks call it. DataError at the end where a task has failed."""
    check_options(options)
    launch = launch or find_launch()
    device = find_device(options.device, launch.local_rank)
    set_threads(max(1, num_cores() // launch.local_world_size))
    results: list[Result] = []
    failed: list[MostError] = []
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(process_group(launch, device))
        run = _Run(options, ranks, stack)
        stack.callback(run.tidy)
        for name in options.tasks:
            for make in run.makers(name):
                wrong: MostError | None = None
                try:
                    results.append(run.one(make))
                except MostError as error:
                    wrong = error
                if wrong is not None:  # the same on all ranks
                    _log.error("%s: %s", name, wrong)
                    failed.append(wrong)
    if failed:
        done = f"; {len(results)} ended well, their results are in {options.out}" if results else ""
        others = f" ({len(failed)} tasks failed, this is the first{done})" if len(failed) > 1 or done else ""
        raise DataError(f"{failed[0]}{others}") if others else failed[0]
    return results


@dataclass
class _Run:
    options: Options
    ranks: Ranks
    stack: contextlib.ExitStack

    def makers(self, name: str) -> list[Callable[[], Task]]:
        """How the tasks of one name are made: a task for each of its data sets."""
        data = self.options.data
        known: Any = name  # one of TASKS: check_options has looked
        if name in ("asr", "tts"):
            make = self._asr if name == "asr" else self._tts
            return [partial(make, folder) for folder in data.manifest]
        if name in ("qa-s2t", "qa-s2s"):
            return [partial(self._questions, known, file) for file in data.questions]
        if name == "nll":
            return [partial(self._nll, folder) for folder in data.dataset]
        if name in ("swuggy", "sblimp"):
            return [partial(self._zerospeech, known)]
        if name in ("tsc", "ssc"):
            return [partial(self._stories, known)]
        return [partial(self._text, name)]

    def one(self, make: Callable[[], Task]) -> Result:
        """One task from its making to its result. An error is raised on all ranks."""
        task: Task | None = None
        wrong: Exception | None = None
        try:
            task = make()
        except MostError as error:
            wrong = error
        agree(wrong)
        assert task is not None, "agree raises where it could not be made"
        setting = Setting(
            out=self.options.out, model=self.facts, share=self.share, batch_size=self.options.batch_size,
            seeds={"generation": self.options.seed, "bootstrap": self.options.seed}, versions=self.versions,
            max_left_out=self.options.max_left_out, limit=self.options.data.limit,
        )  # fmt: skip
        return run_task(task, setting)

    def tidy(self) -> None:
        """What libraries have left in the run's folder."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @cached_property
    def subject(self) -> Subject:
        options = self.options
        opened = open_subject(
            options.model, self.ranks, templates=options.templates, tokenizer=options.tokenizer, layout=options.layout,
            dtype=options.dtype, trust_templates=options.trust_templates, may_differ=options.tools.trust_codec,
            hf=self.hf if is_hf(options.model) else None,
        )  # fmt: skip
        return self.stack.enter_context(opened)

    @cached_property
    def hf(self) -> Any:
        return open_hf(self.options.model, self.options.dtype, self.ranks.device)

    @cached_property
    def facts(self) -> dict[str, Any]:
        is_speech, _ = named(self.options.tasks)
        return self.subject.facts if is_speech else hf_facts(self.options.model, self.hf)

    @property
    def share(self) -> Share:
        is_speech, _ = named(self.options.tasks)
        if is_speech:
            return self.subject.share
        return a_model_each(self.ranks)

    @cached_property
    def versions(self) -> dict[str, str]:
        return {**find_versions(), **versions_of(*_LIBRARIES)}

    @cached_property
    def codec(self) -> SpeechCodec:
        tools = self.options.tools
        assert tools.codec is not None, "check_options asks for it"
        return load_codec(
            tools.codec, centroids=tools.centroids, model=tools.codec_model, device=self.ranks.device,
            precision=tools.codec_precision,
        )  # fmt: skip

    @cached_property
    def _scratch(self) -> Path:
        return self.options.out / f".scratch-{self.ranks.rank:05d}"

    @cached_property
    def _units(self) -> list[UnitSet]:
        return [open_units(path) for path in self.options.data.units]

    @cached_property
    def _ears(self) -> Ears:
        """How the model hears."""
        if self.subject.talker.hears_frames:
            return self._frame_ears
        if self.options.tools.codec is None:
            raise ConfigError("--codec", None, "the model hears units", "give the codec that made those of its data")
        self.subject.require_codec(self.codec.identity, "--codec")
        return UnitEars(self.codec)

    @cached_property
    def _frame_ears(self) -> FrameEars:
        return frame_ears(self.subject.opened, self.options.tools.codec_model, self.ranks.device)

    def _utterances(self, folder: Path, *, is_heard: bool) -> Utterances:
        """`is_heard`: by the model, which may hear frames; else units are wanted."""
        frames = self._frame_ears if is_heard and self.subject.talker.hears_frames else None
        data, manifest = self.options.data, open_manifest(folder)
        found = [units for units in self._units if units.manifest_sha256 == manifest.header.sha256]
        if len(found) > 1:
            raise DataError(f"{found[1].path}: also units of {folder}; give one set for each manifest")
        codec = None if found or self.options.tools.codec is None else self.codec
        if not found and codec is None and frames is None and self._units:
            raise DataError(f"{folder}: none of --units is of this manifest; extract its units, or give --codec")
        return open_utterances(
            manifest, found[0] if found else None, codec, data.audio_root, data.max_seconds, data.limit, frames
        )

    def _asr(self, folder: Path) -> Task:
        options = self.options
        utterances = self._utterances(folder, is_heard=True)
        return Asr(self.subject, utterances, options.decoding, options.seed, options.data.language)

    def _tts(self, folder: Path) -> Task:
        options, utterances = self.options, self._utterances(folder, is_heard=False)
        hearing = self._hearing(utterances)
        return Tts(self.subject, utterances, hearing, options.decoding, options.seed, options.data.language)

    def _questions(self, name: Literal["qa-s2t", "qa-s2s"], file: Path) -> Task:
        options, hearing = self.options, self._hearing(None) if name == "qa-s2s" else None
        return Questions(
            name, self.subject, file, self._ears, options.decoding, options.seed, hearing, options.data.max_seconds,
            options.data.limit,
        )  # fmt: skip

    def _zerospeech(self, name: Literal["swuggy", "sblimp"]) -> Task:
        data = self.options.data
        assert data.zerospeech is not None, "check_options asks for it"
        return ZeroSpeech(
            name, self.subject, data.zerospeech, data.split, self.codec, self.options.likelihood, data.max_seconds,
            data.limit,
        )  # fmt: skip

    def _stories(self, name: Literal["tsc", "ssc"]) -> Task:
        data = self.options.data
        folder = data.tsc if name == "tsc" else data.ssc
        assert folder is not None, "check_options asks for it"
        return Stories(
            name, self.subject, folder, self.codec, self.options.likelihood, data.max_seconds, data.limit
        )  # fmt: skip

    def _nll(self, folder: Path) -> Task:
        return Nll(self.subject, folder, self.options.data.limit)

    def _hearing(self, utterances: Utterances | None) -> Hearing:
        tools = self.options.tools
        assert tools.vocoder is not None, "check_options asks for it"
        measures: list[Measure] = []
        if tools.speaker_model is not None:
            measures.append(SpeakerSimilarity(tools.speaker_model))
        if tools.utmos is not None:
            measures.append(Utmos(tools.utmos))
        keep = None
        if utterances is not None and tools.keep_audio:
            keep = self.options.out / "audio" / slug(utterances.name)
        return Hearing(
            vocoder=load_vocoder(tools.vocoder, device=self.ranks.device), judge=self._judge(utterances),
            vocoder_hash=sha256_file(tools.vocoder / VOCODER_FILE), speaker=tools.speaker, measures=measures, keep=keep,
        )  # fmt: skip

    def _judge(self, utterances: Utterances | None) -> Judge:
        tools = self.options.tools
        assert tools.judge is not None, "check_options asks for it"
        told: dict[str, Any] = {"model": tools.judge_model}
        if tools.judge != "pocketsphinx":
            told["device"] = self.ranks.device
        if tools.judge_hears != "any":
            if utterances is None:
                raise DataError(f"--judge-hears {tools.judge_hears}: questions have no transcripts; leave it out")
            texts = sorted({row.text for row in utterances.rows if row.text})
            is_words = tools.judge_hears == "words"
            told[tools.judge_hears] = sorted({word for text in texts for word in text.split()}) if is_words else texts
        return load_judge(tools.judge, **told)

    def _text(self, name: str) -> Task:
        options = self.options
        require_hf(options.model, is_hf(options.model), name)
        assert options.data.text_data is not None, "check_options asks for it"
        sandbox = find_sandbox() if name == "humaneval" else None
        harness = Harness(
            name, options.data.text_data, self._scratch / name, limit=options.data.limit,
            passes=sandbox.passes if sandbox else None,
        )  # fmt: skip
        lm = open_lm(self.hf, options.model, options.batch_size)
        return Text(harness, lm, options.data.text_data, sandbox.words if sandbox else None)
