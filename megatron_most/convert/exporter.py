"""Our checkpoint -> a Hugging Face folder: sharded safetensors, config.json, token map, tokenizer, model card.

A model whose experts belong to modalities is MostForCausalLM there, or, by --text-only, a plain model that keeps the
text experts alone and computes the same on text; as anything else it would be another model, so that needs
--drop-routing. Group constants other than 1 have no place in a plain model: one for all layers becomes its scale,
others are multiplied into the experts' down projections, exactly in float32, with one more rounding, 2^-8 of a
weight at most, in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_most.checkpoint import DTYPES, MADE_WITH, TensorFile
from megatron_most.config import Plan
from megatron_most.convert import card, hf_tokenizer
from megatron_most.convert.export_checks import check_export, require_comparable
from megatron_most.convert.export_job import Export
from megatron_most.convert.families import Family, family_for, family_named, has_modalities
from megatron_most.convert.families.fields import without_modalities
from megatron_most.convert.families.most import ENCODER
from megatron_most.convert.hf_folder import CONFIG, INDEX, SINGLE
from megatron_most.convert.import_job import ASIDE, JOB
from megatron_most.convert.options import ExportOptions
from megatron_most.convert.ours import Ours
from megatron_most.convert.sources import is_finite
from megatron_most.convert.tables import Link, Shape, link
from megatron_most.convert.token_maps import FILE as TOKEN_MAP
from megatron_most.convert.writing import OutFile, Sums, require_apart, write_folder
from megatron_most.data import MadeWith
from megatron_most.errors import CheckpointError
from megatron_most.runtime import sha256_file, write_atomically
from megatron_most.vocab import TEXT

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)B?", re.IGNORECASE)
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def prepare_export(ours: Ours, options: ExportOptions) -> Export:
    """Everything that can be checked before a weight is read."""
    whole = ours.plan()
    plan, experts = _reduced(ours, whole, options)
    family = family_for(plan.config) if options.family == "auto" else family_named(options.family)
    if family.name != "most" and has_modalities(plan.config):
        raise CheckpointError(
            f"{ours.folder}: its experts belong to modalities, which {family.name} cannot say: every token could use "
            "every expert; export it as most, or with --text-only, or, as the other model that it is then, with "
            "--drop-routing"
        )
    config = {**family.write(plan), **_book_keeping(family, plan)}  # where the family cannot say it, it ends here
    if plan.config.model.wave_size:
        config |= {name: value for name, value in ours.source.get("config", {}).items() if name in ENCODER}
    links = link(family.table, whole, experts=experts)
    ours.require_all_of(links, _left_out(whole, options, {found.name for found in links}))
    scale, folded = 1.0, dict[int, float]()
    if family.name != "most" and not (options.drop_routing and has_modalities(whole.config)):
        scale, folded = _constants(ours, whole)
    if scale != 1.0:
        if "routed_scaling_factor" in config:
            config["routed_scaling_factor"] *= scale
        else:
            folded = {layer: scale for layer in range(plan.config.model.num_layers)}
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    parts = [part for found in links for part in _parts(ours, found, dtype, folded)]
    types = [str(part.dtype).removeprefix("torch.") for part in parts]
    config["torch_dtype"] = max(sorted(set(types)), key=types.count)
    files = _shards(parts + list(_aside(ours, family, options, {part.name for part in parts})), options.shard_size)
    tokenizer = {} if options.tokenizer is None else hf_tokenizer.read(options.tokenizer, ours.tokens)
    made = Export(ours, family, plan, config, files, options, folded, tokenizer)
    if options.gate:
        require_comparable(made)
    return made


def run_export(prepared: Export, out: Path) -> None:
    """Write it. DataError where something is there already."""
    ours, options = prepared.ours, prepared.options
    require_apart(out, ours.folder)
    job: dict[str, Any] = {
        "what": "export",
        "source": sha256_file(ours.folder / "manifest.json"),
        "config": prepared.config,
    }
    tensors = [[file.name, [[key, str(dtype), list(shape)] for key, (dtype, shape) in file.tensors.items()]]
               for file in prepared.files]  # fmt: skip
    job |= {"dtype": options.dtype, "shard_size": options.shard_size}
    job |= {"aside": options.aside and str(options.aside.resolve())}
    job |= {"tensors": hashlib.sha256(json.dumps(tensors).encode()).hexdigest()}
    write_folder(out, job, prepared.files, partial(_finish, prepared), f"export {prepared.family.name}")


@dataclass(frozen=True)
class _Part:
    """One HF tensor to be."""

    name: str
    shape: Shape
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def _reduced(ours: Ours, whole: Plan, options: ExportOptions) -> tuple[Plan, tuple[int, ...] | None]:
    """The plan of the exported model, and which experts it has where that is not all."""
    if options.text_only and options.drop_routing:
        raise CheckpointError("--text-only and --drop-routing are two ways out; give one")
    if options.drop_routing and has_modalities(whole.config):
        return ours.plan(without_modalities(whole.config.moe.num_experts)), None
    if not options.text_only:
        return whole, None
    if whole.moe is None or (group := whole.moe.group_of_tag[TEXT]) is None:
        raise CheckpointError(f"{ours.folder}: --text-only keeps the experts of text, and there are none")
    if whole.moe.gate != "masked_softmax" and len(whole.moe.groups) > 1:
        raise CheckpointError(
            f"{ours.folder}: --text-only: under the reference gate other experts too decide a text token's weights"
        )
    if whole.config.moe.routing_groups is not None:
        raise CheckpointError(f"{ours.folder}: --text-only: routing groups (moe.routing_groups) span all experts")
    experts = whole.moe.groups[group]
    alone = {**without_modalities(len(experts)), "moe.num_experts": len(experts), "model.wave_size": 0}
    return ours.plan(alone), experts


def _left_out(whole: Plan, options: ExportOptions, kept: set[str]) -> set[str]:
    """What of the whole model an export does without."""
    if not options.text_only:
        return set()
    everything = {found.name for found in link(family_named("most").table, whole)}
    return {name for name in everything - kept if ".experts." in name or name.startswith("wave.")}


def _constants(ours: Ours, whole: Plan) -> tuple[float, dict[int, float]]:
    """(scale of all layers, what the others' experts are multiplied by)."""
    names = {name: int(name.split(".")[2]) for name in ours.weights if name.endswith(".mlp.router.group_constant")}
    group = whole.moe.group_of_tag[TEXT] if whole.moe else None
    if group is None or not names:
        return 1.0, {}
    found = {layer: float(ours.read("weight", name)[group]) for name, layer in names.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values())), {}
    return 1.0, found


def _parts(ours: Ours, found: Link, dtype: torch.dtype | None, folded: Mapping[int, float]) -> Iterator[_Part]:
    stored = DTYPES[ours.weights[found.name].dtype]
    made = stored if dtype is None or found.is_buffer else dtype
    is_down = found.expert is not None and found.name.endswith("linear_fc2.weight")
    factor = folded.get(found.layer, 1.0) if is_down and found.layer is not None else 1.0
    for number, (name, shape) in enumerate(found.parts):
        yield _Part(name, shape, made, partial(_read, ours, found, number, made, factor))


def _read(ours: Ours, found: Link, part: int, dtype: torch.dtype, factor: float) -> torch.Tensor:
    runs = sorted((run for run in found.runs if run.part == part), key=lambda run: run.part_row)
    rows = [ours.read("weight", found.name, run.row, run.rows) for run in runs]
    data = rows[0] if len(rows) == 1 else torch.cat(rows)
    if factor != 1.0:
        data = data.float() * factor
    made = data.to(dtype)
    if made.dtype != data.dtype and not is_finite(made) and is_finite(data):
        raise CheckpointError(f"{ours.folder}: {found.name} holds numbers beyond {dtype}; choose another --dtype")
    return made


def _aside(ours: Ours, family: Family, options: ExportOptions, learnt: set[str]) -> Iterator[_Part]:
    """What is kept beside the model, but for what the model has learnt anew."""
    if options.aside is not None and (options.text_only or not family.aside):
        wrong = f"{'the text experts alone' if options.text_only else family.name} has no place for it"
        raise CheckpointError(f"--aside {options.aside}: {wrong}; leave it out")
    if not family.aside or options.text_only or (options.aside is None and ASIDE not in ours.record.files):
        return
    file = TensorFile((options.aside or ours.folder) / ASIDE)
    for name, entry in file.entries.items():
        if not any(fnmatchcase(name, pattern) for pattern in family.aside):
            raise CheckpointError(f"{file.path}: {name} is nothing that is kept beside a model of {family.name}")
        if name not in learnt:
            yield _Part(name, entry.shape, entry.dtype, partial(file.read, name))


def _shards(parts: list[_Part], shard_size: str) -> list[OutFile]:
    match = _SIZE.fullmatch(shard_size)
    if match is None or not float(match[1]):
        raise CheckpointError(f"--shard-size {shard_size}: no size; write it like 5GB or 500MB")
    limit = float(match[1]) * _UNITS[match[2].upper()]
    shards: list[list[_Part]] = []
    room = 0.0
    for part in parts:
        size = torch.Size(part.shape).numel() * part.dtype.itemsize
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(part)
        room -= size
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    return [_shard(name, shard) for name, shard in zip(names if len(shards) > 1 else [SINGLE], shards, strict=True)]


def _shard(name: str, parts: list[_Part]) -> OutFile:
    readers = {part.name: part.read for part in parts}
    tensors = {part.name: (part.dtype, part.shape) for part in parts}
    return OutFile(name, tensors, lambda key: readers[key](), {"format": "pt"})


def _book_keeping(family: Family, plan: Plan) -> dict[str, Any]:
    tokens = plan.tokens
    return {
        "architectures": [family.architecture], "model_type": family.model_types[0],
        "bos_token_id": tokens.bos_id, "eos_token_id": tokens.eos_id, "pad_token_id": tokens.pad_id, "use_cache": True,
    }  # fmt: skip


def _finish(prepared: Export, folder: Path, sums: Sums) -> None:
    config = dict(prepared.config)
    if prepared.family.name == "most":
        from megatron_most.convert.most_hf import AUTO_MAP, copy_code  # and transformers: other exports do without

        copy_code(folder)
        config["auto_map"] = AUTO_MAP
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    texts = {CONFIG: config, "generation_config.json": ids}
    if len(prepared.files) > 1:
        where = {key: file.name for file in prepared.files for key in file.tensors}
        total = sum(file.num_bytes for file in prepared.files)
        texts[INDEX] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    written = {name: json.dumps(values, indent=2, ensure_ascii=False) + "\n" for name, values in texts.items()}
    ours, plan = prepared.ours, prepared.plan
    written[TOKEN_MAP] = ours.tokens.to_json()
    if MADE_WITH in ours.record.files:
        written[MADE_WITH] = MadeWith.load(ours.folder / MADE_WITH).to_json()
    written["README.md"] = card.render(
        prepared.options.card, ours, plan, prepared.family.name, config, bool(prepared.tokenizer)
    )
    for name, text in {**written, **prepared.tokenizer}.items():
        write_atomically(folder / name, text)
    if prepared.options.gate:
        check_export(prepared, folder)
    (folder / JOB).unlink()
