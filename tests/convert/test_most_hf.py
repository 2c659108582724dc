"""MostForCausalLM computes what our Core model computes: logits and gradients, under both gates and any grouping.

One process, fp32, the same weights on both sides. Logits within 1e-4 absolute and relative: sums in another order.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from megatron_most.config import load_recipe, replace
from megatron_most.convert.most_hf import MostForCausalLM
from megatron_most.data import PackedBatch, pack_rows, synthetic_batch, synthetic_document
from megatron_most.engine import make_plan, open_groups
from megatron_most.model import build_model
from megatron_most.moe import routers
from megatron_most.runtime import Ranks
from megatron_most.vocab import AUDIO, WAVE
from tests.convert.most_twins import apart, core_weights, plan_of, spread, twin, twin_config
from tests.harness import run_ranks
from tests.weights import load_parts, named_weights

REFERENCE = {"moe.gate": "reference"}
UNEVEN = {"moe.groups": ["text: 0,2,4,5,6", "audio: 1,3,7"]}
THREE = {"moe.groups": ["text: 0,3,6", "audio: 1,4,7", "wave: 2,5"], "moe.shared_only_tags": []}
LIMITED = {"moe.routing_groups": 4, "moe.routing_groups_kept": 2}
SCARCE = {"moe.routing_groups": 8, "moe.routing_groups_kept": 1}  # one candidate, top_k 2: a slot stays empty
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "masked_softmax": ("most-tiny", {}),
    "reference": ("most-tiny", REFERENCE),
    "uneven groups": ("most-tiny", UNEVEN),
    "uneven groups, reference": ("most-tiny", {**UNEVEN, **REFERENCE}),
    "three groups, wave owns one": ("most-tiny", THREE),
    "group-limited": ("most-tiny", LIMITED),
    "group-limited, reference": ("most-tiny", {**LIMITED, **UNEVEN, **REFERENCE}),
    "fewer candidates than slots": ("most-tiny", {**SCARCE, **REFERENCE}),
    "normalised and scaled": ("most-tiny", {"moe.normalise_top_k": True, "moe.scale": 2.5}),
    "normalised, reference drops the scale": (
        "most-tiny", {"moe.normalise_top_k": True, "moe.scale": 2.5, **REFERENCE},
    ),
    "top-1, reference never normalises": (
        "most-tiny", {"moe.top_k": 1, "moe.normalise_top_k": True, "moe.scale": 2.5, **REFERENCE},
    ),
    "bias on the choice": ("most-tiny", {"moe.bias_rate": 0.1}),
    "bias, reference": ("most-tiny", {"moe.bias_rate": 0.1, **REFERENCE}),
    "compressed queries, wide norm_eps": ("most-tiny", {"model.q_lora_rank": 24, "model.norm_eps": 1e-3}),
    "plain rope": ("most-tiny", {"model.rope": "plain"}),
    "yarn that scales its tables": ("most-tiny", {"model.rope_mscale": 1.0, "model.rope_mscale_all_dim": 0.5}),
    "yarn without mscale_all_dim": ("most-tiny", {"model.rope_mscale_all_dim": 0.0}),
    "no shared experts": ("no-shared-tiny", {}),
    "no modalities": ("vanilla-moe-tiny", {}),
    "grouped queries (Llama)": ("most-tiny-upcycled", {}),
    "dense layers here and there": ("most-tiny", {"model.num_layers": 4, "moe.dense_layers": [1, 3]}),
}  # fmt: skip
VARIANTS = {name: (recipe, {"model.num_layers": 2, **changes}) for name, (recipe, changes) in VARIANTS.items()}


def batch_of(recipe: str, changes: dict[str, Any]) -> PackedBatch:
    return synthetic_batch(plan_of(recipe, changes).tokens, ["mixed", "text", "audio", "wave"], 32, seed=3, first=0)


def run_core(
    ranks: Ranks, recipe: str, changes: dict[str, Any], hf: Any, batch: PackedBatch, back_BSV: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the Core model with the weights of `hf`; with `back_BSV`, each weight's gradient of (logits * back)."""
    plan = make_plan(replace(load_recipe(recipe), {"moe.aux_loss": "none", **changes}), 1, ranks.device)
    with open_groups(plan, ranks) as session:
        model = build_model(plan, session.groups).eval()
        load_parts(model, core_weights(hf), plan, session.groups)
        gates = [layer.mlp.gate for layer in hf.model.layers if not layer.is_dense]
        with torch.no_grad():
            for router, gate in zip(routers(model), gates, strict=True):
                assert dict(gate.named_buffers()).keys() == {
                    name for name in ("group_constant", "expert_bias") if getattr(router, name) is not None
                }
                for name, buffer in gate.named_buffers():
                    getattr(router, name).copy_(buffer)
        with torch.set_grad_enabled(back_BSV is not None):
            logits_BSV = model(batch, with_labels=False)
        if back_BSV is None:
            return logits_BSV, {}
        (logits_BSV * back_BSV).sum().backward()
        weights = named_weights(model, plan, session.groups)
        return logits_BSV.detach(), {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in weights}


def core_logits(recipe: str, changes: dict[str, Any], hf: Any, batch: PackedBatch) -> torch.Tensor:
    return run_ranks(run_core, 1, recipe, changes, hf, batch, None)[0][0]


def assert_close(ours: torch.Tensor, core: torch.Tensor) -> None:
    torch.testing.assert_close(ours, core, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_core_model(name: str) -> None:
    recipe, changes = VARIANTS[name]
    hf, batch = twin(recipe, changes), batch_of(recipe, changes)
    core = core_logits(recipe, changes, hf, batch)
    with torch.no_grad():
        assert_close(hf(batch.tokens_BS).logits, core)


def test_the_comparison_notices_another_gate_and_another_group() -> None:
    hf, batch = twin(), batch_of("most-tiny", {})
    core = core_logits("most-tiny", {}, hf, batch)
    for wrong in (REFERENCE, UNEVEN):
        other = spread(MostForCausalLM(twin_config(plan_of("most-tiny", wrong))))
        other.load_state_dict(hf.state_dict(), strict=False)
        with torch.no_grad(), pytest.raises(AssertionError):
            assert_close(other(batch.tokens_BS).logits, core)


@pytest.mark.parametrize("gate", ["masked_softmax", "reference"])
def test_explicit_tags_win_over_ids_as_in_the_core_model(gate: str) -> None:
    changes = {"moe.gate": gate}
    hf, batch = twin(changes=changes), batch_of("most-tiny", changes)
    draw = torch.Generator().manual_seed(1)
    tags_BS = torch.randint(0, 3, batch.tokens_BS.shape, generator=draw)
    core = core_logits("most-tiny", changes, hf, dataclasses.replace(batch, tags_BS=tags_BS))
    with torch.no_grad():
        assert_close(hf(batch.tokens_BS, modality_tags=tags_BS).logits, core)
        embeds_BSD = hf.get_input_embeddings()(batch.tokens_BS)
        assert_close(hf(inputs_embeds=embeds_BSD, modality_tags=tags_BS).logits, core)
        assert (hf(batch.tokens_BS).logits - core).abs().max() > 0.1


@pytest.mark.parametrize("gate", ["masked_softmax", "reference"])
def test_tokens_without_a_group_use_the_shared_experts_alone(gate: str) -> None:
    changes = {"moe.gate": gate}
    hf, batch = twin(changes=changes), batch_of("most-tiny", changes)
    tags_BS = torch.full_like(batch.tokens_BS, WAVE)
    core = core_logits("most-tiny", changes, hf, dataclasses.replace(batch, tags_BS=tags_BS))
    for layer in hf.model.layers[1:]:
        for weight in layer.mlp.experts.parameters():
            weight.data.fill_(float("nan"))  # whatever touches a routed expert is lost
    logits, grads = apart(logits_and_gradients, hf, batch.tokens_BS, {"modality_tags": tags_BS})
    assert_close(logits, core)
    assert len(grads) > 20 and all(grad.isfinite().all() for grad in grads.values())


def test_documents_packed_by_their_positions_do_not_see_each_other() -> None:
    tokens = plan_of().tokens
    rows = [[synthetic_document(tokens, kind, 17, 5, i) for i, kind in enumerate(("mixed", "audio"))]]
    batch = pack_rows(rows, 32, tokens)
    hf = twin()
    core = core_logits("most-tiny", {}, hf, batch)
    with torch.no_grad():
        assert_close(hf(batch.tokens_BS, position_ids=batch.positions_BS).logits, core)
        assert (hf(batch.tokens_BS).logits - core).abs().max() > 0.1


def test_text_touches_no_audio_expert() -> None:
    hf, batch = twin(), batch_of("most-tiny", {})
    text_BS = batch.tokens_BS[1:2]
    before = hf(text_BS).logits.detach()
    for layer in hf.model.layers[1:]:
        for weight in layer.mlp.experts[4:].parameters():
            weight.data.fill_(float("nan"))
    assert torch.equal(hf(text_BS).logits, before)
    assert not hf(batch.tokens_BS[2:3]).logits.isfinite().all()


def test_continuous_features_go_where_the_core_model_puts_them() -> None:
    changes = {"model.wave_size": 10}
    hf, batch = twin(changes=changes), batch_of("most-tiny", changes)
    draw = torch.Generator().manual_seed(2)
    is_wave_BS = torch.zeros_like(batch.is_pad_BS)
    is_wave_BS[1:3, 5:17] = True
    wave_BSF = torch.randn(*is_wave_BS.shape, 10, generator=draw)
    wave_BSF[~is_wave_BS] = float("nan")
    core = core_logits(
        "most-tiny", changes, hf,
        dataclasses.replace(
            batch, tags_BS=batch.tags_BS.masked_fill(is_wave_BS, AUDIO), wave_BSF=wave_BSF, is_wave_BS=is_wave_BS
        ),
    )  # fmt: skip
    wave = {"audio_wave_features": wave_BSF, "audio_wave_mask": is_wave_BS}
    logits, grads = apart(logits_and_gradients, hf, batch.tokens_BS, wave)
    assert_close(logits, core)
    assert grads["model.audio_wave_processor.proj.weight"].abs().max() > 0  # the release never trains it


def logits_and_gradients(hf: Any, tokens_BS: torch.Tensor, inputs: dict[str, Any]) -> Any:
    logits = hf(tokens_BS, **inputs).logits
    logits.sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in hf.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("most-tiny", {}), ("most-tiny", {**REFERENCE, **UNEVEN}), ("most-tiny-upcycled", {})],
    ids=["masked_softmax", "reference", "grouped queries"],
)
def test_every_gradient_is_that_of_the_core_model(recipe: str, changes: dict[str, Any]) -> None:
    hf, batch = twin(recipe, changes), batch_of(recipe, changes)
    back_BSV = torch.randn(*batch.tokens_BS.shape, hf.vocab_size, generator=torch.Generator().manual_seed(4))
    (_, core), ours = run_ranks(both_gradients, 1, recipe, changes, hf, batch, back_BSV)[0]
    assert core.keys() <= ours.keys() and len(core) > 60
    for name, grad in core.items():
        scale = grad.abs().max().clamp(min=1e-30)
        assert ((ours[name] - grad).abs().max() / scale) <= 1e-4, name  # fp32, sums in another order


def both_gradients(ranks: Ranks, recipe: str, changes: dict[str, Any], hf: Any, batch: Any, back_BSV: Any) -> Any:
    """In the forked rank: a backward pass in the parent would leave threads behind."""
    core = run_core(ranks, recipe, changes, hf, batch, back_BSV)
    hf.train()
    (hf(batch.tokens_BS).logits * back_BSV).sum().backward()
    of_weights = copy.deepcopy(hf)  # a model whose weights are gradients: the bridge then renames gradients
    with torch.no_grad():
        for weight, source in zip(of_weights.parameters(), hf.parameters(), strict=True):
            weight.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    return core, core_weights(of_weights)
