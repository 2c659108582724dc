"""MostConfig reads what the MoST release publishes and what we write; it refuses by name what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, token_map
from megatron_most.convert.most_hf import MostConfig, MostForCausalLM
from tests.convert.most_twins import plan_of, twin, twin_config

RELEASE: dict[str, Any] = dict(  # the fields of the published configuration that say what the model is
    model_type="MoST", vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
    num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16, n_shared_experts=2, n_routed_experts=64,
    num_experts_per_tok=6, first_k_dense_replace=1, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128,
    qk_rope_head_dim=64, v_head_dim=128, topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False,
    routed_scaling_factor=1.0, scoring_func="softmax", aux_loss_alpha=0.001, seq_aux=True, moe_layer_freq=1,
    hidden_act="silu", rms_norm_eps=1e-6, attention_bias=False, attention_dropout=0.0, rope_theta=10000,
    rope_scaling=dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707,
                      original_max_position_embeddings=4096),
    max_position_embeddings=163840, tie_word_embeddings=False, bos_token_id=100000, eos_token_id=100001,
    torch_dtype="bfloat16", use_modality_aware_routing=True, text_expert_indices=list(range(32)),
    audio_expert_indices=list(range(32, 64)),
)  # fmt: skip
TWIN = twin_config(plan_of()).to_dict()


def test_the_release_s_configuration_means_its_gate_its_groups_and_its_ids() -> None:
    config = MostConfig(**RELEASE)
    assert config.gate == "reference"
    assert config.groups == [([0], list(range(32))), ([1], list(range(32, 64)))]
    assert config.tags_without_group == [2]
    assert config.tag_ranges == list(token_map(load_recipe("most-16b").tokens).tag_ranges)
    assert config.unused_ids == list(range(100506, 102400))
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("yarn", 40, 10000)
    with torch.device("meta"):
        model = MostForCausalLM(config)
    assert sum(weight.numel() for weight in model.parameters()) == 15_706_484_224  # DeepSeek-V2-Lite's
    assert not list(model.buffers())  # the reference gate has no constants: the published files load as they are
    assert model.model.layers[5].self_attn.scaling == pytest.approx(192**-0.5 * 1.5896, rel=1e-4)


def test_without_modality_routing_any_token_may_use_any_expert() -> None:
    config = MostConfig(**{**RELEASE, "use_modality_aware_routing": False})
    assert config.groups == [([0, 1, 2], list(range(64)))] and config.tags_without_group == []
    assert config.unused_ids == []


def test_a_configuration_comes_back_from_json_as_it_was(tmp_path: Any) -> None:
    for config in (MostConfig(**RELEASE), MostConfig(**TWIN), MostConfig()):
        config.save_pretrained(tmp_path)
        assert MostConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_our_groups_and_the_release_s_lists_may_stand_side_by_side() -> None:
    lists = dict(use_modality_aware_routing=True, text_expert_indices=[0, 1, 2, 3], audio_expert_indices=[4, 5, 6, 7])
    assert MostConfig(**{**TWIN, **lists}).groups == MostConfig(**TWIN).groups


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "softmax"}, r"gate = 'softmax': not known; use one of masked_softmax, reference"),
        ({"attention": "mha"}, r"attention = 'mha': not known"),
        ({"topk_method": "gready"}, r"topk_method = 'gready': not known; use one of greedy, group_limited_greedy"),
        ({"attention": "gqa"}, r"rope_type = 'yarn' is not built for gqa; use default or llama3"),
        ({"hidden_act": "gelu"}, r"hidden_act = 'gelu': MoST is built with 'silu' only"),
        ({"moe_layer_freq": 2}, r"moe_layer_freq = 2: MoST is built with 1 only"),
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok = 9: there are 8 routed experts"),
        ({"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1}, r"n_group must divide .*\(8\)"),
        ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 5}, r"topk_group be 1..n_group"),
        ({"expert_groups": [{"tags": [0], "experts": [0, 1]}]}, r"expert 2 is missing, unknown or owned twice"),
        (
            {"expert_groups": [{"tags": [0], "experts": [*range(8)]}, {"tags": [1], "experts": [3]}]},
            r"expert 3 is missing, unknown or owned twice; name each of 0..7 once",
        ),
        ({"shared_only_tags": [1, 2]}, r"tags \[0, 1, 1, 2\]; name each once"),
        ({"shared_only_tags": []}, r"tag 2 of ids 64..65 owns no expert group and is not in shared_only_tags"),
        ({"shared_intermediate_size": 0}, r"tags \[2\] own no experts, and there are no shared ones"),
        ({"token_map": None}, r"token_map is missing"),
        ({"token_map": {"tag_ranges": [[0, 39, 0], [39, 65, 1]]}}, r"tag range \(39, 65, 1\) goes back, overlaps"),
        ({"token_map": {"tag_ranges": [[0, 72, 0]]}}, r"leaves the vocabulary of 72"),
        (
            {"use_modality_aware_routing": True, "text_expert_indices": [0, 1]},
            r"text_expert_indices = \[0, 1\] is none of expert_groups",
        ),
        (
            {"use_modality_aware_routing": True, "expert_groups": None, "audio_expert_indices": [1]},
            r"text_expert_indices is empty, and use_modality_aware_routing is on",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MostConfig(**{**TWIN, **changes})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1, 66, 2]]}, "input_ids: id 66 is in no tag range of the token map"),
        ({"input_ids": [[1, -1]]}, "input_ids: id -1 is in no tag range"),
        (
            {"input_ids": [[1, 2]], "modality_tags": [[0, 3]]},
            r"modality_tags: 3 is no tag of this model; .*\[0, 1, 2\]",
        ),
        ({"input_ids": [[1, 2]], "modality_tags": [[0, -1]]}, "modality_tags: -1 is no tag of this model"),
        ({"input_ids": [[1, 2]], "modality_tags": [[0]]}, r"modality_tags: \(1, 1\), inputs: \(1, 2\)"),
        ({}, "give either input_ids or inputs_embeds"),
        ({"inputs_embeds": [[[0.5] * 64]]}, "inputs_embeds have no ids to tell tags from; give modality_tags"),
        ({"input_ids": [[1]], "audio_wave_mask": [[True]]}, "audio_wave_features and audio_wave_mask belong together"),
        (
            {"input_ids": [[1]], "audio_wave_mask": [[True]], "audio_wave_features": [[[0.5] * 10]]},
            "this model has no projector; it needs use_continuous_audio",
        ),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        twin()(**{name: torch.tensor(value) for name, value in inputs.items()})
