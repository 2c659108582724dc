"""An import's partition: what was asked for, how much the base model uses its experts, and whose they become.

What was found is partition.json of the checkpoint (and of the unfinished one: an import that goes on after a kill goes
on with the same partition, and does not measure again). Orders follow from the rounded numbers that are in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_most.config import Plan, RunConfig
from megatron_most.convert.families import has_modalities
from megatron_most.convert.import_job import Import, Partition
from megatron_most.convert.options import ImportOptions, PartitionOptions
from megatron_most.convert.partition import (
    MEASURED,
    Order,
    order_of,
    ours_by_theirs,
    read_sizes,
    require_choosable,
)
from megatron_most.convert.partition_page import describe, write_page
from megatron_most.convert.prompts import BUILT_IN, joined, read_lines, text_prompts, tokenizer_at
from megatron_most.convert.readers import CONSTANT, as_base, read_import
from megatron_most.convert.speech_prompts import speech_prompts
from megatron_most.convert.tables import link
from megatron_most.errors import CheckpointError, ConfigError
from megatron_most.runtime import write_atomically
from megatron_most.runtime.page import require_page
from megatron_most.vocab import TokenMap

if TYPE_CHECKING:
    from megatron_most.convert.measure import Usage

# What runs models is imported where it runs: a look into a folder needs no Megatron-Core.

FILE, PAGE = "partition.json", "partition.html"
ROWS, LENGTH = 16, 128
"""Of prompts of a kind."""
_DIGITS = 6  # of a share: threads add in another order


def read_partition(options: PartitionOptions, base: RunConfig, groups: Sequence[str], where: str) -> dict[str, int]:
    """The sizes of what is asked for. `base`: of the model as it is; `groups`: those of --groups. ConfigError."""
    strategy = options.strategy
    if strategy is None:
        wrong = "sizes alone say nothing of which experts are meant"
        raise ConfigError("partition.sizes", options.sizes, wrong, "give --partition.strategy too")
    if groups:
        wrong = f"--groups says whose each expert is: {', '.join(groups)}"
        raise ConfigError("partition.strategy", strategy, wrong, "give one of the two")
    if not base.moe.num_experts:
        remedy = "--upcycle makes some, with groups of its own"
        raise CheckpointError(f"{where}: a dense model has no experts to be shared out by a partition; {remedy}")
    if has_modalities(base):
        remedy = "leave the strategy out to keep that, or say it anew with --groups"
        wrong = f"{where}: its experts belong to modalities already ({'; '.join(base.moe.groups)})"
        raise ConfigError("partition.strategy", strategy, wrong, remedy)
    if base.moe.routing_groups is not None and strategy != "index":
        wrong = f"{where}: n_group = {base.moe.routing_groups}: routing groups are runs of numbers"
        raise ConfigError("partition.strategy", strategy, wrong, "renumbered it would be another model: use index")
    sizes = read_sizes(options.sizes, base.moe.num_experts)
    require_choosable(strategy, sizes)
    return sizes


def prepare_partition(
    options: ImportOptions, sizes: dict[str, int], folder: Path, tokens: TokenMap, *, vocab: int, out: Path
) -> Partition:
    """Everything that can be checked before a weight is read. `vocab`: rows of the model's own vocabulary."""
    strategy, text, audio = options.partition.strategy, options.text, options.audio
    assert strategy is not None, "read_partition refuses it"
    if options.partition.page:
        require_page(out / PAGE, "or do without it: --partition.no-page")
    if strategy == "affinity" and audio is None:
        remedy = "give --audio FILE: utterances, a line each, as units or (for a model that knows none) transcripts"
        raise ConfigError("partition.strategy", "affinity", "needs to see how speech uses the experts", remedy)
    tokenizer = tokenizer_at(options.tokenizer or folder)
    if tokenizer is None and (strategy in MEASURED or text is not None):
        wrong = "no tokenizer.json, so no text can be given to the model"
        raise CheckpointError(f"{folder}: {wrong}; give the model's own with --tokenizer FOLDER")
    parts = []
    if tokenizer is not None:
        lines, source = read_lines(text or BUILT_IN), "a page of ours" if text is None else text.name
        parts.append(text_prompts(lines, tokenizer, tokens, rows=ROWS, length=LENGTH, source=source))
    if audio is not None:
        parts.append(speech_prompts(audio, tokenizer, tokens, vocab=vocab, rows=ROWS, length=LENGTH))
    return Partition(strategy, sizes, joined(*parts) if parts else None, options.partition.page)


def share_out(prepared: Import, has_constants: bool, folder: Path) -> None:
    """Find the partition, or take the one that an earlier try has left in the folder. From here on each layer's experts
    are read in the order of theirs, and if it has constants, their groups' are those that were measured.
    """
    partition = prepared.partition
    assert partition is not None, "asked for"
    if not (folder / FILE).exists():
        from megatron_most.convert.measure import measure_usage

        usages: list[Usage] = []
        if partition.prompts is not None:
            base, read = as_base(prepared.plan, read_import(prepared.reader, prepared.links))
            usages = measure_usage(base, read, partition.prompts)
        found = choose(partition, prepared.plan, usages, has_constants=has_constants)
        write_atomically(folder / FILE, json.dumps(found, indent=1) + "\n")
    layers = _read(folder)["layers"]
    table, vocab = prepared.family.table, prepared.source.settings.integer("vocab_size")
    renumbered = link(table, prepared.plan, hf_vocab=vocab, experts=experts_in(folder))
    prepared.by_name.update({found.name: found for found in renumbered})
    for layer in layers:
        if values := [group["constant"] for group in layer["groups"] if "constant" in group]:
            prepared.reader.buffers[f"decoder.layers.{layer['layer']}{CONSTANT}"] = torch.tensor(values)


def choose(partition: Partition, plan: Plan, usages: Sequence[Usage], *, has_constants: bool) -> dict[str, Any]:
    """What partition.json holds. `plan` is of what the model becomes."""
    from megatron_most.convert.measure import KINDS, constants_of

    measured = {usage.layer: _rounded(usage) for usage in usages}
    layers = []
    for layer in sorted({*range(plan.config.model.num_layers)} - {*plan.config.moe.dense_layers}):
        usage = measured.get(layer)
        uses = {} if usage is None else _uses(usage, KINDS)
        order = order_of(partition.strategy, partition.sizes, uses.get(MEASURED.get(partition.strategy, ""), {}))
        constants = dict[str, float]()
        if usage is not None and has_constants:
            values = constants_of(plan, [renumbered(usage, order)])[layer]
            constants = dict(zip(partition.sizes, values, strict=True))
        layers.append({"layer": layer, **describe(partition.sizes, order, uses, constants)})
    prompts: dict[str, Any] = {}
    if partition.prompts is not None and usages:
        counts = dict(zip(KINDS, usages[0].tokens_K, strict=True))
        prompts = {"source": partition.prompts.source, "sha256": partition.prompts.sha256}
        prompts["tokens"] = {kind: count for kind, count in counts.items() if count}
    return {"strategy": partition.strategy, "sizes": partition.sizes, "prompts": prompts, "layers": layers}


def experts_in(folder: Path) -> dict[int, list[int]]:
    """Layer -> for each of their experts which of ours it is, by the FILE in it."""
    return {layer: ours_by_theirs(order) for layer, order in _orders(_read(folder)).items()}


def tell_of_it(partition: Partition, folder: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """What source.json says of it, and the files that tell more; the page is drawn here."""
    found = _read(folder)
    told: dict[str, Any] = {"strategy": found["strategy"], "sizes": found["sizes"], "experts": _orders(found)}
    files = [FILE]
    if partition.has_page:
        write_page(folder / PAGE, f"{name}, by {found['strategy']}", found)
        files.append(PAGE)
    constants = {
        layer["layer"]: [group["constant"] for group in layer["groups"]]
        for layer in found["layers"] if all("constant" in group for group in layer["groups"])
    }  # fmt: skip
    if not constants:
        return {"partition": told}, files
    prompts = found["prompts"]
    how = {"measured_on": prompts["source"], "sha256": prompts["sha256"], "groups": list(found["sizes"])}
    return {"partition": told, "constants": {**how, "tokens": prompts["tokens"], "layers": constants}}, files


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text())


def _orders(found: Mapping[str, Any]) -> dict[int, Order]:
    """Layer -> theirs in the sequence of ours."""
    return {
        layer["layer"]: tuple(expert for group in layer["groups"] for expert in group["experts"])
        for layer in found["layers"]
    }


def renumbered(usage: Usage, order: Order) -> Usage:
    """As it is of our experts."""
    columns = list(order)
    return replace(usage, mass_KE=usage.mass_KE[:, columns], load_KE=usage.load_KE[:, columns])


def _rounded(usage: Usage) -> Usage:
    mass, load = (torch.round(use, decimals=_DIGITS) for use in (usage.mass_KE, usage.load_KE))
    return replace(usage, mass_KE=mass, load_KE=load)


def _uses(usage: Usage, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of the kinds that were seen."""
    seen = [(number, kind) for number, kind in enumerate(kinds) if usage.tokens_K[number]]
    tables = {"mass": usage.mass_KE, "load": usage.load_KE}
    return {what: {kind: use_KE[number].numpy() for number, kind in seen} for what, use_KE in tables.items()}
