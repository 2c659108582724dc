"""MostModel: Core's GPTModel that takes tags with its tokens, and continuous speech in place of embeddings.

Tags travel as boolean planes in `padding_mask` (see moe/planes.py). Core's own `_preprocess` insists on a mask of the
ids' shape and cuts it under sequence parallelism on the first pipeline stage only; ours cuts it on every stage.
Document bounds travel in `attention_mask` (see upstream/attention.py). Context parallelism cuts everything but the
bounds, first. Large logits are never there whole (see head_loss.py). `extend` is generation's way through the same
layers, with a Lookback for a mask.
"""

# B rows, S sequence, P planes, F width of continuous features; N new tokens of all rows of a step, D width

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, gather_from_tensor_model_parallel_region

from megatron_most.config import Plan, columns_at_once
from megatron_most.data import PackedBatch
from megatron_most.model.core_config import core_config
from megatron_most.model.head_loss import loss_in_pieces
from megatron_most.model.specs import block_spec
from megatron_most.model.wave import WaveProjector
from megatron_most.moe import to_planes
from megatron_most.parallel import Groups
from megatron_most.upstream import Lookback, is_elsewhere, piece


class MostModel(GPTModel):
    """One pipeline stage of the model. `forward` gives loss per token [B, S] with labels, else logits."""

    is_fused = False
    """The loss of large logits by our kernels. Set where the device has them."""

    def __init__(self, plan: Plan, groups: Groups) -> None:
        config = core_config(plan)
        model = plan.config.model
        super().__init__(
            config,
            block_spec(config, plan),
            plan.tokens.vocab_size,
            model.max_positions,
            pre_process=groups.is_first_stage,
            post_process=groups.is_last_stage,
            position_embedding_type="rope",
            rotary_base=model.rope_theta,  # type: ignore[arg-type]
            rope_scaling=model.rope == "llama3",
            rope_scaling_factor=model.rope_factor,
            share_embeddings_and_output_weights=model.tied_embeddings,
        )
        self.plan, self.groups = plan, groups
        self.wave = WaveProjector(model, config) if model.wave_size and groups.is_first_stage else None

    def forward(self, batch: PackedBatch, *, with_labels: bool = True) -> torch.Tensor:  # type: ignore[override]
        """Whole sequences in; this context rank's piece of the result out."""
        rank, ranks = self.groups.context.rank(), self.groups.context.size()
        cut = lambda x: piece(x, rank, ranks)  # noqa: E731
        tokens_BS = cut(batch.tokens_BS)
        positions_BS = torch.arange(batch.tokens_BS.size(1), device=tokens_BS.device).expand_as(batch.tokens_BS)
        decoder_input = None
        if self.wave is not None:  # also without features: ranks must agree on which weights take part
            wave_BSF, is_wave_BS = batch.wave_BSF, batch.is_wave_BS
            if wave_BSF is None or is_wave_BS is None:
                wave_BSF = batch.loss_weights_BS.new_zeros(*batch.tokens_BS.shape, self.plan.config.model.wave_size)
                is_wave_BS = torch.zeros_like(batch.is_pad_BS)
            wave_BSF = self.wave.encode(wave_BSF, is_wave_BS, batch.wave_starts_BS)
            embedded_SBD = self.embedding(input_ids=tokens_BS, position_ids=cut(positions_BS))
            wave, is_wave = (self._cut_for_tensor_ranks(cut(x)) for x in (wave_BSF, is_wave_BS))
            decoder_input = self.wave(embedded_SBD, wave, is_wave)
        return super().forward(
            tokens_BS,
            cut(positions_BS),
            batch.documents_BS if batch.is_packed else None,  # type: ignore[arg-type]
            decoder_input=decoder_input,
            labels=cut(batch.labels_BS) if with_labels else None,
            padding_mask=to_planes(cut(batch.tags_BS), cut(batch.is_pad_BS)),
        )

    def extend(
        self, tokens_N: torch.Tensor, tags_N: torch.Tensor, lookback: Lookback,
        wave: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The new tokens of a step through all layers, after those in its cache: [N, D], the same on all tensor ranks.
        `wave`: features [N, F] that stand in place of embeddings where [N] says so; where [N] an utterance begins.

        One stage, no context parallelism. Tensor ranks divide a sequence equally, so it is filled up with pads.
        """
        n, ranks = lookback.num_tokens, self.groups.tensor.size()
        fill = -n % ranks if self.config.sequence_parallel else 0
        is_pad_N = torch.zeros_like(tokens_N, dtype=torch.bool)
        by_token = [tokens_N, tags_N, lookback.position_N]
        if fill:
            by_token, is_pad_N = [F.pad(x, (0, fill)) for x in by_token], F.pad(is_pad_N, (0, fill), value=True)
        tokens_1N, tags_1N, positions_1N, is_pad_1N = (x.unsqueeze(0) for x in (*by_token, is_pad_N))
        angles = None
        if not self.config.multi_latent_attention:  # which turns its own
            length = lookback.cache.capacity if lookback.cache else lookback.longest  # few tables, which Core keeps
            angles = self.rotary_pos_emb(length)[positions_1N[0]]
        embedded_N1D = self.embedding(input_ids=tokens_1N, position_ids=positions_1N)
        if wave is not None:
            assert self.wave is not None, "features are asked for by model.wave_size"
            wave_1NF = self.wave.encode(*(x.unsqueeze(0) for x in wave))
            wave_1NF, is_wave_1N = F.pad(wave_1NF, (0, 0, 0, fill)), F.pad(wave[1], (0, fill)).unsqueeze(0)
            ours = (self._cut_for_tensor_ranks(x) for x in (wave_1NF, is_wave_1N))
            embedded_N1D = self.wave(embedded_N1D, *ours)
        hidden_N1D = self.decoder(
            hidden_states=embedded_N1D,
            attention_mask=lookback,
            rotary_pos_emb=angles,
            padding_mask=self._cut_for_tensor_ranks(to_planes(tags_1N, is_pad_1N)),
        )
        if self.config.sequence_parallel:
            hidden_N1D = gather_from_sequence_parallel_region(hidden_N1D, group=self.groups.tensor)
        lookback.done()
        return hidden_N1D[:n, 0]

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, V] in float32 of what `extend` gave for some tokens, the same on all tensor ranks."""
        ours = F.linear(hidden_ND, self._head_weight())
        return gather_from_tensor_model_parallel_region(ours, group=self.groups.tensor).float()

    def _preprocess(self, *args: Any, padding_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        out = super()._preprocess(*args, **kwargs)
        if padding_mask is not None:
            padding_mask = self._cut_for_tensor_ranks(padding_mask)
        return (*out[:5], padding_mask, *out[6:])

    def _postprocess(self, hidden_states: torch.Tensor, *, labels: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        if self.post_process and labels is not None:
            weight = self._head_weight()
            if not is_elsewhere(weight):
                columns = columns_at_once(labels.numel(), weight.size(0))
                if columns < weight.size(0):
                    return self._loss_in_pieces(hidden_states, labels, columns)
        return super()._postprocess(hidden_states, labels=labels, **kwargs)

    def _loss_in_pieces(self, hidden_SBD: torch.Tensor, labels_BS: torch.Tensor, columns: int) -> torch.Tensor:
        if self.config.sequence_parallel:  # which there is with every tensor parallelism
            hidden_SBD = gather_from_sequence_parallel_region(hidden_SBD, group=self.groups.tensor)
        labels_SB = labels_BS.t()
        loss_T = loss_in_pieces(
            hidden_SBD.flatten(0, 1), self._head_weight(), labels_SB.flatten(), columns, self.groups.tensor,
            self.is_fused,
        )  # fmt: skip
        return loss_T.view(labels_SB.shape).t().contiguous()

    def _head_weight(self) -> torch.Tensor:
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight

    def _cut_for_tensor_ranks(self, x: torch.Tensor) -> torch.Tensor:
        """Under sequence parallelism this tensor rank's part of dim 1."""
        if not self.config.sequence_parallel:
            return x
        return x.chunk(self.groups.tensor.size(), dim=1)[self.groups.tensor.rank()].contiguous()
