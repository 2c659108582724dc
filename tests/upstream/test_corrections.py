"""Each piece of Core we mended is needed: without it the run fails, or its gradients differ from one process.

The body computes every gradient of one mixed step; `without` takes one correction away before the model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.data import synthetic_batch
from megatron_most.engine import make_plan, open_groups, run_micro_batches
from megatron_most.engine.gradients import reduce_gradients
from megatron_most.model import build_model, gpt, specs
from megatron_most.moe import ModalityRouter
from megatron_most.runtime import Ranks
from megatron_most.upstream import core_version, dispatchers, megatron_cpu, mla, norm
from tests.harness import RanksFailed, run_ranks
from tests.weights import load_parts, named_weights, part_of, whole_weights

TP_EP = {"layout.tensor": 2, "layout.expert": 2}
TWO_LAYERS = {"model.num_layers": 2}  # a dense one and one with experts
ROWS = ("mixed", "wave", "audio", "text")


def without_kv_down() -> None:
    """Core's ColumnParallelLinear and gather; the latent norms as ours."""

    def stock_down(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        super(mla.MendedMLA, self).__init__(config, *args, **kwargs)
        self.kv_layernorm = norm.LatentNorm(config, config.kv_lora_rank)

    mla.MendedMLA.__init__ = stock_down  # type: ignore[method-assign]


def without_the_cut() -> None:
    gpt.MostModel._cut_for_tensor_ranks = lambda self, x: x.chunk(2, dim=1)[0].contiguous()  # type: ignore[method-assign]


def without_the_mark() -> None:
    init = norm.RMSNorm.__init__

    def unmarked(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.weight.sequence_parallel = False

    norm.RMSNorm.__init__ = unmarked  # type: ignore[method-assign]


def without_sdpa() -> None:
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    specs.SdpaAttention = DotProductAttention  # type: ignore[misc]


def without_our_norm() -> None:
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    specs.RMSNorm = WrappedTorchNorm  # type: ignore[misc,assignment]


def without_our_dispatcher() -> None:
    dispatchers.install = lambda: None


def without_the_word_of_te() -> None:
    mla.core_mla.HAVE_TE = True


def without_gating() -> None:
    del ModalityRouter.gating


SILENT = {"kv_down": without_kv_down, "the cut of tags": without_the_cut, "the mark on norms": without_the_mark}
LOUD = {
    "sdpa": without_sdpa, "norm": without_our_norm, "dispatcher": without_our_dispatcher, "gating": without_gating,
    "te": without_the_word_of_te,
}  # fmt: skip
ALL = {**SILENT, **LOUD, "nothing": lambda: None}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("alone") / "gradients.pt"
    run_ranks(gradients, 1, "nothing", file)
    return file


def test_with_all_of_them_every_gradient_is_that_of_one_process(alone: Path) -> None:
    assert max(run_ranks(gradients, 2, "nothing", alone)) < 1e-5  # fp32, sums in another order


@pytest.mark.parametrize("name", SILENT)
def test_without_it_gradients_differ_without_a_word(name: str, alone: Path) -> None:
    assert max(run_ranks(gradients, 2, name, alone)) > 1e-2


@pytest.mark.parametrize("name", LOUD)
def test_without_it_the_run_fails(name: str, alone: Path) -> None:
    if name in ("gating", "te") and core_version() >= (0, 19):
        assert max(run_ranks(gradients, 2, name, alone)) < 1e-5  # mended upstream since
        return
    with pytest.raises(RanksFailed):
        run_ranks(gradients, 2, name, alone)


STAND_INS: dict[str, tuple[int, dict[str, Any]]] = {  # where each shows that it is needed
    "current_device": (2, TP_EP),
    "current_stream": (2, TP_EP),
    "Stream": (2, TP_EP),
    "synchronize": (2, {"layout.pipeline": 2}),
    "manual_seed": (2, TP_EP),
    "get_rng_state": (2, TP_EP),
    "_get_cuda_rng_state": (2, {**TP_EP, "recompute.granularity": "full"}),
    "_set_cuda_rng_state": (2, TP_EP),
    "schedules": (1, {}),
    "rope_utils": (2, {"layout.context": 2}),
    "cuda": (2, {"layout.context": 2}),
}


def test_every_stand_in_is_listed() -> None:
    assert {megatron_cpu.label(where, name) for where, name, _ in megatron_cpu._stand_ins()} == set(STAND_INS)


@pytest.mark.parametrize("name", STAND_INS)
def test_without_this_stand_in_core_does_not_run_on_a_cpu(name: str) -> None:
    with pytest.raises(RanksFailed):
        run_ranks(start_weights, STAND_INS[name][0], name, STAND_INS[name][1])


@pytest.mark.parametrize(
    "changes", [TP_EP, {"layout.pipeline": 2}, {"layout.context": 2}, {**TP_EP, "recompute.granularity": "full"}]
)
def test_with_all_stand_ins_it_does(changes: dict[str, Any]) -> None:
    run_ranks(start_weights, 2, "", changes)


def gradients(ranks: Ranks, without: str, file: Path) -> float:
    """One process writes all gradients to `file`; other layouts return the worst relative difference from them."""
    ALL[without]()
    many = ranks.world_size > 1
    changes = {**TWO_LAYERS, **(TP_EP if many else {})}
    plan = make_plan(replace(load_recipe("most-tiny"), changes), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        groups = session.groups
        model = build_model(plan, groups)
        if many:
            saved = torch.load(file, weights_only=True)
        else:
            saved = {"weights": whole_weights(model, plan, groups)}
            for name, weight in saved["weights"].items():
                weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
        load_parts(model, saved["weights"], plan, groups)
        rows = [synthetic_batch(plan.tokens, [kind], 32, 0, i) for i, kind in enumerate(ROWS)]  # type: ignore[list-item]
        run_micro_batches(model, rows[groups.data.rank() :: groups.data.size()], groups)
        reduce_gradients(list(model.parameters()), groups)
        found = {name: weight.grad for name, weight in named_weights(model, plan, groups)}
        if not many:
            torch.save({**saved, "gradients": found}, file)
            return 0.0
        worst = 0.0
        for name, gradient in found.items():
            whole = saved["gradients"][name]
            wanted = part_of(name, whole, gradient, groups)
            worst = max(worst, float((gradient - wanted).abs().max() / whole.abs().max()))
        return worst


def start_weights(ranks: Ranks, leave_out: str, changes: dict[str, Any]) -> None:
    """One step, and the two silent faults: replicated weights must start equal, experts of different ranks
    different.
    """
    megatron_cpu.install(leave_out)
    plan = make_plan(replace(load_recipe("most-tiny"), {**TWO_LAYERS, **changes}), ranks.world_size, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups)
        if plan.layout.expert > 1:
            import torch.distributed as dist

            for key, equal in (("router.weight", True), ("local_experts.0.linear_fc1", False)):
                weight = next(weight for name, weight in model.named_parameters() if key in name).detach()
                other = weight.clone()
                dist.broadcast(other, 0)
                same = torch.tensor(float(torch.equal(weight, other)))
                dist.all_reduce(same, dist.ReduceOp.MIN)
                assert bool(same) == equal, f"{key}: equal on all ranks is {bool(same)}"
        rows = [synthetic_batch(plan.tokens, ["mixed"], 32, 0, 0)]
        run_micro_batches(model, rows, session.groups)
