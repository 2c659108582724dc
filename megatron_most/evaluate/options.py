"""What tools/evaluate.py takes, and which tasks need what of it; checked before a model is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from megatron_most.config import LayoutConfig
from megatron_most.converse import Dtype
from megatron_most.errors import ConfigError
from megatron_most.evaluate.decoding import Decoding

MAX_SECONDS = 120.0
Kind = Literal["mean", "sum"]
"""mean: nats a unit, so that a longer word is not less likely for its length. sum: nats of all of it."""
TASKS = {
    "asr": "word and character errors of transcripts (--manifest, --units or --codec)",
    "tts": "word errors of what a judge hears (--manifest, --units or --codec, --vocoder, --judge)",
    "swuggy": "words against non-words (--zerospeech, --codec)",
    "sblimp": "sentences against ungrammatical ones (--zerospeech, --codec)",
    "tsc": "Topic-StoryCloze (--tsc, --codec)",
    "ssc": "StoryCloze (--ssc, --codec)",
    "qa-s2t": "spoken questions, answered in text (--questions, --codec)",
    "qa-s2s": "spoken questions, answered in speech (--questions, --codec, --vocoder, --judge)",
    "nll": "nats a token and perplexity of datasets (--dataset)",
    "mmlu": "57 subjects by lm-eval (--text-data, a Hugging Face folder)",
    "gsm8k": "sums in words by lm-eval (likewise)",
    "triviaqa": "closed-book questions by lm-eval (likewise)",
    "humaneval": "programs by lm-eval, run in a sandbox (likewise, and --allow-code)",
}
TEXT_TASKS = ("mmlu", "gsm8k", "triviaqa", "humaneval")
_NEEDS = {
    "asr": ("manifest",), "tts": ("manifest", "vocoder", "judge"), "swuggy": ("zerospeech", "codec"),
    "sblimp": ("zerospeech", "codec"), "tsc": ("tsc", "codec"), "ssc": ("ssc", "codec"),
    "qa-s2t": ("questions",), "qa-s2s": ("questions", "vocoder", "judge"), "nll": ("dataset",),
    **{name: ("text_data",) for name in TEXT_TASKS},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is evaluated on."""

    manifest: tuple[Path, ...] = ()
    """asr, tts: manifests of speech; each is a result of its own."""
    units: tuple[Path, ...] = ()
    """asr, tts: unit sets of these manifests. Not given = --codec makes them now."""
    audio_root: Path | None = None
    """Where the manifests' audio is, if it has moved."""
    language: str | None = None
    """Chooses the normaliser; not given = as the manifest says."""
    zerospeech: Path | None = None
    """swuggy, sblimp: the sLM21 dataset, with lexical/ and syntactic/."""
    split: Literal["dev", "test"] = "dev"
    """Of ZeroSpeech."""
    tsc: Path | None = None
    """Folder of Topic-StoryCloze."""
    ssc: Path | None = None
    """Folder of StoryCloze."""
    questions: tuple[Path, ...] = ()
    """qa-s2t, qa-s2s: JSON lines with WavPath and an answer; the file's name is the set's."""
    dataset: tuple[Path, ...] = ()
    """nll: datasets that prepare_data.py built."""
    text_data: Path | None = None
    """Folder with mmlu/, gsm8k/, trivia_qa/, openai_humaneval/ as they are on the Hugging Face hub."""
    max_seconds: float = MAX_SECONDS
    """Longer sounds are left out."""
    limit: int | None = None
    """Only so many items of each data set, from its beginning; not for numbers to be reported."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What speech is made units of, spoken and heard with."""

    codec: str | None = None
    """A codec's folder, or a preset: mhubert-25hz-500, hubert-50hz-500."""
    centroids: Path | None = None
    """Presets: the file of their published centroids."""
    codec_model: Path | None = None
    """HuBERT: where the model is, if not where the codec, the preset or the source of the model's frames says."""
    codec_precision: Literal["auto", "fp32", "bf16"] = "auto"
    trust_codec: bool = False
    """Take the units to be of the model's codec where the model's folder does not say which that is."""
    vocoder: Path | None = None
    """Folder of a vocoder for that codec."""
    speaker: int = 0
    """The vocoder's voice."""
    judge: str | None = None
    """Who hears: pocketsphinx, whisper, faster-whisper."""
    judge_model: Path | None = None
    """whisper, faster-whisper: the model's folder."""
    judge_hears: Literal["any", "words", "sentences"] = "any"
    """pocketsphinx: any English; rows of the transcripts' words; or one of the transcripts, which it hears best."""
    speaker_model: Path | None = None
    """tts: a transformers model for speaker verification; its cosine is reported too."""
    utmos: Path | None = None
    """tts: UTMOS as a TorchScript file; its opinion is reported too."""
    keep_audio: bool = False
    """tts: keep what the model said as WAV files, and in resynthesised/ the recordings' units spoken by the vocoder."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a model: `evaluate.py TASK... --model FOLDER --out RUN`; `evaluate.py table RUN...` compares runs.

    The model is a checkpoint of ours (a run's newest, or a step's) or a Hugging Face folder, told by what lies there.
    Every task has a folder below RUN with result.json (scores, bootstrap intervals, hashes, settings, versions, speed)
    and records.jsonl (every item). Killed, the same command goes on where it was, also on more ranks or fewer (torchrun
    or srun: each takes its share). An item that cannot be read is told of, and the others are evaluated.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Any of: asr tts swuggy sblimp tsc ssc qa-s2t qa-s2s nll mmlu gsm8k triviaqa humaneval."""
    model: Path
    out: Path
    """The run's folder."""
    data: Annotated[Data, tyro.conf.arg(name="")] = field(default_factory=Data)
    tools: Annotated[Tools, tyro.conf.arg(name="")] = field(default_factory=Tools)
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = field(default_factory=Decoding)
    likelihood: Kind = "mean"
    """swuggy, sblimp, tsc, ssc: compare log p a unit, or of all of it."""
    tokenizer: Path | None = None
    """Not given = the Hugging Face folder's; a checkpoint of ours needs it."""
    templates: str | None = None
    """The wording it was trained with: chat, release, or a TOML file. Not given = what its folder says, or chat."""
    trust_templates: bool = False
    """Take --templates though the model has learnt others."""
    batch_size: int = 8
    seed: int = 0
    """Of draws (--temperature), shuffles and the bootstrap."""
    max_left_out: float = 0.0
    """The share of items that may be left out before the run counts as failed."""
    allow_code: bool = False
    """humaneval: run programs that the model has written, in a sandbox without network."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Checkpoints of ours: how many ranks hold one model."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Dtype = "auto"
    """auto: as it was trained or stored."""


def check_options(options: Options) -> None:
    """ConfigError for an unknown task, a task without its data, or a value that cannot be."""
    if not options.tasks:
        raise ConfigError("tasks", options.tasks, "no task", f"name one or more of {', '.join(TASKS)}")
    for name in options.tasks:
        if name not in TASKS:
            raise ConfigError("task", name, "no such task", f"use {', '.join(TASKS)}, or table")
        for need in _NEEDS[name]:
            holder = options.tools if hasattr(options.tools, need) else options.data
            if not getattr(holder, need):
                flag = f"--{need.replace('_', '-')}"
                raise ConfigError(flag, None, f"{name} needs it", f"{name}: {TASKS[name]}")
    if len(set(options.tasks)) < len(options.tasks):
        raise ConfigError("tasks", list(options.tasks), "one is named twice", "name each once")
    if "humaneval" in options.tasks and not options.allow_code:
        wrong = "humaneval runs programs that the model has written"
        raise ConfigError("--allow-code", False, wrong, "give --allow-code to run them, in a sandbox without network")
    for flag, value, is_right, remedy in (
        ("--batch-size", options.batch_size, options.batch_size >= 1, "give 1 or more"),
        ("--max-left-out", options.max_left_out, 0 <= options.max_left_out < 1, "give a share from 0 to below 1"),
        ("--limit", options.data.limit, options.data.limit is None or options.data.limit >= 1, "give 1 or more"),
        ("--seed", options.seed, options.seed >= 0, "give 0 or more"),
    ):
        if not is_right:
            raise ConfigError(flag, value, "out of range", remedy)


def named(tasks: Sequence[str]) -> tuple[bool, bool]:
    """Whether some of the tasks are about speech (or datasets of ours), and whether some are lm-eval's."""
    is_text = [name in TEXT_TASKS for name in tasks]
    return not all(is_text), any(is_text)
