"""The steps of data preparation as commands: corpora as downloaded in, indexed unit datasets out.

manifest (-> augment) -> fit -> units -> build (-> merge) -> verify -> stats; continuous speech: manifest -> build ->
frames.
Every step is a folder that can be opened, counted and resumed; run again, a finished step says so and does nothing. An
option for a folder is named by what the folder is: --manifest, --units, --dataset; a step that takes several takes them
one after the other.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from megatron_most.data.augment_command import Augment
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.corpora import CORPORA, Corpus, write_manifest
from megatron_most.data.dataset import load_info
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.fit import fit_codec
from megatron_most.data.fit_vocabulary import fit_vocabulary
from megatron_most.data.frames_command import FrameOptions, KeepFrames
from megatron_most.data.manifest import REJECTS, open_manifest
from megatron_most.data.merge import merge
from megatron_most.data.overlap import load_evaluation_set
from megatron_most.data.rejects import told
from megatron_most.data.shards import WHOLE, find_shard, shard_folders
from megatron_most.data.stats import as_text, count, count_speakers
from megatron_most.data.stats_page import find_examples, require_page, write_page
from megatron_most.data.tasks import TaskOptions
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer, token_map_for
from megatron_most.data.unit_set import UnitShard, open_units
from megatron_most.data.verify_folder import verify_folder
from megatron_most.errors import DataError
from megatron_most.runtime import get_logger, require_file
from megatron_most.speech import HubertFeatures, load_codec
from megatron_most.vocab import TokenMap

say = get_logger(__name__).info


def _one_of(choices: Mapping[str, type]) -> Any:
    """A type for tyro: one of these classes, each a subcommand without prefixes."""
    named = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in choices.items()]
    return functools.reduce(operator.or_, named)


if TYPE_CHECKING:
    _AnyCorpus = Corpus
else:
    _AnyCorpus = Annotated[_one_of(CORPORA), tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class FitCodec:
    """Fit k-means centroids for units: on MFCCs (no download), or on a layer of a HuBERT model."""

    manifest: tuple[Path, ...]
    """One or more."""
    out: Path
    """The codec's folder: codec.json and centroids.safetensors."""
    num_units: int = 500
    hours: float = 10.0
    """How much speech to fit on, spread evenly over the manifests."""
    model: str | None = None
    """A HuBERT model, a folder or hub id in transformers' format; not set = MFCCs."""
    layer: int | None = None
    """Which layer of it, counted from 1."""
    frame_ms: Literal[20, 40] = 40
    """MFCCs: frame period; 40 is 25 Hz, 20 is 50 Hz. A model has its own."""
    centred: bool = False
    """MFCCs: less their mean over each utterance, so that units follow the sounds more and the voice less."""
    audio_root: Path | None = None
    """Where the audio is, if it has moved since the manifests were made."""
    seed: int = 0

    def run(self) -> None:
        if (self.model is None) != (self.layer is None):
            raise DataError("--model and --layer belong together: give both for HuBERT, neither for MFCCs")
        if self.model and self.centred:
            raise DataError("--centred is for MFCCs; leave it out with --model")
        features = HubertFeatures(self.model, self.layer) if self.model and self.layer else None
        identity = fit_codec(
            [open_manifest(folder) for folder in self.manifest],
            self.out,
            num_units=self.num_units,
            hours=self.hours,
            seed=self.seed,
            frame_s=self.frame_ms / 1000,
            centred=self.centred,
            features=features,
            audio_root=self.audio_root,
        )
        say("%s: %s, %d units of %g ms", self.out, identity.name, identity.num_units, identity.frame_s * 1000)


@dataclass(frozen=True, kw_only=True)
class FitTokenizer:
    """Train a small byte-level BPE tokenizer on the texts of manifests, with a token map: for models of your own."""

    manifest: tuple[Path, ...]
    """One or more."""
    out: Path
    """A folder: tokenizer.json, tokenizer_config.json and token_map.json."""
    vocab_size: int = 1024
    num_units: int = 500

    def run(self) -> None:
        manifests = [open_manifest(folder) for folder in self.manifest]
        tokens = fit_vocabulary(manifests, self.out, vocab_size=self.vocab_size, num_units=self.num_units)
        say("%s: %s", self.out, _sizes(tokens))


@dataclass(frozen=True, kw_only=True)
class MakeTokenMap:
    """Write the token map of a tokenizer: where units and marks go in its vocabulary, and what ends a document."""

    tokenizer: Path
    """tokenizer.json, a folder with one, or a sentencepiece model."""
    out: Path
    """The file to write: token_map.json."""
    backbone: Literal["own", "llama", "deepseek"] = "own"
    """own: units go after the tokenizer's last token. llama, deepseek: where these models have rows for them."""
    num_units: int = 500
    multiple: int = 128
    """Rows of the vocabulary are filled up to a multiple of this, so that tensor parallelism can divide them."""
    bos: str | None = None
    """A document's first token, as the tokenizer spells it, or its id; not set = the one that tokenizer_config.json,
    the sentencepiece model or the backbone names."""
    eos: str | None = None
    """A document's last token, likewise: <|eot_id|> of Llama's instruct models."""
    pad: str | None = None
    """The token of empty places, likewise."""

    def run(self) -> None:
        if self.out.suffix != ".json" or self.out.is_dir():
            raise DataError(f"{self.out}: not a name for a token map; give --out a file name that ends in .json")
        special = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        tokens = token_map_for(self.tokenizer, self.backbone, self.num_units, multiple=self.multiple, **special)
        if self.out.exists() and TokenMap.load(self.out) != tokens:
            raise DataError(f"{self.out}: holds another token map; choose another file or remove it")
        tokenizer = load_tokenizer(self.tokenizer)
        ids = {"bos": tokens.bos_id, "eos": tokens.eos_id, "pad": tokens.pad_id}
        named = ", ".join(f"{role} {id} ({tokenizer.token_of(id)})" for role, id in ids.items())
        self.out.parent.mkdir(parents=True, exist_ok=True)
        tokens.save(self.out)
        say("%s: %s; %s", self.out, _sizes(tokens), named)


@dataclass(frozen=True, kw_only=True)
class Units:
    """Turn a manifest's speech into units. Killed, it goes on where it was; shards run side by side."""

    manifest: Path
    codec: str
    """A codec's folder, or a preset: mhubert-25hz-500, hubert-50hz-500."""
    centroids: Path | None = None
    """Presets: the file of their published centroids, as .npy, .pt or .safetensors."""
    model: Path | None = None
    """HuBERT: where the model is, if not where the codec or preset says."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """HuBERT: what it computes in; auto is bf16 on GPUs that have it, else fp32. Units of both do not mix."""
    out: Path
    shard: str = "auto"
    """i/n, counted from 0; auto: the Slurm array task, or the whole."""
    audio_root: Path | None = None
    """Where the audio is, if it has moved since the manifest was made."""
    options: Annotated[ExtractOptions, tyro.conf.arg(name="")] = field(default_factory=ExtractOptions)

    def run(self) -> None:
        manifest = open_manifest(self.manifest)
        shard = find_shard(self.shard)
        codec = load_codec(self.codec, centroids=self.centroids, model=self.model, precision=self.precision)
        say("codec %s (--precision %s)", codec.identity, self.precision)
        folder = extract_units(manifest, codec, self.out, shard, self.options, self.audio_root or manifest.audio_root)
        head = UnitShard(folder).header
        rate = head.units / head.seconds if head.seconds else 0.0
        words = f"{head.utterances} utterances, {head.seconds / 3600:.2f} h, {rate:.1f} units/s"
        say("%s: %s, %s", folder, words, told(head.rejects, folder / REJECTS))


@dataclass(frozen=True, kw_only=True)
class Build:
    """Make the documents of one task and write them as an indexed dataset that Megatron-Core opens."""

    task: Literal["asr", "tts", "text-lm", "audio-lm", "interleaved", "speech-instruct", "text-instruct"]
    manifest: tuple[Path, ...]
    """One or more."""
    out: Path
    tokenizer: Path
    """tokenizer.json, a folder with one, or a sentencepiece model."""
    tokens: str = "deepseek"
    """The token map: deepseek, llama, or a file that `token-map` or `fit-tokenizer` wrote."""
    units: tuple[Path, ...] = ()
    """Unit sets of the manifests, or of the utterances that chats name."""
    num_units: int = 500
    """deepseek, llama: how many units the map has."""
    templates: str = "chat"
    """chat, release (the public MoST release's wording), varied (chat with many more phrasings), or a TOML file."""
    phrasing_seed: int = 0
    """Another seed gives the same documents other phrasings."""
    part: Literal["all", "train", "valid"] = "all"
    """all rows; or, of a corpus without a validation split, the rows kept for training, or those held out."""
    hold_out: float = 0.0
    """train, valid: the share held out."""
    hold_out_by: Literal["speaker", "recording", "row"] = "speaker"
    """What stays on one side: speakers, so that validation hears new voices, or less. Texts and chats go by row."""
    evaluation: dict[str, Path] = field(default_factory=dict)
    """Evaluation sets to look for (name path ...): manifests, JSON lines or plain text."""
    refuse_overlap: bool = False
    """Leave out what overlaps with an evaluation set, instead of listing it."""
    copy: int = 1
    """Chats, where --units has augmented utterances: which copy of them users are heard by."""
    shard: str = "auto"
    """i/n, counted from 0; auto: the Slurm array task, or the whole."""
    workers: int = 1
    max_reject_rate: float = 0.05
    interleave: TaskOptions = field(default_factory=TaskOptions)
    heard: Annotated[FrameOptions, tyro.conf.arg(name="")] = field(default_factory=FrameOptions)

    def run(self) -> None:
        if (self.part == "all") != (self.hold_out == 0):
            raise DataError(
                f"--part {self.part} with --hold-out {self.hold_out:g}: train and valid need a share, all has none"
            )
        tokenizer = load_tokenizer(self.tokenizer)
        inputs = BuildInputs(
            manifests=tuple(open_manifest(folder) for folder in self.manifest),
            units=tuple(open_units(path) for path in self.units),
            tokens=_token_map(self.tokens, self.tokenizer, self.num_units),
            tokenizer=tokenizer,
            templates=replace(load_templates(self.templates), seed=self.phrasing_seed),
            evaluation=tuple(load_evaluation_set(name, path) for name, path in self.evaluation.items()),
            frames=self.heard.inputs(),
        )
        options = BuildOptions(
            task=self.task,
            part=self.part,
            hold_out=self.hold_out,
            hold_out_by=self.hold_out_by,
            refuse_overlap=self.refuse_overlap,
            copy=self.copy,
            max_reject_rate=self.max_reject_rate,
            workers=self.workers,
            task_options=self.interleave,
        )
        shard = find_shard(self.shard)
        folder = build(inputs, options, self.out, shard)
        where = f"shard {shard[0]} of {shard[1]}" if shard != WHOLE else "look at README.md there"
        say("%s: %s; %s", folder, _counted(folder), where)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Join the shards of a dataset into one. Tokens are copied once."""

    dataset: Path
    """The folder that holds all shards of it."""
    out: Path

    def run(self) -> None:
        folders = shard_folders(self.dataset)
        if not folders:
            raise DataError(f"{self.dataset}: no shards here; give the folder that `build --shard I/N` wrote into")
        merge(folders, self.out)
        say("%s: %d shards merged: %s", self.out, len(folders), _counted(self.out))


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Prove folders whole: sizes, hashes, every id and tag, and that stock Megatron-Core reads the same."""

    paths: tuple[Path, ...]
    """Manifests, unit sets and datasets; or folders with all shards of one."""
    with_core: bool = True
    """Open datasets with Megatron-Core too (its import takes some seconds)."""

    def run(self) -> None:
        for path in self.paths:
            say("%s: whole; %s", path, verify_folder(path, with_core=self.with_core))


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Count what is in datasets: hours, tokens, units per second, lengths; and a page with plots and sounds."""

    dataset: tuple[Path, ...]
    """One or more."""
    out: Path | None = None
    """An HTML page; not set = numbers only."""
    manifest: Path | None = None
    """Speakers' hours for the page; with --units, playable examples too."""
    units: Path | None = None
    audio_root: Path | None = None
    """Where the audio is, if it has moved since the manifest was made."""

    def run(self) -> None:
        if (self.manifest or self.units or self.audio_root) and not self.out:
            raise DataError("--manifest, --units and --audio-root are for the page: give --out too, or none of them")
        if (self.units or self.audio_root) and not self.manifest:
            raise DataError("--units and --audio-root need --manifest: the one that the units were made from")
        if self.out:
            require_page(self.out)
        manifest = open_manifest(self.manifest) if self.manifest else None
        units = open_units(self.units) if self.units else None
        found = count(self.dataset)
        print(as_text(found), end="")
        if self.out:
            examples = find_examples(manifest, units, self.audio_root) if manifest and units else ()
            write_page(found, examples, self.out, count_speakers(manifest) if manifest else ())
            say("%s: %d examples", self.out, len(examples))


def _token_map(name: str, tokenizer: Path, num_units: int) -> TokenMap:
    """A backbone's map, once the tokenizer is seen to be that backbone's; or a file."""
    if name == "deepseek":
        return token_map_for(tokenizer, "deepseek", num_units)
    if name == "llama":
        return token_map_for(tokenizer, "llama", num_units)
    return TokenMap.load(require_file(name, remedy="give deepseek, llama or a token_map.json"))


def _sizes(tokens: TokenMap) -> str:
    return f"{tokens.text_size:,} text tokens, {tokens.num_units:,} units, {tokens.vocab_size:,} rows"


def _counted(folder: Path) -> str:
    """What a dataset holds, and what became of the other rows: the end of a step's last line."""
    info = load_info(folder)
    by_tag = ", ".join(f"{count:,} {tag}" for tag, count in info.tokens_by_tag.items() if count)
    words = f"{info.documents:,} documents, {info.num_tokens:,} tokens" + (f" ({by_tag})" if by_tag else "")
    if info.seconds:
        words += f", {info.seconds / 3600:.2f} h of {info.task}"
    if info.untimed_units:
        words += f", {info.untimed_units:,} units of unknown length"
    ranked = sorted(info.rejects.items(), key=lambda item: (-item[1], item[0]))
    reasons = f" ({', '.join(f'{count:,} {reason}' for reason, count in ranked)})" if ranked else ""
    return f"{words}; {told(info.rejects, folder / REJECTS)}{reasons}"


@dataclass(frozen=True, kw_only=True)
class MakeManifest:
    """Read a corpus as downloaded into checked rows; which corpus is the next word."""

    corpus: _AnyCorpus

    def run(self) -> None:
        header = write_manifest(self.corpus)
        words = f"{header.rows} rows" + (f", {header.seconds / 3600:.2f} h" if header.kind == "speech" else "")
        say("%s: %s, %s", self.corpus.out, words, told(header.rejects, self.corpus.out / REJECTS))


_STEPS: dict[str, type] = {
    "manifest": MakeManifest,
    "augment": Augment,
    "fit-codec": FitCodec,
    "fit-tokenizer": FitTokenizer,
    "token-map": MakeTokenMap,
    "units": Units,
    "build": Build,
    "frames": KeepFrames,
    "merge": Merge,
    "verify": Verify,
    "stats": Stats,
}


def read_prepare_data(args: Sequence[str] | None = None) -> Any:
    """The step that a command line of tools/prepare_data.py asks for, not yet run."""
    return tyro.cli(_one_of(_STEPS), args=args, prog="prepare_data.py", description=__doc__)


def run_prepare_data(args: Sequence[str] | None = None) -> None:
    """The command line of tools/prepare_data.py."""
    read_prepare_data(args).run()
