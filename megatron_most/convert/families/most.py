"""MoST: DeepSeek-V2 (or Llama's attention) with experts that belong to modalities, as its configuration says.

A configuration with the release's fields alone is the release: its gate, its two groups, wave markers for the shared
experts alone. Ours says gate, groups, tags and token map in fields of their own, which convert/most_hf reads.
"""

from __future__ import annotations

from typing import Any

from megatron_most.config import Plan, RunConfig
from megatron_most.convert.families import fields
from megatron_most.convert.families.deepseek_v2 import read_experts, write_experts
from megatron_most.convert.families.rows import BUFFERS, DENSE, EXPERTS, FRAME, GQA, MLA, WAVE, WAVE_LAYERS
from megatron_most.convert.settings import Settings
from megatron_most.convert.tables import Row
from megatron_most.vocab import TAG_NAMES, tag_id

ASIDE = ("model.audio_wave_processor.hubert_model.*",)
"""A frozen model that makes features: no part of ours, kept beside it to be given back."""
ENCODER = ("hubert_model_path", "hubert_ckpt_type", "begin_audio_wave_token_id", "end_audio_wave_token_id")
"""Fields about how features are made: no part of our model either, but exports give them back."""
_BIAS_RATE = 1e-3  # a bias that is there has to move when training goes on; config.json does not say how fast

_TAGS = f"tags are {', '.join(f'{tag} ({name})' for tag, name in enumerate(TAG_NAMES))}"
_GROUP = 'write each as {"tags": [0], "experts": [0, 1, 2, 3]}'


def _only(attention: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    def when(row: Row) -> Row:
        return Row(**{**vars(row), "when": lambda config: config.model.attention == attention and row.when(config)})

    return tuple(when(row) for row in rows)


TABLE = (*FRAME, *_only("mla", MLA), *_only("gqa", GQA), *DENSE, *EXPERTS, *BUFFERS, *WAVE, *WAVE_LAYERS)


def read(settings: Settings) -> fields.Changes:
    settings.table("token_map")  # see token_maps.py
    for name in ENCODER:
        settings.get(name)
    attention = settings.one_of("attention", ["mla", "gqa"], "mla")
    changes = {
        **fields.read_frame(settings),
        **(fields.read_mla(settings) if attention == "mla" else fields.read_gqa(settings)),
        **read_experts(settings),
        **_read_groups(settings),
        "moe.gate": settings.one_of("gate", ["masked_softmax", "reference"], "reference"),
        "moe.normalise_top_k": settings.flag("norm_topk_prob", False),
        "moe.bias_rate": _BIAS_RATE if settings.flag("use_expert_bias", False) else 0.0,
    }
    if (shared := settings.integer("shared_intermediate_size", None, least=0)) is not None:
        changes["moe.shared_hidden_size"] = shared
    if (dense := settings.integers("dense_layers")) is not None:
        changes["moe.dense_layers"] = sorted(dense)
    return {**changes, **_read_wave(settings)}


def _read_wave(settings: Settings) -> fields.Changes:
    """All fields are asked for, also where others say that they do not matter: transformers writes them all."""
    width, stack = settings.integer("hubert_hidden_size", 768), settings.integer("audio_frames_stacked", 1)
    source, layers = settings.get("audio_frames_source"), settings.integers("audio_wave_layers")
    heads = settings.integer("audio_wave_heads", 12)
    inner = settings.integer("audio_wave_intermediate_size", 3072)
    if not settings.flag("use_continuous_audio", False):
        return {"model.wave_size": 0}
    found: fields.Changes = {"model.wave_size": width, "model.wave_stack": stack}
    if source is not None:
        found["model.wave_source"] = str(source)
    if layers:
        found |= {"model.wave_layers": layers, "model.wave_heads": heads, "model.wave_inner_size": inner}
    return found


def _read_groups(settings: Settings) -> fields.Changes:
    lists = {name: settings.integers(f"{name}_expert_indices") for name in ("text", "audio")}
    routed = settings.flag("use_modality_aware_routing", False)
    groups, without = settings.get("expert_groups"), settings.integers("shared_only_tags")
    for tag in without or []:
        if tag >= len(TAG_NAMES):
            raise settings.wrong("shared_only_tags", f"there is no tag {tag}; {_TAGS}")
    if groups is not None:
        named = dict(_group(settings, group) for group in groups) if isinstance(groups, list) else {}
        if not named or len(named) < len(groups):
            raise settings.wrong("expert_groups", f"is no list of groups of different tags; {_GROUP}")
        for name, experts in lists.items():
            if experts is not None and sorted(experts) != sorted(named.get(name, [])):
                wrong = f"expert_groups says otherwise: {named.get(name, 'no group of its own')}; leave one of them out"
                raise settings.wrong(f"{name}_expert_indices", wrong)
        lines = [_line(name.split("+"), experts) for name, experts in named.items()]
        return {"moe.groups": lines, "moe.shared_only_tags": [TAG_NAMES[tag] for tag in without or []]}
    if not routed:
        return fields.without_modalities(settings.integer("n_routed_experts", most=fields.MOST_EXPERTS))
    for name, experts in lists.items():
        if not experts:
            raise settings.wrong(f"{name}_expert_indices", "is empty, but use_modality_aware_routing is on")
    return {
        "moe.groups": [_line([name], experts) for name, experts in lists.items() if experts],
        "moe.shared_only_tags": ["wave"],
    }


def _group(settings: Settings, group: Any) -> tuple[str, list[int]]:
    """(its tags by name, its experts)."""
    tags, experts = (_ids(settings, group, name) for name in ("tags", "experts"))
    if max(tags) >= len(TAG_NAMES):
        raise settings.wrong("expert_groups", f"there is no tag {max(tags)}; {_TAGS}")
    return "+".join(TAG_NAMES[tag] for tag in tags), experts


def _ids(settings: Settings, group: Any, name: str) -> list[int]:
    ids = group.get(name) if isinstance(group, dict) else None
    if not (isinstance(ids, list) and ids and all(type(id) is int and id >= 0 for id in ids)):
        raise settings.wrong("expert_groups", f"not readable as groups; {_GROUP}")
    return ids


def _line(tags: list[str], experts: list[int]) -> str:
    return f"{'+'.join(tags)}: {fields.runs_of_ids(experts)}"


def write(plan: Plan) -> dict[str, Any]:
    config, moe = plan.config, plan.config.moe
    fields.refuse(
        "most",
        {
            "has experts: export a dense model as llama": plan.moe is None,
            "does not norm query and key heads (model.qk_norm)": config.model.qk_norm,
            "gives continuous frames the tag audio, not tag wave (model.wave_tag)": config.model.wave_size > 0
            and config.model.wave_tag != "audio",
        },
    )
    attention = fields.write_mla(plan) if config.model.attention == "mla" else fields.write_gqa(plan)
    return {
        **fields.write_frame(plan), **attention, **write_experts(plan), **_write_groups(plan),
        "rope_parameters": fields.rope_parameters(plan),
        "attention": config.model.attention,
        "gate": moe.gate,
        "norm_topk_prob": moe.normalise_top_k,
        "use_expert_bias": moe.bias_rate > 0,
        "shared_intermediate_size": moe.shared_hidden_size,
        "n_shared_experts": moe.shared_hidden_size // moe.expert_hidden_size,
        "dense_layers": sorted(moe.dense_layers),
        "first_k_dense_replace": len(moe.dense_layers),
        "use_continuous_audio": config.model.wave_size > 0,
        **(_write_wave(config) if config.model.wave_size else {}),
        "token_map": plan.tokens.to_dict(),
    }  # fmt: skip


def _write_wave(config: RunConfig) -> dict[str, Any]:
    """The release's field, and ours for what it has no words for."""
    model = config.model
    found: dict[str, Any] = {"hubert_hidden_size": model.wave_size}
    if model.wave_stack > 1:
        found["audio_frames_stacked"] = model.wave_stack
    if model.wave_source is not None:
        found["audio_frames_source"] = model.wave_source
    if model.wave_layers:
        found["audio_wave_layers"] = list(model.wave_layers)
        found["audio_wave_heads"] = model.wave_heads
        found["audio_wave_intermediate_size"] = model.wave_inner_size
    return found


def _write_groups(plan: Plan) -> dict[str, Any]:
    assert plan.moe is not None, "refused above"
    groups = [
        {"tags": [tag_id(tag) for tag in name.split("+")], "experts": list(experts)}
        for name, experts in zip(plan.moe.group_names, plan.moe.groups, strict=True)
    ]
    out: dict[str, Any] = {"expert_groups": groups, "shared_only_tags": list(plan.moe.shared_only)}
    named = dict(zip(plan.moe.group_names, plan.moe.groups, strict=True))
    if set(named) == {"text", "audio"}:  # the release's own fields can say it too
        out |= {"use_modality_aware_routing": True}
        out |= {f"{name}_expert_indices": list(experts) for name, experts in named.items()}
    return out


def has_modalities(config: RunConfig) -> bool:
    """Whether the tag of a token makes a difference."""
    return config.moe.num_experts > 0 and (len(config.moe.groups) > 1 or bool(config.moe.shared_only_tags))
