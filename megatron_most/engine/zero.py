"""The DeepSpeed engine: ZeRO 0 to 3 over tensor and context parallelism, 1 to 3 over expert parallelism too, and ZeRO-1
over pipeline stages.

Same arithmetic as the plain engine. DeepSpeed divides each loss by the number of micro-batches and each gradient by the
data x context ranks (expert gradients too), so what it is handed is multiplied by both, and sums come out.

Without ZeRO (stage 0) DeepSpeed only reduces the gradients here; masters, norm and clipping are those of the plain
engine. By itself it would tell no norm and step on NaN in float32, and begin bfloat16 with a decaying step of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from megatron_most.config import Plan, share_of_peak
from megatron_most.data import PackedBatch
from megatron_most.engine.check import check_together
from megatron_most.engine.gradients import clip_gradients, gradient_squares, whole_gradients
from megatron_most.engine.interface import Lap, ReadLocal, Scaler, StepReport, no_lap, roots
from megatron_most.engine.masters import Masters
from megatron_most.engine.schedule import add_up, count_globally, cut_terms, logits_at, run_micro_batches
from megatron_most.errors import ConfigError, MostError
from megatron_most.model import LossTerms, MostModel, part_names, part_of_weights
from megatron_most.moe import move_biases, set_auxiliary_scale
from megatron_most.parallel import Groups
from megatron_most.upstream import (
    Mpu,
    expert_group_name,
    full_moment,
    full_weight,
    gradient_fragments,
    link_moments,
    make_room_for_moments,
    make_zero_engine,
    mark_for_zero,
    prepare_deepspeed,
    scaler_state,
    set_full,
    set_scaler_state,
    whole_shape,
)


class ZeroEngine:
    """See interface.Engine."""

    def __init__(self, model: MostModel, plan: Plan, groups: Groups) -> None:
        engine = plan.config.engine
        if engine.kind != "deepspeed":
            raise ConfigError("engine.kind", engine.kind, "this is the DeepSpeed engine", 'set it to "deepspeed"')
        self.plan, self.groups = plan, groups
        self._updates = 0
        prepare_deepspeed(next(model.parameters()).device)
        named = list(model.named_parameters())
        self.parts, self.part_of = part_names(plan), part_of_weights(model, plan)
        mark_for_zero(named, plan.layout, engine.zero_stage, groups.expert_cell, groups.expert_data, groups.tensor)
        mpu = Mpu(groups.data_context, groups.model, groups.tensor)
        self.whole = None if engine.zero_stage else Masters(model, plan.config.train)
        optimizer = self.whole.optimizer if self.whole else _optimizer(plan, named)
        self.engine = make_zero_engine(model, optimizer, mpu, _settings(plan))
        self.model: MostModel = self.engine.module

    def step(
        self, batches: Sequence[PackedBatch], learning_rate: float, *, lap: Lap = no_lap, look: bool = False
    ) -> StepReport:
        """See interface.Engine."""
        batches = list(batches)
        check_together(batches, self.plan, self.groups)
        lap("check")
        self.engine.train()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        skipped = self.engine.skipped_steps
        terms = self._stages(batches, lap) if self.plan.layout.pipeline > 1 else self._accumulate(batches)
        lap("forward_backward")
        squares = self._squares() if look or self.whole else None
        norms = roots(self.parts, squares, self._loss_scale) if look and squares is not None else {}
        lap("telemetry")
        if self.whole is not None and squares is not None:
            norm = math.sqrt(float(squares.sum()))
            is_skipped = not self._step_whole(self.whole, norm)
        else:
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm() or 0.0)
            is_skipped = self.engine.skipped_steps > skipped
        if not math.isfinite(norm) and not is_skipped:
            raise MostError(f"the gradient norm is {norm} and ZeRO has used it: go back to the last checkpoint")
        if not is_skipped:
            self._updates += 1
            move_biases(self.model, self.groups.tokens, share_of_peak(self.plan.config.train, learning_rate))
        report = StepReport.of(terms, norm, is_skipped, norms)
        lap("optimizer")
        return report

    @property
    def updates(self) -> int:
        """See interface.Engine."""
        return self._updates

    def state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """See interface.Engine."""
        if self.whole is not None:
            yield from self.whole.state()
            return
        link_moments(self.engine.optimizer)
        for name, weight in self.model.named_parameters():
            yield "weight", name, full_weight(weight)
            if weight.requires_grad and self._updates:
                for kind in ("exp_avg", "exp_avg_sq"):
                    yield kind, name, full_moment(weight, kind)
        for name, buffer in self.model.named_buffers():
            yield "weight", name, buffer

    def load_state(self, read: ReadLocal, updates: int, scaler: Scaler = MappingProxyType({})) -> None:
        """See interface.Engine."""
        self._updates = updates
        set_scaler_state(self.engine.optimizer, scaler)
        if self.whole is not None:
            self.whole.load_state(read, updates)
            return
        make_room_for_moments(self.engine.optimizer, updates)
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                shape = whole_shape(weight)
                for kind in ("weight", "exp_avg", "exp_avg_sq"):
                    value = read(kind, name, shape)
                    if value is not None:
                        set_full(weight, value, None if kind == "weight" else kind)

    @property
    def scaler(self) -> dict[str, float]:
        """See interface.Engine."""
        return scaler_state(self.engine.optimizer)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[PackedBatch]) -> LossTerms:
        """See interface.Engine."""
        batches = list(batches)
        check_together(batches, self.plan, self.groups)
        self.engine.eval()
        if self.plan.layout.pipeline > 1:
            return run_micro_batches(self.model, batches, self.groups, forward_only=True)
        device = next(self.model.parameters()).device
        moved = [batch.to(device) for batch in batches]
        return add_up([cut_terms(self.engine(batch), batch, self.groups) for batch in moved], self.groups, device)

    @torch.no_grad()
    def logits(self, batch: PackedBatch, places_B: torch.Tensor) -> torch.Tensor:
        """See interface.Engine."""
        check_together([batch], self.plan, self.groups)
        self.engine.eval()
        return logits_at(self.engine, self.model, batch, places_B, self.groups)

    def _accumulate(self, batches: Sequence[PackedBatch]) -> LossTerms:
        """DeepSpeed's own loop: it reduces while it goes backward. The last micro-batch's step is left to do.

        It is told which is the last, for steps may differ in length, but divides by the number it was built with.
        """
        device = next(self.model.parameters()).device
        batches = [batch.to(device) for batch in batches]
        weights, rows = count_globally(batches, self.groups, device)
        ranks = self.groups.data_context.size()
        scale = self._loss_scale if self.plan.config.engine.precision == "fp16" else 1.0
        set_auxiliary_scale(scale * ranks / rows, device)
        done: list[LossTerms] = []
        for number, batch in enumerate(batches, start=1):
            if done:
                self.engine.step()  # counts a micro-batch
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            terms = cut_terms(self.engine(batch), batch, self.groups)
            self.engine.backward(terms.loss_sum_JM.sum() * (self.plan.micro_batches * ranks / weights))
            done.append(terms.detach())
        return add_up(done, self.groups, device)

    def _stages(self, batches: Sequence[PackedBatch], lap: Lap) -> LossTerms:
        """Core's 1F1B schedule adds into .grad; then ZeRO-1 reduces once. The step is left to do."""
        self.engine.set_gradient_accumulation_boundary(False)
        terms = run_micro_batches(self.model, batches, self.groups, loss_scale=self.groups.data_context.size())
        lap("forward_backward")
        for weight in self.model.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.groups.tied is not None:
            tied = [w for w in self.model.parameters() if getattr(w, "shared_embedding", False)]
            for weight in tied:
                assert weight.grad is not None, "filled above"
                dist.all_reduce(weight.grad, group=self.groups.tied)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.allreduce_gradients()
        lap("optimizer")
        return terms

    @property
    def _loss_scale(self) -> float:
        return float(getattr(self.engine.optimizer, "loss_scale", 1.0))

    def _squares(self) -> torch.Tensor:
        """By part of the model, of the gradients that the step is about to use, loss scale included."""
        optimizer, device = self.engine.optimizer, next(self.model.parameters()).device
        if self.whole is None:
            fragments = gradient_fragments(optimizer, self.model.parameters())
        else:
            fragments = whole_gradients(self.whole.weights, self.groups)
        return gradient_squares(fragments, self.part_of, len(self.parts), self.groups, device)

    def _step_whole(self, whole: Masters, norm: float) -> bool:
        """Stage 0's step on reduced gradients, or none where they are not finite; they are gone afterwards."""
        is_finite = math.isfinite(norm)
        if is_finite:
            clip_gradients(whole.weights, norm, self.plan.config.train.clip)
            whole.take_gradients()
            self.engine.step()
            whole.give_back()
        for weight in whole.weights:
            weight.grad = None
        return is_finite


def _optimizer(plan: Plan, named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """AdamW with experts in groups of their own (DeepSpeed wants them so); no decay on norms and biases."""
    train = plan.config.train
    groups: list[dict[str, Any]] = []
    for is_expert in (False, True):
        for is_matrix in (True, False):
            weights = [w for _, w in named if w.requires_grad and (w.ndim > 1) == is_matrix]
            weights = [w for w in weights if getattr(w, "allreduce", True) != is_expert]
            if weights:
                decay = train.weight_decay if is_matrix else 0.0
                mark = {"name": expert_group_name(plan.layout), "moe": True} if is_expert else {}
                groups.append({"params": weights, "weight_decay": decay, **mark})
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.epsilon, fused=True)


def _settings(plan: Plan) -> dict[str, Any]:
    """DeepSpeed's JSON: ours first, then the recipe's [deepspeed] table by dotted names."""
    engine = plan.config.engine
    zero: dict[str, Any] = {"stage": engine.zero_stage, "contiguous_gradients": True, "reduce_scatter": True}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": plan.config.train.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": plan.config.train.clip if engine.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
    }
    if engine.precision != "fp32":
        settings[engine.precision] = {"enabled": True}
        if engine.zero_stage:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    for name, value in plan.config.deepspeed.items():
        *path, last = name.split(".")
        table = settings
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return settings
