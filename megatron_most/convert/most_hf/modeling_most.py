"""MostForCausalLM: the MoST model in plain PyTorch for transformers; Megatron-MoST's own model, number for number.

Copied with its siblings, as they are, into every exported folder, so they import torch and transformers alone. Written
for transformers 5. Every token has a tag, by its id and the configuration's token map or as `modality_tags` says; the
tag says which experts it may use. Names of weights are DeepSeek-V2's, each expert by itself. There is no balance loss
here: models are trained elsewhere and at most fine-tuned here.
"""

# B rows, S tokens of a row, T = B*S, E routed experts, M tags, F width of continuous features

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

# All siblings are named here: transformers copies what the file named in auto_map imports, and no further.
from .attention_most import MostGroupedAttention, MostLatentAttention, MostRMSNorm, MostRotary
from .configuration_most import AUDIO, MostConfig
from .encoder_most import MostWaveEncoder
from .experts_most import MostGate, MostMLP, MostMoE

MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters  # 5.x renamed one and dropped another


class MostDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: MostConfig, layer_idx: int) -> None:
        super().__init__()
        kind = MostLatentAttention if config.attention == "mla" else MostGroupedAttention
        self.self_attn = kind(config, layer_idx)
        self.is_dense = config.is_dense(layer_idx)
        self.mlp = MostMLP(config, config.intermediate_size) if self.is_dense else MostMoE(config)
        self.input_layernorm = MostRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MostRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, *, rotary: tuple[torch.Tensor, torch.Tensor], attention_mask: torch.Tensor | None,
        owned_TE: torch.Tensor, group_T: torch.Tensor, past_key_values: Cache | None = None, **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        attended, weights = self.self_attn(self.input_layernorm(x), rotary, attention_mask, past_key_values, **kwargs)
        x = x + attended
        inner = self.post_attention_layernorm(x)
        return x + (self.mlp(inner) if self.is_dense else self.mlp(inner, owned_TE, group_T)), weights


class MostAudioWave(nn.Module):
    """Continuous speech features -> embeddings (MoST-C). Of the features' own model only what has learnt is here."""

    def __init__(self, config: MostConfig) -> None:
        super().__init__()
        self.hubert_model = MostWaveEncoder(config) if config.audio_wave_layers else None
        self.proj = nn.Linear(config.hubert_hidden_size, config.hidden_size)

    def forward(
        self, embeds_BSD: torch.Tensor, wave_BSF: torch.Tensor, is_wave_BS: torch.Tensor,
        starts_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """`starts_BS`: where an utterance begins; None: each stretch of frames is one."""
        is_wave_BS1 = is_wave_BS.unsqueeze(-1)
        wave_BSF = wave_BSF.masked_fill(~is_wave_BS1, 0.0)  # what stands elsewhere must not matter, NaN included
        if self.hubert_model is not None:
            is_new_BS = is_wave_BS & ~F.pad(is_wave_BS, (1, -1))
            starts_BS = is_new_BS if starts_BS is None else is_new_BS | starts_BS
            wave_BSF = self.hubert_model(wave_BSF.to(self.proj.weight.dtype), is_wave_BS, starts_BS)
        return torch.where(is_wave_BS1, self.proj(wave_BSF.to(self.proj.weight.dtype)).to(embeds_BSD), embeds_BSD)


class MostPreTrainedModel(PreTrainedModel):
    config_class = MostConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MostDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["group_constant", "expert_bias"]
    _keys_to_ignore_on_load_unexpected = [r"audio_wave_processor\.hubert_model\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MostGate):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.group_constant is not None:
                init.ones_(module.group_constant)
            if module.expert_bias is not None:
                init.zeros_(module.expert_bias)


class MostModel(MostPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: MostConfig) -> None:
        super().__init__(config)
        # No padding_idx: the published tokenizer pads with EOS, whose embedding must learn.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.audio_wave_processor = MostAudioWave(config) if config.use_continuous_audio else None
        self.layers = nn.ModuleList(MostDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = MostRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = MostRotary(config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None, modality_tags: torch.Tensor | None = None,
        audio_wave_features: torch.Tensor | None = None, audio_wave_mask: torch.Tensor | None = None,
        audio_wave_starts: torch.Tensor | None = None, use_cache: bool | None = None,
        output_hidden_states: bool | None = None, output_attentions: bool | None = None, **kwargs: Any,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        """Tags are those of the ids, unless `modality_tags` [B, S] are given; `inputs_embeds` need them.

        `audio_wave_features` [B, S, F] stand in place of embeddings where `audio_wave_mask` [B, S], and are audio;
        `audio_wave_starts` [B, S]: where an utterance begins, if two lie side by side.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        tags_BS = self.tags(input_ids, modality_tags, audio_wave_mask)
        owned_TE, group_T = self.owners(tags_BS.flatten())
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if tags_BS.shape != x.shape[:2]:
            raise ValueError(f"modality_tags: {tuple(tags_BS.shape)}, inputs: {tuple(x.shape[:2])}; one each")
        x = self.with_wave(x, audio_wave_features, audio_wave_mask, audio_wave_starts)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        cache_position = torch.arange(seen, seen + x.size(1), device=x.device)
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        mask_inputs = dict(config=self.config, attention_mask=attention_mask, past_key_values=past_key_values)
        mask_inputs |= dict(position_ids=position_ids, cache_position=cache_position, inputs_embeds=x, input_embeds=x)
        # Before a cache is made: with one, positions that start again would not be taken for packed documents.
        mask = create_causal_mask(**{name: value for name, value in mask_inputs.items() if name in MASK_ARGUMENTS})
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if keep_attentions and self.config._attn_implementation != "eager":
            raise ValueError('output_attentions: only attn_implementation = "eager" has them; load the model with it')
        states, attentions, rotary = [], [], self.rotary(position_ids)
        for layer in self.layers:
            if keep_states:
                states.append(x)
            x, weights = layer(
                x, rotary=rotary, attention_mask=mask, owned_TE=owned_TE, group_T=group_T,
                past_key_values=past_key_values, at={"cache_position": cache_position}, **kwargs,
            )  # fmt: skip
            if keep_attentions:
                attentions.append(weights)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, x) if keep_states else None,
            attentions=tuple(attentions) if keep_attentions else None,
        )

    def with_wave(
        self, embeds_BSD: torch.Tensor, wave_BSF: torch.Tensor | None, is_wave_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The embeddings, with continuous features in their places."""
        if (wave_BSF is None) != (is_wave_BS is None):
            raise ValueError("audio_wave_features and audio_wave_mask belong together; give both")
        if wave_BSF is None:
            return embeds_BSD
        if self.audio_wave_processor is None:
            raise ValueError("audio_wave_features: this model has no projector; it needs use_continuous_audio")
        return self.audio_wave_processor(embeds_BSD, wave_BSF, is_wave_BS, starts_BS)

    def tags(
        self, input_ids: torch.Tensor | None, modality_tags: torch.Tensor | None, audio_wave_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The tag of each token [B, S]; one that the configuration does not know is an error."""
        if modality_tags is not None:
            known = sorted({*self.config.tags_without_group, *(tag for tags, _ in self.config.groups for tag in tags)})
            is_known_BS = torch.isin(modality_tags, torch.tensor(known, device=modality_tags.device))
            if not is_known_BS.all():
                stray = modality_tags[~is_known_BS][0].item()
                raise ValueError(f"modality_tags: {stray} is no tag of this model; use one of {known}")
            return modality_tags.long()
        if input_ids is None:
            raise ValueError("inputs_embeds have no ids to tell tags from; give modality_tags as well")
        tags_BS = torch.full_like(input_ids, -1)
        for first, last, tag in self.config.tag_ranges:
            tags_BS = tags_BS.masked_fill((input_ids >= first) & (input_ids <= last), tag)
        if (tags_BS < 0).any():
            stray = input_ids[tags_BS < 0][0].item()
            remedy = "check that the tokenizer is this model's, or give modality_tags"
            raise ValueError(f"input_ids: id {stray} is in no tag range of the token map; {remedy}")
        return tags_BS if audio_wave_mask is None else tags_BS.masked_fill(audio_wave_mask, AUDIO)

    def owners(self, tags_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts each token may choose [T, E], none for a shared-only one, and its group [T], any for such."""
        groups, without = self.config.groups, self.config.tags_without_group
        num_tags = 1 + max([*without, *(tag for tags, _ in groups for tag in tags)])
        owns_ME = torch.zeros(num_tags, self.config.n_routed_experts, dtype=torch.bool, device="cpu")
        group_of_tag_M = torch.zeros(num_tags, dtype=torch.long, device="cpu")
        for group, (tags, experts) in enumerate(groups):
            for tag in tags:
                owns_ME[tag, experts] = True
                group_of_tag_M[tag] = group
        return owns_ME.to(tags_T.device)[tags_T], group_of_tag_M.to(tags_T.device)[tags_T]


class UsedIdsOnly(LogitsProcessor):
    """Rows of the vocabulary without a token are never generated: they have no tag, and could not be read again."""

    def __init__(self, unused_ids: list[int]) -> None:
        self.unused_ids = torch.tensor(unused_ids, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, self.unused_ids.to(scores.device), float("-inf"))


class MostForCausalLM(MostPreTrainedModel, GenerationMixin):
    """The whole model. `generate` works as usual: tags follow the generated ids."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MostConfig) -> None:
        super().__init__(config)
        self.model = MostModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None, labels: torch.Tensor | None = None,
        modality_tags: torch.Tensor | None = None, audio_wave_features: torch.Tensor | None = None,
        audio_wave_mask: torch.Tensor | None = None, audio_wave_starts: torch.Tensor | None = None,
        use_cache: bool | None = None, logits_to_keep: int | torch.Tensor = 0, **kwargs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """See MostModel.forward; `labels` as everywhere in transformers: shifted here, -100 is ignored."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, modality_tags=modality_tags,
            audio_wave_features=audio_wave_features, audio_wave_mask=audio_wave_mask,
            audio_wave_starts=audio_wave_starts, use_cache=use_cache, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As everywhere in transformers; `modality_tags` and continuous features are of the prompt."""
        processors = LogitsProcessorList([*(logits_processor or []), UsedIdsOnly(self.config.unused_ids)])
        return super().generate(inputs, generation_config, processors, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None, modality_tags: torch.Tensor | None = None,
        audio_wave_features: torch.Tensor | None = None, audio_wave_mask: torch.Tensor | None = None,
        audio_wave_starts: torch.Tensor | None = None, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What was given for the prompt goes on with the new ids' tags and no wave, cut as the inputs are."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        now = (inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]).size(1)
        whole = now + (0 if past_key_values is None else int(past_key_values.get_seq_length()))
        if modality_tags is not None:
            num_new = whole - modality_tags.size(1)
            new_tags = self.model.tags(input_ids[:, input_ids.size(1) - num_new :], None, None)
            inputs["modality_tags"] = torch.cat([modality_tags, new_tags.to(modality_tags)], dim=1)[:, -now:]
        frames = {"mask": audio_wave_mask, "features": audio_wave_features, "starts": audio_wave_starts}
        for name, given in ((f"audio_wave_{of}", tensor) for of, tensor in frames.items()):
            if given is not None:
                padding = (0, 0) * (given.ndim - 2) + (0, whole - given.size(1))
                inputs[name] = F.pad(given, padding)[:, -now:]
        return inputs
