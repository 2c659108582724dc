"""The model card of an exported model: what it is, what it was trained on, who may use it, and how to load it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from megatron_most.config import Plan, RunConfig, TaskConfig, count_parameters
from megatron_most.convert.options import Card
from megatron_most.convert.ours import Ours
from megatron_most.convert.upcycling import describe
from megatron_most.runtime import printable

UNKNOWN = "not stated"


def render(card: Card, ours: Ours, plan: Plan, family: str, config: dict[str, Any], has_tokenizer: bool) -> str:
    """README.md."""
    size, name = count_parameters(plan), ours.config.name
    base = card.base_model or printable(ours.source.get("folder", ""))  # a folder's name may be no text
    head: dict[str, Any] = {"license": card.licence or "other", "library_name": "transformers"}
    head |= {"base_model": base} if base else {}
    head |= {"language": list(card.languages)} if card.languages else {}
    head["tags"] = ["speech", "mixture-of-experts"] if plan.moe else ["speech"]
    front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    return f"""---
{front}
---
# {name}

`{config["architectures"][0]}` with {size.total:,} parameters, {size.active:,} of them active for one token, in
{config["torch_dtype"]}.

| | |
| --- | --- |
| base | {base or UNKNOWN} |
| licence | {card.licence or UNKNOWN + "; the backbone's licence binds its descendants"} |
| languages | {", ".join(card.languages) or UNKNOWN} |
| training | {_training(ours)} |
| tokens | {_tokens(plan)} |
{_experts(plan)}
Everything that `resolved.toml` said of the training run is in the checkpoint that this was exported from
({ours.folder.name}). `token_map.json` names every unit and mark.

## Loading

```python
{_how_to_load(family, has_tokenizer)}
```
"""


def _training(ours: Ours) -> str:
    if not ours.record.training:
        upcycle = ours.source.get("upcycle")
        how = f" and upcycled from a dense model: {describe(upcycle)}" if upcycle else ""
        return f"none since it was imported{how}"
    return f"{ours.record.step:,} steps as `{ours.config.name}`: {_blend(ours.config)}"


def _blend(config: RunConfig) -> str:
    tasks = ((field.name, getattr(config.data, field.name)) for field in fields(config.data))
    weights = {name: task.weight for name, task in tasks if isinstance(task, TaskConfig) and task.weight}
    return ", ".join(f"{name.replace('_', '-')} {weight:g}" for name, weight in weights.items()) or "made-up data"


def _tokens(plan: Plan) -> str:
    tokens = plan.tokens
    return f"{tokens.text_size:,} text, {tokens.num_units} speech units from id {tokens.first_unit_id} on, 4 marks"


def _experts(plan: Plan) -> str:
    if plan.moe is None:
        return ""
    owned = "; ".join(
        f"{name}: {len(experts)}" for name, experts in zip(plan.moe.group_names, plan.moe.groups, strict=True)
    )
    return f"| experts | {plan.moe.num_experts} routed, {plan.moe.top_k} per token ({owned}); gate {plan.moe.gate} |\n"


def _how_to_load(family: str, has_tokenizer: bool) -> str:
    """A test runs it."""
    lines, classes = [], "AutoModelForCausalLM, AutoTokenizer" if has_tokenizer else "AutoModelForCausalLM"
    if family == "most":
        lines += ["from megatron_most.convert.most_hf import register  # or pass trust_remote_code=True instead"]
    lines += [f"from transformers import {classes}", "", *(["register()"] if family == "most" else [])]
    lines += ['model = AutoModelForCausalLM.from_pretrained("FOLDER")']
    if has_tokenizer:
        lines += ['tokenizer = AutoTokenizer.from_pretrained("FOLDER")  # [Hu7] is unit 7']
    return "\n".join(lines)
