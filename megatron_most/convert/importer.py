"""Hugging Face folder -> our checkpoint, whose files are cut for a layout: any run can start from it, in any layout.

One tensor (a box of one, where it is cut) is in memory at a time. The output is a step folder as training writes it,
with weights alone: manifest, resolved.toml, token_map.json, and source.json, which says what it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint import DTYPES, MADE_WITH, Record, StoredPiece, StoredTensor
from megatron_most.config import dump
from megatron_most.convert.families import family_of
from megatron_most.convert.hf_folder import HfFolder
from megatron_most.convert.import_checks import (
    check_import,
    measuring_prompts,
    require_comparable,
    set_constants,
)
from megatron_most.convert.import_job import ASIDE, JOB, RECIPE, SOURCE, Import
from megatron_most.convert.options import ImportOptions
from megatron_most.convert.partition import group_lines
from megatron_most.convert.partitioned import (
    prepare_partition,
    read_partition,
    share_out,
    tell_of_it,
)
from megatron_most.convert.recipe import recipe_of
from megatron_most.convert.shares import Place, plan_for, shares
from megatron_most.convert.sources import HfSource, require_sound
from megatron_most.convert.tables import Link, link
from megatron_most.convert.token_maps import FILE as TOKEN_MAP
from megatron_most.convert.token_maps import find_token_map, token_changes
from megatron_most.convert.upcycled_source import UpcycledSource
from megatron_most.convert.upcycling import changes_of, require_unused, table_of
from megatron_most.convert.writing import OutFile, Sums, require_apart, write_folder
from megatron_most.data import MadeWith
from megatron_most.errors import ConfigError
from megatron_most.runtime import is_done, sha256_file, write_atomically
from megatron_most.upstream import find_versions


def prepare_import(folder: Path, out: Path, options: ImportOptions) -> Import:
    """Everything that can be checked before a weight is read. CheckpointError, ConfigError."""
    source = HfFolder(folder)
    require_apart(out, folder)
    family = family_of(source.settings)
    tokens = find_token_map(family, source.settings, source.folder, options.token_map, options.num_units)
    changes: dict[str, Any] = token_changes(tokens, (options.token_map or out / TOKEN_MAP).absolute())
    changes |= {f"layout.{name}": value for name, value in vars(options.layout).items()}
    recipe = partial(recipe_of, family, source.settings, name=out.name, ignored=options.ignore)
    groups, table, upcycle, sizes = options.groups, family.table, options.upcycle, dict[str, int]()
    if options.partition.is_wanted:
        sizes = read_partition(options.partition, recipe(changes=changes), groups, str(source.folder))
        groups = group_lines(sizes)
    if upcycle.is_wanted:
        table = table_of(family, source.settings)
        groups, upcycled = changes_of(upcycle, source.settings, groups)
        changes |= upcycled
    else:
        require_unused(upcycle, family, source.settings, groups)
    if groups:
        changes |= {"moe.groups": list(groups), "moe.shared_only_tags": _shared_only(groups)}
    config = recipe(changes=changes)
    if not upcycle.is_wanted:  # its experts are in no file
        source.require_room(config)
    plan = plan_for(config, tokens)
    vocab = source.settings.integer("vocab_size")
    links = link(table, plan, hf_vocab=vocab)
    aside = source.match(links, family.aside, family.derived_in(config))
    require_sound(source, links, config)
    dtype, allowed = None if options.dtype is None else DTYPES[options.dtype], options.allow_nonfinite
    reader = HfSource(source, dtype, allow_nonfinite=allowed)
    if upcycle.is_wanted:
        reader = UpcycledSource(source, dtype, allow_nonfinite=allowed, options=upcycle, plan=plan)
    dtypes = {found.name: reader.dtype(found) for found in links}
    places = shares(links, plan)
    by_name = {found.name: found for found in links}
    files = [_file(number, share, by_name, dtypes, reader) for number, share in enumerate(places) if share]
    partition = None
    if sizes:
        partition = prepare_partition(options, sizes, source.folder, tokens, vocab=vocab, out=out)
    if aside:
        kept = {name: (source.dtype(name), source.shape(name)) for name in aside}
        files.append(OutFile(ASIDE, kept, reader.read_aside))
    made = Import(source, family, plan, by_name, reader, files, places, dtypes, options, partition)
    if made.measures_constants and (partition is None or partition.prompts is None):
        measuring_prompts(made)  # for its errors
    elif options.audio is not None and partition is None:
        remedy = "give --partition.strategy, or --groups whose constants are measured"
        raise ConfigError("audio", str(options.audio), "nothing here is measured on speech", remedy)
    if options.gate and made.can_be_compared:
        require_comparable(made)
    return made


def run_import(prepared: Import, out: Path) -> bool:
    """Write it; False where it is there already."""
    options, source = prepared.options, prepared.source
    job: dict[str, Any] = {
        "what": "import", "source": source.fingerprint(), "recipe": dump(prepared.plan.config), "dtype": options.dtype,
        "tokens": prepared.plan.tokens.hash, "allow_nonfinite": options.allow_nonfinite,
    }  # fmt: skip
    job |= _provenance(options)
    constants: dict[str, Any] = {}
    begin: Callable[[Path], None] | None = None
    if prepared.partition is not None:
        has_constants = prepared.measures_constants
        job["partition"] = prepared.partition.job | {"constants": has_constants}
        begin = partial(share_out, prepared, has_constants)
    elif prepared.measures_constants:
        job["constants"] = measuring_prompts(prepared).sha256
        if is_done(out, job):
            return False
        constants = {"constants": set_constants(prepared)}
    finish = partial(_finish, prepared, constants)
    return write_folder(out, job, prepared.files, finish, f"import {prepared.family.name}", begin)


def _finish(prepared: Import, constants: dict[str, Any], folder: Path, sums: Sums) -> None:
    config, tokens = prepared.plan.config, prepared.plan.tokens
    about: dict[str, Any] = {
        "family": prepared.family.name,
        "folder": prepared.source.folder.resolve().name,
        "config": json.loads((prepared.source.folder / "config.json").read_bytes()),
        "new_rows": tokens.vocab_size - prepared.source.settings.integer("vocab_size"),
        **_provenance(prepared.options),
        **constants,
    }
    more: list[str] = []
    if prepared.partition is not None:
        told, more = tell_of_it(prepared.partition, folder, about["folder"])
        about |= told
    texts = {RECIPE: dump(config), TOKEN_MAP: tokens.to_json(), SOURCE: json.dumps(about, indent=1) + "\n"}
    if (made_with := prepared.source.folder / MADE_WITH).is_file():  # exported from one of ours
        texts[MADE_WITH] = MadeWith.load(made_with).to_json()
    for name, text in texts.items():
        write_atomically(folder / name, text)
    for name in (*texts, *more, JOB):
        sums[name] = (folder / name).stat().st_size, sha256_file(folder / name)
    pieces: dict[str, list[StoredPiece]] = {found.name: [] for found in prepared.links}
    shapes = {found.name: found.shape for found in prepared.links}
    for number, share in enumerate(prepared.places):
        for name, start, shape in share:
            key = key_of("weight", name, start, shape, shapes[name])
            pieces[name].append(StoredPiece(file_name("weights", number), key, start, shape))
    stored = {
        name: StoredTensor(shapes[name], str(prepared.dtypes[name]).removeprefix("torch."), tuple(found))
        for name, found in pieces.items()
    }
    record = Record(step=0, attempt=0, tensors={"weight": stored}, files=sums, versions=find_versions())
    record.save(folder)
    if prepared.options.gate and prepared.can_be_compared:
        check_import(prepared, folder, record)


def _provenance(options: ImportOptions) -> dict[str, Any]:
    return {"upcycle": options.upcycle.to_dict()} if options.upcycle.is_wanted else {}


def _file(
    number: int, share: Sequence[Place], links: dict[str, Link], dtypes: dict[str, torch.dtype], reader: HfSource
) -> OutFile:
    boxes = {key_of("weight", *place, links[place[0]].shape): place for place in share}

    def read(key: str) -> torch.Tensor:
        name, start, shape = boxes[key]
        return reader.read(links[name], start, shape)

    tensors = {key: (dtypes[name], shape) for key, (name, _, shape) in boxes.items()}
    return OutFile(file_name("weights", number), tensors, read)


def file_name(stem: str, rank: int) -> str:
    """As training names its files."""
    return f"{stem}-{rank:05d}.safetensors"


def key_of(kind: str, name: str, start: Sequence[int], shape: Sequence[int], whole: Sequence[int]) -> str:
    """Likewise: the place only where it is not the whole."""
    return f"{kind}/{name}" + ("" if tuple(shape) == tuple(whole) else "@" + ",".join(map(str, start)))


def _shared_only(groups: Sequence[str]) -> list[str]:
    """Wave markers are the only tag that may go without a group."""
    return [] if any("wave" in line.partition(":")[0] for line in groups) else ["wave"]
