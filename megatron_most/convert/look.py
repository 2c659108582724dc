"""What is in a folder, ours or Hugging Face's, in words; and whether it is whole."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import torch

from megatron_most.config import Plan, count_parameters
from megatron_most.convert.families import FAMILIES, family_for, family_of
from megatron_most.convert.families.fields import runs_of_ids
from megatron_most.convert.hashes import hash_tensor, hash_together
from megatron_most.convert.hf_folder import CONFIG, HfFolder
from megatron_most.convert.options import ImportOptions
from megatron_most.convert.ours import Ours, open_ours
from megatron_most.convert.recipe import recipe_of
from megatron_most.convert.shares import plan_for
from megatron_most.convert.sources import is_finite, require_sound
from megatron_most.convert.tables import Link, link
from megatron_most.convert.token_maps import find_token_map
from megatron_most.convert.upcycling import describe
from megatron_most.convert.writing import gigabytes
from megatron_most.errors import CheckpointError
from megatron_most.runtime import progress, sha256_file


def inspect(path: Path, options: ImportOptions, *, hashes: bool = False) -> str:
    """Family, sizes, numbers, files, groups and gate; with `hashes`, of every tensor (ours) or file."""
    lines = list(_of_hf(path, options, hashes) if is_hf(path) else _of_ours(open_ours(path), hashes))
    return "\n".join(lines) + "\n"


def verify(path: Path, options: ImportOptions, *, finite: bool = True) -> str:
    """What was found whole, in words. CheckpointError for the first thing that is not."""
    if is_hf(path):
        source, plan, links = _open_hf(path, options)
        family = family_of(source.settings)
        aside = source.match(links, family.aside, family.derived_in(plan.config))
        require_sound(source, links, plan.config)
        names = [name for found in links for name, _ in found.parts] + aside
        read = ((name, source.read(name)) for name in progress(names, "verify", "tensor"))
    else:
        ours = open_ours(path)
        ours.require_all_of(_links(ours.plan()), set())
        keys = [(kind, name) for kind, named in ours.record.tensors.items() for name in named]
        read = ((f"{kind} of {name}", ours.read(kind, name)) for kind, name in progress(keys, "verify", "tensor"))
    if not finite:
        proven = "names, shapes, types and sizes" if is_hf(path) else "names, shapes, sizes and hashes"
        return f"{proven} are right; numbers were not looked at"
    return f"whole: {_require_finite(path, read)} tensors, every number finite"


def is_hf(path: Path) -> bool:
    """Which of the two a folder is."""
    return (path / CONFIG).is_file()


def _require_finite(path: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> int:
    count = 0
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")
        count += 1
    return count


def _open_hf(path: Path, options: ImportOptions) -> tuple[HfFolder, Plan, list[Link]]:
    source = HfFolder(path)
    family = family_of(source.settings)
    tokens = find_token_map(family, source.settings, source.folder, options.token_map, options.num_units)
    config = recipe_of(family, source.settings, name=path.name, changes={}, ignored=options.ignore)
    source.require_room(config)
    plan = plan_for(config, tokens)
    return source, plan, link(family.table, plan, hf_vocab=source.settings.integer("vocab_size"))


def _links(plan: Plan) -> list[Link]:
    return link(FAMILIES["most"].table, plan)


def _of_hf(path: Path, options: ImportOptions, hashes: bool) -> Iterator[str]:
    source, plan, _ = _open_hf(path, options)
    family = family_of(source.settings)
    yield f"Hugging Face folder: {family.name} ({source.settings.get('model_type')})"
    yield from _of_model(plan)
    types = Counter(str(source.dtype(name)).removeprefix("torch.") for name in source.where)
    yield f"tensors      {len(source.where)}: {_counts(types)}; {gigabytes(source.num_bytes)}"
    yield f"files        {len(source.files)}"
    for name, file in source.files.items():
        digest = f"  sha256 {sha256_file(file.path)}" if hashes else ""
        yield f"             {name}  {len(file.entries)} tensors  {gigabytes(file.path.stat().st_size)}{digest}"


def _of_ours(ours: Ours, hashes: bool) -> Iterator[str]:
    record, plan = ours.record, ours.plan()
    origin = ours.source.get("family")
    yield f"checkpoint of ours: {ours.folder}, step {record.step}" + (f", imported from {origin}" if origin else "")
    yield f"family       {family_for(ours.config).name}"
    if upcycle := ours.source.get("upcycle"):
        yield f"upcycled     {describe(upcycle)}"
    yield from _of_model(plan)
    constants = [ours.read("weight", name) for name in ours.weights if name.endswith(".mlp.router.group_constant")]
    if constants and plan.moe is not None:
        least, most = torch.stack(constants).aminmax(dim=0)
        ranges = zip(plan.moe.group_names, least.tolist(), most.tolist(), strict=True)
        yield "constants    " + "; ".join(f"{name}: {low:.4g} to {high:.4g}" for name, low, high in ranges)
    if partition := ours.source.get("partition"):
        yield f"partition    by {partition['strategy']}; our experts by the numbers they had in the base model"
        for layer, experts in partition["experts"].items():
            bounds = list(itertools.accumulate(partition["sizes"].values(), initial=0))
            parts = zip(partition["sizes"], itertools.pairwise(bounds), strict=True)
            of = "; ".join(f"{name}: {runs_of_ids(experts[low:high])}" for name, (low, high) in parts)
            yield f"             layer {layer}  {of}"
    layout = {name: size for name, size in vars(ours.config.layout).items() if size and size > 1}
    yield f"recipe       {ours.config.name}; layout {_counts(layout) or 'one rank'}"
    for kind, named in record.tensors.items():
        types = Counter(tensor.dtype for tensor in named.values())
        size = sum(prod(piece.shape) for tensor in named.values() for piece in tensor.pieces)
        pieces = sum(len(tensor.pieces) for tensor in named.values())
        yield f"{kind:12} {len(named)} tensors in {pieces} pieces, {size:,} numbers: {_counts(types)}"
    yield f"files        {len(record.files)}"
    for name, (size, digest) in sorted(record.files.items()):
        yield f"             {name}  {gigabytes(size)}  sha256 {digest}"
    if hashes:
        for kind, named in record.tensors.items():
            found = {name: hash_tensor(ours.reader, kind, name) for name in named}
            yield f"hashes       {kind}, all together: {hash_together(found)}"
            yield from (f"             {digest}  {name}" for name, digest in sorted(found.items()))


def _of_model(plan: Plan) -> Iterator[str]:
    model, size = plan.config.model, count_parameters(plan)
    yield f"parameters   {size.total:,}; {size.active:,} active"
    heads = f"{model.num_heads} heads ({model.attention})"
    yield f"shape        {model.num_layers} layers, {model.hidden_size} wide, {heads}"
    tokens = plan.tokens
    yield f"tokens       {tokens.vocab_size} rows; {tokens.num_units} units from id {tokens.first_unit_id} on"
    if plan.moe is not None:
        moe = plan.moe
        yield f"experts      {moe.num_experts}, {moe.top_k} per token; {len(plan.config.moe.dense_layers)} dense layers"
        groups = zip(moe.group_names, plan.config.moe.groups, strict=True)
        yield "groups       " + "; ".join(line for _, line in groups)
        yield f"gate         {moe.gate}" + (", top-k weights normalised" if moe.normalise_top_k else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
