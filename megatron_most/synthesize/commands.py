"""Synthetic dialogues for phase 2: written from seeds or from chats, joined, looked at, compared with real data."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from megatron_most.data.corpora.records import SUFFIXES
from megatron_most.data.rejects import told
from megatron_most.data.shards import WHOLE, find_shard, shard_folder
from megatron_most.errors import DataError
from megatron_most.runtime import get_logger, num_cores, reading, require_file, sha256_file
from megatron_most.runtime.page import require_page
from megatron_most.synthesize.bias import BiasOptions, compare
from megatron_most.synthesize.bias_page import write_bias
from megatron_most.synthesize.brief import Shape, Source, briefs_of_chats, briefs_of_seeds
from megatron_most.synthesize.casting import Weights
from megatron_most.synthesize.dialogues import DIALOGUES, DIVERSITY, REJECTS, Work, make_dialogues
from megatron_most.synthesize.diversity_page import write_diversity
from megatron_most.synthesize.endpoint import EndpointOptions, EndpointWriter
from megatron_most.synthesize.filters import Filters, Safety
from megatron_most.synthesize.grammar import GrammarWriter
from megatron_most.synthesize.ledger import Budget, open_ledger
from megatron_most.synthesize.merge import merge_dialogues, open_dialogues
from megatron_most.synthesize.seeds import load_seeds
from megatron_most.synthesize.speak import HEADER as SPEECH
from megatron_most.synthesize.speak import JudgeOptions, Speech, speak_dialogues
from megatron_most.synthesize.voice_endpoint import VoiceBudget
from megatron_most.synthesize.voice_opening import open_speaker
from megatron_most.synthesize.voices import VoiceOptions
from megatron_most.synthesize.writer import Writer

say = get_logger(__name__).info
_DEFAULT_WANTED = 500


@dataclass(frozen=True, kw_only=True)
class Dialogues:
    """Write spoken dialogues from seeds, or put written chats into spoken words. Killed, it goes on where it was."""

    out: Path
    """The folder to write: dialogues.jsonl, rejects.jsonl, diversity.json, synthesis.json."""
    seeds: Path | None = None
    """Topics, facts and personas, as TOML or JSON lines."""
    chats: tuple[Path, ...] = ()
    """Instead of seeds: parquet or JSON-lines files of chats to put into spoken words, or folders of them."""
    column: str = "messages"
    """The column of the chats."""
    dialogues: int | None = None
    """How many are wanted, over all shards; not set = 500 of seeds, or all that the chats give."""
    writer: Literal["grammar", "endpoint"] = "grammar"
    """grammar: offline, by rule. endpoint: a language model behind an OpenAI-compatible service."""
    seed: int = 0
    shard: str = "auto"
    """i/n, counted from 0; auto: the Slurm array task, or the whole."""
    max_reject_rate: float = 0.5
    """Share of briefs that may come to nothing before the run stops."""
    ledger: Path | None = None
    """endpoint: the folder of what was paid for; not set = OUT.ledger. Runs that share one share its budget."""
    shape: Shape = field(default_factory=Shape)
    filters: Filters = field(default_factory=Filters)
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    budget: Budget = field(default_factory=Budget)

    def run(self) -> None:
        self._check()
        shard = find_shard(self.shard)
        work = self._work(shard)
        with contextlib.ExitStack() as stack:
            writer: Writer
            if self.writer == "grammar":
                writer = GrammarWriter(drop_code=self.filters.code == "drop")
            else:
                folder = shard_folder(self.out, shard)
                ledger = self.ledger or folder.with_name(f"{folder.name}.ledger")
                writer = EndpointWriter(self.endpoint, stack.enter_context(open_ledger(ledger, self.budget)))
            folder = make_dialogues(work, writer, self.out, shard)
        header, _ = open_dialogues(folder)
        words = f"{header['dialogues']} dialogues of {header['briefs']} briefs, {header['interruptions']} interruptions"
        where = f"; shard {shard[0]} of {shard[1]}" * (shard != WHOLE)
        say("%s: %s; %s%s", folder, words, told(header["rejects"], folder / REJECTS), where)

    def _check(self) -> None:
        if bool(self.seeds) == bool(self.chats):
            raise DataError("give --seeds FILE, or --chats FILES: the one or the other")
        if self.dialogues is not None and self.dialogues < 1:
            raise DataError(f"--dialogues {self.dialogues}: give 1 or more")
        if not 0 <= self.max_reject_rate < 1:
            raise DataError(f"--max-reject-rate {self.max_reject_rate}: give 0 or more, and less than 1")
        if not 0.2 <= self.filters.near_duplicate <= 1:
            raise DataError(f"--filters.near-duplicate {self.filters.near_duplicate}: give 0.2 to 1 (1: never)")
        if self.writer == "grammar" and (self.endpoint != EndpointOptions() or self.budget != Budget() or self.ledger):
            raise DataError("--endpoint, --budget and --ledger are for --writer endpoint: give that too")
        self.shape.check()

    def _work(self, shard: tuple[int, int]) -> Work:
        shape, wanted = self.shape, self.dialogues
        if self.seeds:
            seeds = load_seeds(self.seeds)
            for seed in seeds.bad:
                say("%s: %s set aside: %s: %s", self.seeds, seed.id, seed.reason, seed.detail)
            made_from: dict[str, Any] = {"seeds": seeds.hash, "seed": self.seed}
            bad = seeds.bad
            wanted = wanted or _DEFAULT_WANTED

            def briefs(start: int) -> Source:
                return briefs_of_seeds(seeds, shape, self.seed, shard, start)
        else:
            made_from = {"chats": _hash_of(self.chats), "column": self.column, "seed": self.seed}
            bad = ()

            def briefs(start: int) -> Source:
                return briefs_of_chats(self.chats, self.column, shape, self.seed, shard, start)

        return Work(
            briefs=briefs,
            wanted=None if wanted is None else len(range(shard[0], wanted, shard[1])),
            shape=shape,
            filters=self.filters,
            safety=Safety(self.filters.safety),
            max_reject_rate=self.max_reject_rate,
            made_from=made_from,
            bad_seeds=bad,
        )


def _hash_of(paths: Sequence[Path]) -> str:
    """Of the chats' files, as they are."""
    found = hashlib.sha256()
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [require_file(path)]
        for file in sorted(one for one in inside if one.name.endswith(SUFFIXES) and one.is_file() or one == path):
            with reading(file, "check the path of --chats"):
                found.update(f"{file.name} {sha256_file(file)}\n".encode())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Join the shards of a set of dialogues into one, without near-duplicates between them."""

    dialogues: Path
    """The folder that holds all shards."""
    out: Path
    near_duplicate: float = 0.8

    def run(self) -> None:
        if not 0.2 <= self.near_duplicate <= 1:
            raise DataError(f"--near-duplicate {self.near_duplicate}: give 0.2 to 1 (1: never)")
        folder = merge_dialogues(self.dialogues, self.out, self.near_duplicate)
        header, _ = open_dialogues(folder)
        say("%s: %d dialogues; look at %s and %s", folder, header["dialogues"], DIALOGUES, DIVERSITY)


@dataclass(frozen=True, kw_only=True)
class Speak:
    """Let voices say dialogues, a judge hear them, and write what is good for `prepare_data.py`. Resumable, sharded."""

    dialogues: Path
    """A finished folder of dialogues."""
    out: Path
    """The folder to write: utterances.jsonl, spoken.jsonl, written.jsonl, rejects.jsonl, audio/."""
    name: str
    """Name of the corpus, which `manifest jsonl --name` is given too: utterances are known by it."""
    voices: tuple[str, ...]
    """One is drawn for each dialogue's user, another for its assistant."""
    assistant_voices: tuple[str, ...] = ()
    """Not set = all of --voices."""
    seed: int = 0
    shard: str = "auto"
    """i/n, counted from 0; auto: the Slurm array task, or the whole."""
    workers: int = 0
    """Dialogues spoken at a time; 0 = as many as there are cores for this process."""
    max_reject_rate: float = 0.5
    """Share of dialogues that may be set aside before the run stops."""
    ledger: Path | None = None
    """--voice.url: the folder of what was paid for; not set = OUT.ledger. Runs that share one share its budget."""
    budget: VoiceBudget = field(default_factory=VoiceBudget)
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    weights: Weights = field(default_factory=Weights)
    judge: JudgeOptions = field(default_factory=JudgeOptions)

    def run(self) -> None:
        self.weights.check()
        voices = (*self.voices, *self.assistant_voices)
        if not self.voices or not all(re.fullmatch(r"[\w.:@-]{1,64}", one) and one[0] != "-" for one in voices):
            raise DataError(f"--voices {' '.join(voices)}: give names of voices: letters, digits and . : @ - _")
        if not re.fullmatch(r"[\w.-]{1,64}", self.name) or self.workers < 0:
            raise DataError(f"--name {self.name}, --workers {self.workers}: give a plain name, and 0 or more workers")
        header, dialogues = open_dialogues(self.dialogues)
        speech = Speech(
            dialogues=dialogues,
            hash=header["files"][DIALOGUES][1],
            name=self.name,
            voices=self.voices,
            assistant_voices=self.assistant_voices,
            weights=self.weights,
            judge=self.judge,
            seed=self.seed,
            max_reject_rate=self.max_reject_rate,
            workers=self.workers or num_cores(),
        )
        shard = find_shard(self.shard)
        folder = shard_folder(self.out, shard)
        default = folder.with_name(f"{folder.name}.ledger")
        with open_speaker(self.voice, self.budget, self.ledger, default) as speaker:
            speaker.check_voices(voices)
            speak_dialogues(speech, speaker, self.out, shard)
            used = speaker.told()
        done = json.loads((folder / SPEECH).read_text())
        words = f"{done['spoken']} dialogues with speech, {done['written']} without, {done['seconds'] / 3600:.2f} h"
        say("%s: %s; %s%s", folder, words, told(done["rejects"], folder / REJECTS), f"; {used}" * bool(used))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Show how varied a set of dialogues is, as a page that loads nothing: topics, lengths, phrases."""

    dialogues: Path
    """A finished folder."""
    out: Path
    """The page, a name that ends in .html."""

    def run(self) -> None:
        require_page(self.out, f"or look at {DIVERSITY}")
        header, dialogues = open_dialogues(self.dialogues)
        write_diversity(header, dialogues, self.out, self.dialogues.name)
        say("%s: %d dialogues", self.out, len(dialogues))


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Compare synthetic with real data: speakers, lengths, topics, words, units; what differs by more than chance."""

    synthetic: tuple[Path, ...]
    """Manifests of the synthetic data: speech, text or chats."""
    real: tuple[Path, ...]
    """Manifests of the real data."""
    synthetic_units: tuple[Path, ...] = ()
    """Unit sets of the synthetic speech, likewise."""
    real_units: tuple[Path, ...] = ()
    out: Path
    """The numbers, a name that ends in .json."""
    page: Path | None = None
    """A page with plots, a name that ends in .html."""
    options: Annotated[BiasOptions, tyro.conf.arg(name="")] = field(default_factory=BiasOptions)

    def run(self) -> None:
        if self.page:
            require_page(self.page, "or leave --page out")
        found = compare(self.synthetic, self.real, self.synthetic_units, self.real_units, self.options)
        write_bias(found, self.out, self.page)
        for line in found.lines():
            print(line)
        say("%s: %s", self.out, found.verdict())


_STEPS: dict[str, type] = {"dialogues": Dialogues, "merge": Merge, "speak": Speak, "report": Report, "bias": Bias}


def run_synthesize(args: Sequence[str] | None = None) -> None:
    """The command line of tools/synthesize.py."""
    named = [Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in _STEPS.items()]
    chosen: Any = functools.reduce(operator.or_, named)
    tyro.cli(chosen, args=args, prog="synthesize.py", description=__doc__).run()
