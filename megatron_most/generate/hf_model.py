"""HfModel: a transformers model with a cache behind generation's interface, such as an exported one.

The object comes from outside, with its token map. transformers' caches hold one length for all rows, so shorter rows
are filled up on the left of each step's tokens, masked, and positions count real tokens only.
"""

# B rows, T new tokens of a row, P positions of the cache, V vocabulary

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_most.errors import DataError
from megatron_most.generate.interface import Waves
from megatron_most.vocab import AUDIO, TEXT, TokenMap

TOKENS_AT_ONCE = 2048
"""Of rows that are scored together, pads counted: whole logits of all of them are held at once."""


class HfState:
    """See interface.State."""

    def __init__(self, model: Any, rows: int) -> None:
        from transformers import DynamicCache

        self._model, self._was_training = model, model.training
        model.eval()
        self.cache: Any = DynamicCache(config=model.config)
        self.seen_BP = torch.zeros(rows, 0, dtype=torch.long, device=model.device)

    leads = True

    def keep(self, rows: Sequence[int]) -> None:
        kept = torch.tensor(rows, dtype=torch.long, device=self.seen_BP.device)
        self.seen_BP = self.seen_BP[kept]
        self.cache.batch_select_indices(kept)

    def share(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def close(self) -> None:
        self.cache = None
        self._model.train(self._was_training)


class HfModel:
    """See interface.LanguageModel. `model`: a causal language model of transformers; it may take `modality_tags`."""

    def __init__(self, model: Any, tokens: TokenMap) -> None:
        rows = model.get_output_embeddings().weight.size(0)
        if rows != tokens.vocab_size:
            raise DataError(f"the model has {rows} rows, its token map {tokens.vocab_size}; give the model's own map")
        self.model, self._tokens = model, tokens
        takes_frames = getattr(model.config, "use_continuous_audio", False)
        self._frame_width = int(model.config.hubert_hidden_size) if takes_frames else 0
        self._takes_tags = "modality_tags" in inspect.signature(model.forward).parameters

    @property
    def tokens(self) -> TokenMap:
        return self._tokens

    @property
    def max_positions(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def frames_tag(self) -> int | None:
        """See interface.LanguageModel. In transformers frames are audio."""
        return AUDIO if self._frame_width else None

    def open(self, rows: int, length: int) -> HfState:
        """See interface.LanguageModel."""
        return HfState(self.model, rows)

    @torch.no_grad()
    def step(
        self, state: HfState, ids_BT: torch.Tensor, tags_BT: torch.Tensor, num_B: torch.Tensor, waves: Waves = ()
    ) -> torch.Tensor:
        """See interface.LanguageModel."""
        if len(num_B) != len(state.seen_BP) or int(num_B.min()) < 1:
            raise DataError(f"a step of {num_B.tolist()} tokens; give each of {len(state.seen_BP)} rows one or more")
        frames = self._frames(waves, tags_BT, num_B)
        ids_BT, tags_BT, is_new_BT = self._to_the_right(ids_BT, tags_BT, num_B)
        state.seen_BP = torch.cat([state.seen_BP, is_new_BT.long()], dim=1)
        return self._forward(state.cache, ids_BT, tags_BT, state.seen_BP, 1, frames)[:, -1].float()

    def _frames(self, waves: Waves, tags_BT: torch.Tensor, num_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """As MostForCausalLM takes continuous frames, at the places that _to_the_right gives their tokens."""
        if not any(wave is not None and len(wave.places_N) for wave in waves):
            return {}
        width = tags_BT.size(1)
        frames_BTF = torch.zeros(*tags_BT.shape, self._frame_width)
        is_frame_BT = torch.zeros(tags_BT.shape, dtype=torch.bool)
        starts_BT = torch.zeros_like(is_frame_BT)
        for row, wave in enumerate(waves):
            if wave is None or not len(wave.places_N):
                continue
            found = None if wave.features_NF is None else wave.features_NF.shape[1]
            if wave.features_NF is None or found != self._frame_width:
                wanted = f"takes {self._frame_width} (hubert_hidden_size)" if self._frame_width else "takes none"
                raise DataError(f"frames of {found} numbers, but the model {wanted}")
            if (tags_BT[row, torch.from_numpy(wave.places_N)] != AUDIO).any():
                raise DataError("frames under another tag than audio, which transformers' models give them")
            at = torch.from_numpy(wave.places_N) + width - int(num_B[row])
            frames_BTF[row, at] = torch.from_numpy(wave.features_NF)
            is_frame_BT[row, at] = True
            starts_BT[row, at] = torch.from_numpy(wave.is_first_N)
        device = self.model.device
        found = {"features": frames_BTF, "mask": is_frame_BT, "starts": starts_BT}
        return {f"audio_wave_{name}": tensor.to(device) for name, tensor in found.items()}

    @torch.no_grad()
    def logprobs(self, ids: Sequence[Sequence[int]], tags: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See interface.LanguageModel."""
        found: list[np.ndarray] = []
        was_training = self.model.training
        self.model.eval()
        try:
            longest = max(map(len, ids), default=1)
            at_once = max(1, TOKENS_AT_ONCE // longest)
            for first in range(0, len(ids), at_once):
                found += self._logprobs(ids[first : first + at_once], tags[first : first + at_once])
        finally:
            self.model.train(was_training)
        return found

    def _logprobs(self, ids: Sequence[Sequence[int]], tags: Sequence[Sequence[int]]) -> list[np.ndarray]:
        num_B = torch.tensor([len(row) for row in ids])
        ids_BT = torch.zeros(len(ids), int(num_B.max()), dtype=torch.long)
        tags_BT = torch.zeros_like(ids_BT)
        for line_BT, of in ((ids_BT, ids), (tags_BT, tags)):
            for row, values in enumerate(of):
                line_BT[row, : len(values)] = torch.as_tensor(values)
        ids_BT, tags_BT, is_new_BT = self._to_the_right(ids_BT, tags_BT, num_B)
        logits_BTV = self._forward(None, ids_BT, tags_BT, is_new_BT.long(), 0).float()
        logp_BT = logits_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None])[..., 0] - logits_BTV[:, :-1].logsumexp(-1)
        return [
            line[line.numel() + 1 - count :].cpu().numpy() for line, count in zip(logp_BT, num_B.tolist(), strict=True)
        ]

    def _forward(
        self, cache: Any, ids_BT: torch.Tensor, tags_BT: torch.Tensor, seen_BP: torch.Tensor, last: int,
        frames: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        positions_BT = (seen_BP.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.size(1) :]
        tags = {"modality_tags": tags_BT} if self._takes_tags else {}
        return self.model(
            input_ids=ids_BT, attention_mask=seen_BP, position_ids=positions_BT, past_key_values=cache,
            use_cache=cache is not None, logits_to_keep=last, **tags, **(frames or {}),
        ).logits  # fmt: skip

    def _to_the_right(
        self, ids_BT: torch.Tensor, tags_BT: torch.Tensor, num_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each row's tokens at the end of its line, pads before them; and where tokens are."""
        width = ids_BT.size(1)
        place_T = torch.arange(width)
        from_BT = place_T - (width - num_B)[:, None]
        is_new_BT, from_BT = from_BT >= 0, from_BT.clamp(min=0)
        ids_BT = ids_BT.gather(1, from_BT).masked_fill(~is_new_BT, self._tokens.pad_id)
        tags_BT = tags_BT.gather(1, from_BT).masked_fill(~is_new_BT, TEXT)
        device = self.model.device
        return ids_BT.to(device), tags_BT.to(device), is_new_BT.to(device)
