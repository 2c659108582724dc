"""Make a voice for units: fit one in seconds, train a better one, import a published one; then hear it.

codebook fits mean sounds by unit: no GPU, no download, words can be understood. hifigan trains a HiFi-GAN against
discriminators: days on a GPU, natural speech; killed, the same command goes on. convert imports the public checkpoints
of textlesslib, TWIST and Expresso. speak turns units into a sound file. hear measures how well a judge understands the
voice, beside real and shuffled speech.

A voice belongs to one codec: that of the unit sets it is made from (prepare_data.py units), and it refuses others.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from megatron_most.data.fit import fill
from megatron_most.errors import DataError
from megatron_most.runtime import find_device, get_logger, is_done, open_journal, progress
from megatron_most.speech import (
    UnitSequence,
    fit_codebook,
    import_hifigan,
    load_codec,
    load_judge,
    load_vocoder,
    read_span,
    require_codec,
    save_vocoder,
    write_sound,
)
from megatron_most.vocode.hearing import as_table, choose_heard, hear, sentences_judge, write_heard
from megatron_most.vocode.options import TrainOptions
from megatron_most.vocode.spoken import SpokenSet, read_spoken

say = get_logger(__name__).info


@dataclass(frozen=True, kw_only=True)
class _Speech:
    """Speech with its units."""

    manifest: tuple[Path, ...]
    """One or more."""
    units: tuple[Path, ...]
    """The unit set of each manifest."""
    hold_out: float = 0.05
    """The share of utterances kept for measuring; the same ones for every command and voice."""
    audio_root: Path | None = None
    """Where the audio is, if it has moved since the manifests were made."""

    def read(self, max_speakers: int) -> SpokenSet:
        return read_spoken(
            self.manifest,
            self.units,
            hold_out=self.hold_out,
            max_speakers=max_speakers,
            audio_root=self.audio_root,
        )


@dataclass(frozen=True, kw_only=True)
class Codebook(_Speech):
    """Fit the mean sound of each unit between its neighbours: seconds for an hour of speech."""

    out: Path
    """The vocoder's folder."""
    speakers: int = 1
    """1: one voice, the mean of all. More: a voice for each of the most heard speakers."""
    context: int = 2
    """How many frames to each side a sound depends on; 0 for codecs of thousands of units and little speech."""

    def run(self) -> None:
        spoken = self.read(self.speakers)
        job = {
            "what": "codebook vocoder",
            "codec": spoken.codec.to_dict(),
            "manifests": list(spoken.manifests),
            "hold_out": self.hold_out,
            "speakers": list(spoken.speakers),
            "context": self.context,
        }
        if is_done(self.out, job):
            return

        def waves() -> Iterator[tuple[np.ndarray, UnitSequence, int]]:
            for one in progress(spoken.train, "fit", "utterance"):
                yield one.wave(), one.units, one.speaker

        with open_journal(self.out, job, ()) as journal:
            voices = len(spoken.speakers)
            vocoder = fit_codebook(waves(), spoken.codec, num_speakers=voices, context=self.context)
            journal.seal(lambda part: fill(part, lambda folder: save_vocoder(vocoder, folder)))
        say("%s: %d voices for %s", self.out, voices, spoken.codec)


@dataclass(frozen=True, kw_only=True)
class HifiGan(_Speech):
    """Train a HiFi-GAN with adversaries and mel loss. Killed or asked to stop, it goes on where it was."""

    out: Path
    """The vocoder's folder; until it is done, OUT.part, with metrics.jsonl in it."""
    speakers: int = 1
    """1: one voice, the mean of all. More: a voice for each of the most heard speakers."""
    save_every: int = 1000
    evaluate_every: int = 1000
    """How often the mel loss on held-out speech is measured."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    options: Annotated[TrainOptions, tyro.conf.arg(name="")] = field(default_factory=TrainOptions)

    def run(self) -> int:
        from megatron_most.vocode.training import held_losses, train_hifigan  # late: usage lines cost no torch

        spoken = self.read(self.speakers)
        every = {"save_every": self.save_every, "evaluate_every": self.evaluate_every}
        code = train_hifigan(spoken, self.out, self.options, device=find_device(self.device), **every)
        losses = held_losses(self.out)
        first, last = min(losses), max(losses)
        told = f"{losses[first]:.3f} at step {first}, {losses[last]:.3f} at step {last}"
        say("%s: mel loss on held-out speech %s", self.out, told)
        return code


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Import a published HiFi-GAN: the generator's .pt file of textlesslib, TWIST or Expresso, and its config.json."""

    weights: Path
    """The .pt file; it is read without running anything in it."""
    config: Path
    """The config.json published beside it."""
    out: Path
    codec: str
    """The codec whose units it was trained on, a folder or a preset: mhubert-25hz-500, hubert-50hz-500."""
    centroids: Path | None = None
    """Presets: the file of their published centroids."""
    model: Path | None = None
    """HuBERT: where the model is, if not where the codec or preset says."""
    style: int = 0
    """Models of several styles: the one to speak in."""

    def run(self) -> None:
        codec = load_codec(self.codec, centroids=self.centroids, model=self.model).identity
        vocoder = import_hifigan(self.weights, self.config, codec, style=self.style)
        save_vocoder(vocoder, self.out)
        say("%s: %d voices for %s", self.out, vocoder.num_speakers, codec)


@dataclass(frozen=True, kw_only=True)
class Speak:
    """Say units: given as numbers, or as a codec hears them in a sound file."""

    vocoder: Path
    out: Path
    """A file name that ends in .wav or .flac."""
    given: tuple[int, ...] = ()
    """Units, one after the other."""
    like: Path | None = None
    """A sound file to say again; needs --codec."""
    codec: Path | None = None
    """The folder of the vocoder's codec."""
    speaker: int = 0

    def run(self) -> None:
        if bool(self.given) == bool(self.like) or (self.like is None) != (self.codec is None):
            raise DataError("give either --given UNITS, or --like FILE together with --codec FOLDER")
        vocoder = load_vocoder(self.vocoder, device=find_device("auto"))
        if self.like is None or self.codec is None:
            wave = vocoder.speak(self.given, None, self.speaker)
        else:
            codec = load_codec(self.codec)
            require_codec(vocoder, codec.identity, str(self.codec))
            units = codec.encode([read_span(self.like, sample_rate=codec.identity.sample_rate)])[0]
            wave = vocoder.speak(units.units, units.durations, self.speaker)
        write_sound(self.out, wave, vocoder.sample_rate)
        say("%s: %.2f s", self.out, len(wave) / vocoder.sample_rate)


@dataclass(frozen=True, kw_only=True)
class Hear(_Speech):
    """Let a judge write down held-out utterances: real, resynthesised and shuffled; print its word error rates."""

    vocoder: Path
    judge: Literal["pocketsphinx", "whisper", "faster-whisper"] = "pocketsphinx"
    """pocketsphinx is told all sentences of the manifests, and says which it hears."""
    judge_model: Path | None = None
    """The Whispers: a local folder of the model."""
    language: str | None = None
    """The Whispers: such as en."""
    speakers: int = 1
    """As when the vocoder was made."""
    limit: int = 100
    """How many utterances at most."""
    max_seconds: float = 10.0
    """Longer utterances are not heard."""
    out: Path | None = None
    """A JSON file for the numbers and every transcript."""

    def run(self) -> None:
        spoken = self.read(self.speakers)
        device = find_device("auto")
        vocoder = load_vocoder(self.vocoder, codec=spoken.codec, device=device)
        chosen = choose_heard(spoken, self.limit, self.max_seconds)
        if self.judge == "pocketsphinx":
            judge = sentences_judge(spoken)
        else:
            judge = load_judge(self.judge, model=self.judge_model, language=self.language, device=device)
        found = hear(vocoder, judge, chosen, spoken.codec.hash)
        print(as_table(found, judge), end="")
        if self.out:
            write_heard(found, judge, vocoder, self.out)


_STEPS: dict[str, type] = {
    "codebook": Codebook,
    "hifigan": HifiGan,
    "convert": Convert,
    "speak": Speak,
    "hear": Hear,
}


def run_train_vocoder(args: Sequence[str] | None = None) -> int:
    """The command line of tools/train_vocoder.py."""
    named = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in _STEPS.items()]
    steps: Any = functools.reduce(operator.or_, named)
    return tyro.cli(steps, args=args, prog="train_vocoder.py", description=__doc__).run() or 0
