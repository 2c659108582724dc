"""Which experts each token of one exchange used, as JSON: prompt and answer go through the model once more, whole.

{"format": "most-routing-1", "tokens": [{"says": "two", "tag": "text"}, ...], "layers": [1, 2], "groups": {...},
 "experts": [[[0, 3], ...], ...]}    experts[layer][token]: published ids, ascending; none where only the shared act
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_most.converse.talker import Talker
from megatron_most.errors import ConfigError
from megatron_most.generate import CoreModel, Prompt
from megatron_most.moe import routers
from megatron_most.runtime import write_atomically, writing
from megatron_most.vocab import TAG_NAMES

FORMAT = "most-routing-1"


def trace(talker: Talker, prompt: Prompt, answer: list[int]) -> dict[str, Any]:
    """See above. ConfigError for a model that is not ours, has no experts, or is held by several processes."""
    model = talker.opened.model
    if not isinstance(model, CoreModel) or model.plan.moe is None or model.plan.layout.world > 1:
        wrong, remedy = "only a checkpoint of ours, with experts and in one process, tells", "leave it out"
        raise ConfigError("--routing", str(talker.opened.folder), wrong, remedy)
    if prompt.wave is not None:
        raise ConfigError("--routing", str(talker.opened.folder), "the prompt has continuous frames", "leave it out")
    ids = [*prompt.ids, *answer]
    tags = [*prompt.tags, *(model.tokens.tag_of(id) for id in answer)]
    seen: list[torch.Tensor] = []
    found = routers(model.model)
    hooks = [router.register_forward_hook(_keep(seen)) for router in found]
    try:
        model.logprobs([ids], [tags])
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for router, map_TE in zip(found, seen, strict=True):
        by_id_TE = map_TE[:, router.tables.slot_of_E.to(map_TE.device)]
        layers.append([row.nonzero()[:, 0].tolist() for row in by_id_TE])
    plan, added = model.plan.moe, dict(model.tokens.new_tokens())
    return {
        "format": FORMAT,
        "tokens": [
            {"says": added.get(id) or talker.tokenizer.decode([id]), "tag": TAG_NAMES[tag]}
            for id, tag in zip(ids, tags, strict=True)
        ],
        "layers": [router.layer_number - 1 for router in found],
        "groups": {name: list(group) for name, group in zip(plan.group_names, plan.groups, strict=True)},
        "experts": layers,
    }


def write_routing(path: Path, talker: Talker, prompt: Prompt, answer: list[int]) -> None:
    traced = trace(talker, prompt, answer)
    with writing(path):
        write_atomically(path, json.dumps(traced, ensure_ascii=False) + "\n")


def _keep(seen: list[torch.Tensor]) -> Callable[[Any, Any, Any], None]:
    return lambda module, given, routed: seen.append(routed[1])
