"""CoreModel: our model behind generation's interface, from an engine that is training it or from a checkpoint.

Tensor and expert parallelism, any data parallelism; one pipeline stage, whole sequences. With expert parallelism all
ranks generate the same rows together, for they hold the experts together; otherwise each tensor group goes by itself.
"""

# B rows, T new tokens of a row, N new tokens of all rows, V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
import torch.distributed as dist

from megatron_most.config import LayoutPlan, Plan
from megatron_most.errors import ConfigError, DataError
from megatron_most.generate.interface import Waves
from megatron_most.generate.together import Together
from megatron_most.model import MostModel
from megatron_most.upstream import KVCache, Lookback
from megatron_most.vocab import TokenMap, tag_id

TOKENS_AT_ONCE = 8192
"""Of prompts: what layers hold of them at a time is bounded by it."""
LOGITS_AT_ONCE = 512
"""Tokens whose whole logits are held at a time."""


def unsupported(plan: Plan) -> str | None:
    """Why a model of this plan cannot generate with a cache; None where it can."""
    layout, engine = plan.layout, plan.config.engine
    if layout.pipeline > 1 or layout.context > 1:
        return f"a layout of {layout}: generation with a cache knows no pipeline stages and no context parallelism"
    if engine.kind == "deepspeed" and engine.zero_stage == 3:
        return "ZeRO stage 3 keeps no rank's weights whole between two steps"
    return None


class CoreState(Together):
    """See interface.State."""

    def __init__(self, model: MostModel, group: dist.ProcessGroup | None, rows: int, length: int) -> None:
        super().__init__(group, next(model.parameters()).device)
        self.cache = KVCache(rows, length)
        self._model, self._was_training = model, model.training
        model.eval()

    def keep(self, rows: Sequence[int]) -> None:
        self.cache.keep(rows)

    def close(self) -> None:
        self.cache = KVCache(0, 1)
        self._model.train(self._was_training)


class CoreModel:
    """See interface.LanguageModel. Made by `open_model` it owns its process group: close it, or use it in `with`."""

    def __init__(self, model: MostModel, owned: ExitStack | None = None, folder: Path | None = None) -> None:
        plan = model.plan
        if wrong := unsupported(plan):
            raise ConfigError("layout", str(plan.layout), wrong, "generate from a checkpoint, in a layout without them")
        self.model, self.plan, self.folder = model, plan, folder
        self._owned = owned or ExitStack()
        self._group = _together(model, plan.layout)

    @property
    def tokens(self) -> TokenMap:
        return self.plan.tokens

    @property
    def max_positions(self) -> int:
        return self.plan.config.model.max_positions

    @property
    def frames_tag(self) -> int | None:
        """See interface.LanguageModel."""
        model = self.plan.config.model
        return tag_id(model.wave_tag) if model.wave_size else None

    def open(self, rows: int, length: int) -> CoreState:
        """See interface.LanguageModel."""
        return CoreState(self.model, self._group, rows, length)

    @torch.no_grad()
    def step(
        self, state: CoreState, ids_BT: torch.Tensor, tags_BT: torch.Tensor, num_B: torch.Tensor, waves: Waves = ()
    ) -> torch.Tensor:
        """See interface.LanguageModel."""
        counts, device = num_B.tolist(), next(self.model.parameters()).device
        if len(counts) != len(state.cache.lengths) or min(counts) < 1:
            raise DataError(f"a step of {counts} tokens; give each of {len(state.cache.lengths)} rows one or more")
        logits = []
        for rows in _parts(counts):
            new = [(row, slice(0, counts[row])) for row in rows]
            ids_N, tags_N = (torch.cat([x[at] for at in new]).to(device) for x in (ids_BT, tags_BT))
            lookback = Lookback(state.cache, rows, [counts[row] for row in rows], device)
            wave = self._waves([waves[row] for row in rows], lookback, tags_N) if waves else None
            hidden_ND = self.model.extend(ids_N, tags_N, lookback, wave)
            logits.append(self.model.logits(hidden_ND[[span.first + span.count - 1 for span in lookback.spans]]))
        return torch.cat(logits)

    def _waves(
        self, waves: Waves, lookback: Lookback, tags_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Of the tokens of some rows: features [N, F], where there is a frame [N], where an utterance begins [N]."""
        width, name, device = self.plan.config.model.wave_size, self.plan.config.model.wave_tag, tags_N.device
        wave_NF = torch.zeros(lookback.num_tokens, width, device=device)
        is_wave_N = torch.zeros(lookback.num_tokens, dtype=torch.bool, device=device)
        starts_N = torch.zeros_like(is_wave_N)
        for wave, span in zip(waves, lookback.spans, strict=True):
            if wave is None or not len(wave.places_N):
                continue
            if wave.features_NF is None or wave.features_NF.shape[1] != width:
                found = None if wave.features_NF is None else wave.features_NF.shape[1]
                raise DataError(f"frames of {found} numbers, but the model takes {width} (model.wave_size)")
            at = torch.from_numpy(wave.places_N + span.first).to(device)
            wave_NF[at] = torch.from_numpy(wave.features_NF).to(device)
            is_wave_N[at] = True
            starts_N[at] = torch.from_numpy(wave.is_first_N).to(device)
        if (tags_N[is_wave_N] != tag_id(name)).any():
            raise DataError(f"frames under another tag than {name}, which the model gives them (model.wave_tag)")
        return (wave_NF, is_wave_N, starts_N) if is_wave_N.any() else None

    @torch.no_grad()
    def logprobs(self, ids: Sequence[Sequence[int]], tags: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See interface.LanguageModel."""
        counts, device = [len(row) for row in ids], next(self.model.parameters()).device
        found: list[np.ndarray] = []
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in _parts(counts):
                ids_N, tags_N = (
                    torch.cat([torch.as_tensor(of[row], dtype=torch.long) for row in rows]).to(device)
                    for of in (ids, tags)
                )
                lookback = Lookback(None, rows, [counts[row] for row in rows], device)
                hidden_ND = self.model.extend(ids_N, tags_N, lookback)
                logp_N = self._of_next(hidden_ND, ids_N.roll(-1)).cpu().numpy()
                found += [logp_N[span.first : span.first + span.count - 1] for span in lookback.spans]
        finally:
            self.model.train(was_training)
        return found

    def _of_next(self, hidden_ND: torch.Tensor, next_N: torch.Tensor) -> torch.Tensor:
        parts = []
        for hidden, chosen in zip(hidden_ND.split(LOGITS_AT_ONCE), next_N.split(LOGITS_AT_ONCE), strict=True):
            logits = self.model.logits(hidden)
            parts.append(logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1))
        return torch.cat(parts)

    def close(self) -> None:
        """Leave the process group, where this model has one of its own."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._owned.__exit__(kind, error, trace)


def _together(model: MostModel, layout: LayoutPlan) -> dist.ProcessGroup | None:
    """The ranks that hold one model together; None for one alone."""
    group = model.groups.tokens if layout.expert > 1 else model.groups.tensor
    return group if group.size() > 1 else None


def _parts(counts: Sequence[int]) -> Iterator[list[int]]:
    """Rows in their order, as many at once as have TOKENS_AT_ONCE tokens, but at least one."""
    part: list[int] = []
    for row, count in enumerate(counts):
        if part and sum(counts[r] for r in part) + count > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
