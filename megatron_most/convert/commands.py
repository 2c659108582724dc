"""Conversions as commands: Hugging Face folders in and out, files cut anew, and a look at what is in a folder.

import and export print sizes, counts and seconds before they start, and compare logits with transformers' before they
end; a folder appears whole or not at all, and the same command goes on where a kill or a full disk stopped it.
"""  # shown to users; imports of torch are late in here, so that usage lines cost none

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from megatron_most.convert.options import ExportOptions, ImportOptions, Layout
from megatron_most.runtime import get_logger, set_threads

say = get_logger(__name__).info


@dataclass(frozen=True, kw_only=True)
class Import:
    """A Hugging Face folder -> a checkpoint of ours, for checkpoint.start-from.

    One tensor is in memory at a time. Before the checkpoint gets its name, the logits gate runs it and transformers'
    model of the source on the same tagged tokens, layer by layer in float32: all logits must agree to 1e-4, or nothing
    is kept and the first layer that differs is named. With groups an import differs from its base on purpose: its
    weights are then compared without them, and each group's constant is measured on text.
    """

    source: Path
    """The model's folder, already downloaded."""
    out: Path
    """A folder that is not there yet."""
    plan: bool = False
    """Say what would be done, and stop."""
    options: Annotated[ImportOptions, tyro.conf.arg(name="")] = field(default_factory=ImportOptions)

    def run(self) -> None:
        from megatron_most.convert.importer import prepare_import, run_import

        prepared = prepare_import(self.source, self.out, self.options)
        say("%s", prepared)
        if not self.plan:
            is_new = run_import(prepared, self.out)
            say("%s: %s", self.out, "done" if is_new else "was there already, made from the same folder")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A checkpoint of ours -> a Hugging Face folder.

    As MostForCausalLM where experts belong to modalities, else as the plain model that says all of it. The logits gate
    compares transformers' model of the new folder with the checkpoint before the folder gets its name; where weights
    are rounded on the way (--dtype), it rounds them for both.
    """

    source: Path
    """A step's folder, or a run's: its newest whole step."""
    out: Path
    """A folder that is not there yet."""
    plan: bool = False
    """Say what would be done, and stop."""
    options: Annotated[ExportOptions, tyro.conf.arg(name="")] = field(default_factory=ExportOptions)

    def run(self) -> None:
        from megatron_most.convert.exporter import prepare_export, run_export
        from megatron_most.convert.ours import open_ours

        prepared = prepare_export(open_ours(self.source), self.options)
        say("%s", prepared)
        if not self.plan:
            run_export(prepared, self.out)
            say("%s: done", self.out)


@dataclass(frozen=True, kw_only=True)
class Reshard:
    """Cut a checkpoint's files anew for another layout. It can be read in any layout without this; it is for speed."""

    source: Path
    out: Path
    plan: bool = False
    """Say what would be done, and stop."""
    layout: Layout = field(default_factory=Layout)

    def run(self) -> None:
        from megatron_most.convert.ours import open_ours
        from megatron_most.convert.reshard import prepare_reshard, run_reshard

        prepared = prepare_reshard(open_ours(self.source), self.layout)
        say("%s", prepared)
        if not self.plan:
            is_new = run_reshard(prepared, self.out)
            say("%s: %s", self.out, "done" if is_new else "was there already, made from the same checkpoint")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a folder of Hugging Face's does not say by itself."""

    token_map: Path | None = None
    num_units: int = 500
    ignore: tuple[str, ...] = ()
    """Fields of config.json that are known to change nothing."""

    def options(self) -> ImportOptions:
        return ImportOptions(token_map=self.token_map, num_units=self.num_units, ignore=self.ignore)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What is in a folder: family, sizes, numbers, files, groups and gate."""

    path: Path
    hashes: bool = False
    """Of every tensor as a whole (a checkpoint of ours), or of every file."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)

    def run(self) -> None:
        from megatron_most.convert.look import inspect

        print(inspect(self.path, self.reading.options(), hashes=self.hashes), end="")


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Prove folders whole: hashes, names, shapes, cover, and every number finite."""

    paths: tuple[Path, ...]
    finite: bool = True
    """Look at every number (a reading of all of it)."""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = field(default_factory=Reading)

    def run(self) -> None:
        from megatron_most.convert.look import verify

        for path in self.paths:
            say("%s: %s", path, verify(path, self.reading.options(), finite=self.finite))


_COMMANDS: dict[str, type] = {
    "import": Import, "export": Export, "reshard": Reshard, "inspect": Inspect, "verify": Verify,
}  # fmt: skip


def read_convert_ckpt(args: Sequence[str] | None = None) -> Any:
    """What a command line of tools/convert_ckpt.py asks for, not yet run."""
    named: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in _COMMANDS.items()
    ]
    return tyro.cli(functools.reduce(operator.or_, named), args=args, prog="convert_ckpt.py", description=__doc__)


def run_convert_ckpt(args: Sequence[str] | None = None) -> None:
    """The command line of tools/convert_ckpt.py."""
    command = read_convert_ckpt(args)
    # Numbers pass through once: more threads than one wait for memory and for each other. With two, on two busy cores,
    # a gate took three times as long and twice the CPU time.
    import torch

    threads = torch.get_num_threads()
    set_threads(1)
    try:
        command.run()
    finally:
        set_threads(threads)
