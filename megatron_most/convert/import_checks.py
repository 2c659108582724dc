"""What an import measures before it writes, and how what it wrote is compared with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_most.checkpoint import DTYPES, Record, TensorReader
from megatron_most.config import Plan, replace
from megatron_most.convert.families import has_modalities
from megatron_most.convert.families.fields import without_modalities
from megatron_most.convert.hf_folder import CONFIG
from megatron_most.convert.import_job import Import
from megatron_most.convert.partitioned import experts_in
from megatron_most.convert.prompts import Prompts, calibration_prompts, gate_prompts, joined, tokenizer_at
from megatron_most.convert.readers import CONSTANT, as_base, read_files, read_import
from megatron_most.convert.settings import read_json
from megatron_most.convert.shares import plan_for
from megatron_most.convert.speech_prompts import speech_prompts
from megatron_most.errors import CheckpointError
from megatron_most.runtime import get_logger

if TYPE_CHECKING:
    from megatron_most.convert.lent import Read
    from megatron_most.convert.measure import Usage

# What runs models is imported where it runs: a look into a folder needs no Megatron-Core.
GROUPS = {"moe.groups", "moe.shared_only_tags"}
_log = get_logger(__name__)


def measuring_prompts(prepared: Import) -> Prompts:
    """CheckpointError where nothing can make ids of text."""
    options, folder = prepared.options, prepared.source.folder
    found = calibration_prompts(options.text, options.tokenizer or folder, prepared.plan.tokens)
    if found is None:
        raise CheckpointError(
            f"{folder}: the constants of the groups are measured on text, and there is no tokenizer.json to read it "
            "with; give the model's with --tokenizer FOLDER, or leave them 1 with --constant 1"
        )
    if options.audio is None:
        return found
    tokenizer, vocab = tokenizer_at(options.tokenizer or folder), prepared.source.settings.integer("vocab_size")
    size = {"rows": len(found.kinds), "length": found.ids_BS.size(1)}
    return joined(found, speech_prompts(options.audio, tokenizer, prepared.plan.tokens, vocab=vocab, **size))


def set_constants(prepared: Import) -> dict[str, Any]:
    """Measure the base, let the import write its constants, and say how they were found, for source.json."""
    from megatron_most.convert.measure import KINDS, constants_of, measure_usage

    prompts = measuring_prompts(prepared)
    plan, read = as_base(prepared.plan, read_import(prepared.reader, prepared.links))
    usages = measure_usage(plan, read, prompts)
    constants = constants_of(prepared.plan, usages)
    for layer, values in constants.items():
        prepared.reader.buffers[f"decoder.layers.{layer}{CONSTANT}"] = torch.tensor(values)
    _log.info("group constants: %s", _describe(prepared.plan, usages, constants))
    assert prepared.plan.moe is not None, "it has groups"
    return {
        "measured_on": prompts.source, "sha256": prompts.sha256, "groups": list(prepared.plan.moe.group_names),
        "tokens": dict(zip(KINDS, usages[0].tokens_K, strict=True)), "layers": constants,
    }  # fmt: skip


def require_comparable(prepared: Import) -> None:
    """What the gate would find only after everything is written: no prompts, or a model that transformers builds
    otherwise. DataError, CheckpointError, UpstreamError.
    """
    from megatron_most.convert.hf_build import build, require_tensors  # and transformers

    source = prepared.source
    _gate_prompts(prepared, _as_source(prepared, read_import(prepared.reader, prepared.links))[0])
    shapes = {name: source.shape(name) for name in source.where}
    model = build(source.folder, read_json(source.folder / CONFIG), prepared.plan.tokens)
    require_tensors(model, source.folder, shapes)


def check_import(prepared: Import, folder: Path, record: Record) -> None:
    """CheckpointError where the written weights do not compute what transformers does from the source's."""
    from megatron_most.convert.gate import require_equal
    from megatron_most.convert.hf_layers import HfModel

    options, source = prepared.options, prepared.source
    plan, read = _as_source(prepared, read_files(TensorReader(folder, record)))
    prompts = _gate_prompts(prepared, plan)
    rounded_to = None if options.dtype is None else DTYPES[options.dtype]
    our_ids = None if prepared.partition is None else experts_in(folder)
    theirs = HfModel(source, plan.tokens, rounded_to=rounded_to, our_ids=our_ids)
    found = require_equal(f"{source.folder} by transformers and the import of it", plan, read, theirs, prompts)
    _log.info("logits gate passed, on %s: %s", prompts.source, found)


def _gate_prompts(prepared: Import, plan: Plan) -> Prompts:
    """`plan`: of what is compared with the source."""
    options, source = prepared.options, prepared.source
    if options.upcycle.is_wanted:  # a dense base knows text alone
        plan = plan_for(replace(plan.config, without_modalities(plan.config.moe.num_experts)), plan.tokens)
    rows = source.settings.integer("vocab_size")
    return gate_prompts(plan, options.text, options.tokenizer or source.folder, rows)


def _as_source(prepared: Import, read: Read) -> tuple[Plan, Read]:
    """The groups that were given make another model of the base on purpose: its weights are compared without them. An
    upcycled model is its base in any group.
    """
    if not prepared.gives_groups or prepared.options.upcycle.is_wanted:
        return prepared.plan, read
    own = prepared.family.read(prepared.source.settings)
    config = replace(prepared.plan.config, {name: own[name] for name in GROUPS if name in own})
    if not own.keys() >= GROUPS or not has_modalities(config):
        return as_base(prepared.plan, read)
    return plan_for(config, prepared.plan.tokens), read


def _describe(plan: Plan, usages: list[Usage], constants: dict[int, list[float]]) -> str:
    from megatron_most.convert.measure import KINDS

    assert plan.moe is not None, "it has groups"
    columns = zip(*constants.values(), strict=True)
    ranges = [f"{name} {min(found):.3g} to {max(found):.3g}"
              for name, found in zip(plan.moe.group_names, columns, strict=True)]  # fmt: skip
    tokens_K = usages[0].tokens_K
    heard = [f"{count} {kind}" for kind, count in zip(KINDS, tokens_K, strict=True) if count]
    missing = [kind for kind, count in zip(KINDS, tokens_K, strict=True) if not count]
    words = f"{'; '.join(ranges)}, over {len(constants)} layers, from {' and '.join(heard)} tokens"
    return words + "".join(f"; groups of {kind} were measured on those too, for want of {kind}" for kind in missing)
