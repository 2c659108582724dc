"""MostConfig: a MoST model as transformers knows it: backbone, experts, who owns them, and which ids have which tag.

Copied as it is into every exported folder (config.json's auto_map names it), so it imports transformers alone. Written
for transformers 5. The backbone's fields have DeepSeek-V2's names, and those of the published MoST configuration are
read: `use_modality_aware_routing`, `text_expert_indices`, `audio_expert_indices`. A configuration with nothing else is
the release's: gate "reference", its two groups, tag 2 for the shared experts alone, its ids.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

TEXT, AUDIO, WAVE = 0, 1, 2
RELEASE_TAG_RANGES = [[0, 100001, TEXT], [100002, 100503, AUDIO], [100504, 100505, WAVE]]
NOT_BUILT = {  # what backbones' own configurations may ask for, with the one value that is built here
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "scoring_func": "softmax",
    "moe_layer_freq": 1,
}


class MostConfig(PretrainedConfig):
    """What `MostForCausalLM` is built from. Wrong values are refused here, by name.

    attention: "mla" (DeepSeek-V2; rope default or yarn) or "gqa" (Llama; rope default or llama3).
    gate: "masked_softmax" (softmax over the token's own group, times a saved constant per layer and group) or
        "reference" (softmax over all experts, then 0 outside the group: the published model).
    expert_groups: a list of {"tags": [...], "experts": [...]}; every expert id stands in one of them. Not given: the
        release's two lists if `use_modality_aware_routing`, else one group for all tags.
    shared_only_tags: tags that own no group; their tokens use the shared experts alone.
    token_map: {"tag_ranges": [[first id, last id, tag], ...]}, ascending; ids in no range are refused. A whole
        TokenMap as JSON will do.
    dense_layers: layers without experts; not given: the first `first_k_dense_replace`.
    shared_intermediate_size: width of the shared experts; not given: n_shared_experts * moe_intermediate_size.
    use_expert_bias: layers hold a bias on the choice of experts, never on their weights.
    use_continuous_audio: features of width `hubert_hidden_size` may stand in place of embeddings. Each is
        `audio_frames_stacked` frames of the encoder side by side.
    audio_wave_layers: layers of the encoder, counted from 1, that the features go through in the model, of
        `audio_wave_heads` heads and feed-forwards of `audio_wave_intermediate_size`; [] for none.
    """

    model_type = "MoST"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        *,
        vocab_size: int = 102400,
        hidden_size: int = 2048,
        intermediate_size: int = 10944,
        num_hidden_layers: int = 27,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = None,
        attention: str = "mla",
        kv_lora_rank: int = 512,
        q_lora_rank: int | None = None,
        qk_nope_head_dim: int = 128,
        qk_rope_head_dim: int = 64,
        v_head_dim: int = 128,
        head_dim: int | None = None,
        moe_intermediate_size: int = 1408,
        n_routed_experts: int = 64,
        num_experts_per_tok: int = 6,
        n_shared_experts: int | None = 2,
        shared_intermediate_size: int | None = None,
        first_k_dense_replace: int = 1,
        dense_layers: list[int] | None = None,
        topk_method: str = "greedy",
        n_group: int | None = None,
        topk_group: int | None = None,
        norm_topk_prob: bool = False,
        routed_scaling_factor: float = 1.0,
        gate: str = "reference",
        expert_groups: list[dict[str, list[int]]] | None = None,
        shared_only_tags: list[int] | None = None,
        token_map: dict[str, Any] | None = None,
        use_expert_bias: bool = False,
        use_modality_aware_routing: bool = False,
        text_expert_indices: list[int] | None = None,
        audio_expert_indices: list[int] | None = None,
        use_continuous_audio: bool = False,
        hubert_hidden_size: int = 768,
        audio_frames_stacked: int = 1,
        audio_wave_layers: list[int] | None = None,
        audio_wave_heads: int = 12,
        audio_wave_intermediate_size: int = 3072,
        max_position_embeddings: int = 163840,
        rope_parameters: dict[str, Any] | None = None,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = 100000,
        eos_token_id: int | list[int] | None = 100001,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, built in NOT_BUILT.items():
            if kwargs.get(name, built) != built:
                raise ValueError(f"{name} = {kwargs[name]!r}: MoST is built with {built!r} only; use another backbone")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.attention = attention
        self.kv_lora_rank = kv_lora_rank
        self.q_lora_rank = q_lora_rank
        self.qk_nope_head_dim = qk_nope_head_dim
        self.qk_rope_head_dim = qk_rope_head_dim
        self.v_head_dim = v_head_dim
        # What transformers takes for the width of rotary positions, as in its DeepseekV2Config.
        self.head_dim = qk_rope_head_dim if attention == "mla" else head_dim or hidden_size // num_attention_heads
        self.moe_intermediate_size = moe_intermediate_size
        self.n_routed_experts = n_routed_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.n_shared_experts = n_shared_experts or 0
        self.shared_intermediate_size = shared_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace
        self.dense_layers = dense_layers
        self.topk_method = topk_method
        self.n_group: Any = n_group
        self.topk_group: Any = topk_group
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.gate = gate
        self.expert_groups = expert_groups
        self.shared_only_tags = shared_only_tags
        self.token_map = token_map
        self.use_expert_bias = use_expert_bias
        self.use_modality_aware_routing = use_modality_aware_routing
        self.text_expert_indices = text_expert_indices
        self.audio_expert_indices = audio_expert_indices
        self.use_continuous_audio = use_continuous_audio
        self.hubert_hidden_size = hubert_hidden_size
        self.audio_frames_stacked = audio_frames_stacked
        self.audio_wave_layers = list(audio_wave_layers or [])
        self.audio_wave_heads = audio_wave_heads
        self.audio_wave_intermediate_size = audio_wave_intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_parameters: Any = rope_parameters
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)
        self._check_shapes()
        self._check_groups()
        self._check_tags()

    @property
    def groups(self) -> list[tuple[list[int], list[int]]]:
        """(tags, expert ids) of each group, the order of `mlp.gate.group_constant`."""
        if self.expert_groups is not None:
            return [(list(group["tags"]), list(group["experts"])) for group in self.expert_groups]
        if self.use_modality_aware_routing:
            return [([TEXT], list(self.text_expert_indices or [])), ([AUDIO], list(self.audio_expert_indices or []))]
        return [([TEXT, AUDIO, WAVE], list(range(self.n_routed_experts)))]

    @property
    def tags_without_group(self) -> list[int]:
        if self.shared_only_tags is not None:
            return list(self.shared_only_tags)
        return [WAVE] if self.expert_groups is None and self.use_modality_aware_routing else []

    @property
    def tag_ranges(self) -> list[tuple[int, int, int]]:
        """(first id, last id, tag)."""
        ranges = [[0, self.vocab_size - 1, TEXT]]  # without modalities a tag changes nothing
        if self.token_map is not None:
            ranges = self.token_map["tag_ranges"]
        elif self.use_modality_aware_routing:
            ranges = RELEASE_TAG_RANGES
        return [(first, last, tag) for first, last, tag in ranges]

    @property
    def unused_ids(self) -> list[int]:
        """Rows of the embedding that no token uses: ids in no tag range."""
        used = {i for first, last, _ in self.tag_ranges for i in range(first, last + 1)}
        return [i for i in range(self.vocab_size) if i not in used]

    @property
    def shared_size(self) -> int:
        """Inner width of the shared experts together; 0 = none."""
        if self.shared_intermediate_size is not None:
            return self.shared_intermediate_size
        return self.n_shared_experts * self.moe_intermediate_size

    def is_dense(self, layer: int) -> bool:
        """Whether a layer has one feed-forward instead of experts."""
        return layer < self.first_k_dense_replace if self.dense_layers is None else layer in self.dense_layers

    def _check_shapes(self) -> None:
        ropes = {"mla": ("default", "yarn"), "gqa": ("default", "llama3")}
        choices = {"attention": ropes, "gate": ("masked_softmax", "reference")}
        for name, known in {**choices, "topk_method": ("greedy", "group_limited_greedy")}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: not known; use one of {', '.join(known)}")
        rope = self.rope_parameters["rope_type"]
        if rope not in ropes[self.attention]:
            known = " or ".join(ropes[self.attention])
            raise ValueError(f"rope_parameters: rope_type = {rope!r} is not built for {self.attention}; use {known}")
        if not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            wrong = f"there are {self.n_routed_experts} routed experts"
            raise ValueError(f"num_experts_per_tok = {self.num_experts_per_tok}: {wrong}; use 1 to that")
        if self.topk_method == "group_limited_greedy":
            if (
                not self.n_group
                or self.n_routed_experts % self.n_group
                or not 1 <= (self.topk_group or 0) <= self.n_group
            ):
                given = f"n_group = {self.n_group}, topk_group = {self.topk_group}"
                remedy = f"n_group must divide n_routed_experts ({self.n_routed_experts}), topk_group be 1..n_group"
                raise ValueError(f"group_limited_greedy with {given}: {remedy}")

    def _check_groups(self) -> None:
        if self.expert_groups is None and self.use_modality_aware_routing:
            for name in ("text_expert_indices", "audio_expert_indices"):
                if not getattr(self, name):
                    raise ValueError(f"{name} is empty, and use_modality_aware_routing is on; list its expert ids")
        experts = sorted(expert for _, experts in self.groups for expert in experts)
        if experts != list(range(self.n_routed_experts)):
            odd = sorted(set(experts) ^ set(range(self.n_routed_experts))) or [
                e for e in experts if experts.count(e) > 1
            ]
            wrong = f"expert {odd[0]} is missing, unknown or owned twice"
            raise ValueError(f"expert groups: {wrong}; name each of 0..{self.n_routed_experts - 1} once")
        if self.expert_groups is not None and self.use_modality_aware_routing:
            lists = (("text_expert_indices", TEXT), ("audio_expert_indices", AUDIO))
            for name, tag in lists:
                given = getattr(self, name)
                if given is not None and ([tag], sorted(given)) not in [(tags, sorted(of)) for tags, of in self.groups]:
                    raise ValueError(
                        f"{name} = {given} is none of expert_groups; leave one of them out, or let them agree"
                    )

    def _check_tags(self) -> None:
        tags = [tag for owners, _ in self.groups for tag in owners] + self.tags_without_group
        if len(set(tags)) != len(tags) or min(tags) < 0:
            raise ValueError(f"expert_groups and shared_only_tags: tags {sorted(tags)}; name each once, from 0 on")
        if self.tags_without_group and not self.shared_size:
            wrong = f"tags {self.tags_without_group} own no experts, and there are no shared ones"
            raise ValueError(f"shared_only_tags: {wrong}; give them a group, or the model shared experts")
        if self.expert_groups is not None and self.token_map is None:
            raise ValueError("token_map is missing: tags could not be told from ids; give its tag_ranges")
        end = -1
        for first, last, tag in self.tag_ranges:
            if not end < first <= last < self.vocab_size:
                wrong = f"goes back, overlaps, or leaves the vocabulary of {self.vocab_size}"
                raise ValueError(f"token_map: tag range {(first, last, tag)} {wrong}; list ascending ranges")
            if tag not in tags:
                wrong = "owns no expert group and is not in shared_only_tags"
                raise ValueError(f"token_map: tag {tag} of ids {first}..{last} {wrong}; name it in one of them")
            end = last
