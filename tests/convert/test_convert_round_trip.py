"""Hugging Face -> ours -> Hugging Face gives every number back to the bit, whatever the family, the layout that files
are cut for, and the sizes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_most.checkpoint import read_record
from megatron_most.convert import ImportOptions, Layout, prepare_import
from megatron_most.errors import CheckpointError
from tests.convert.folders import FAMILIES, back, change_config, into_ours, make, read_all, require_same, rewrite, save
from tests.hf_models import deepseek, llama, qwen3_moe

LAYOUTS: dict[str, dict[str, int]] = {
    "one rank": {},
    "TP2": {"tensor": 2},
    "EP2": {"expert": 2},
    "PP2": {"pipeline": 2},
    "EP4xTP2": {"expert": 4, "tensor": 2},
    "TP2xEP2xPP2": {"tensor": 2, "expert": 2, "pipeline": 2},
}
FIELDS = ("hidden_size", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("os.fdatasync", lambda descriptor: None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_comes_back(tmp_path: Path, family: str, layout: str) -> None:
    sizes = {name: size for name, size in LAYOUTS[layout].items() if "llama" not in family or name != "expert"}
    hf = make(family, tmp_path / "hf")
    ours = into_ours(hf, tmp_path / "ours", **sizes)
    again = back(ours, tmp_path / "again", shard_size="150KB")
    require_same(read_all(again), read_all(hf))
    files = [name for name in read_record(ours).files if name.startswith("weights-")]
    assert len(files) == max(sizes.get("tensor", 1), sizes.get("expert", 1)) * sizes.get("pipeline", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_comes_back_and_means_the_same(tmp_path: Path, family: str) -> None:
    hf = make(family, tmp_path / "hf")
    again = back(into_ours(hf, tmp_path / "ours"), tmp_path / "again")
    first, second = (prepare_import(folder, tmp_path / "x", ImportOptions()).plan for folder in (hf, again))
    assert first == second


@st.composite
def models(draw: st.DrawFn) -> tuple[torch.nn.Module, dict[str, int], torch.dtype]:
    """A random small model, a layout that its sizes allow, and the type of its weights."""
    tensor, pipeline = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    heads = 2 * draw(st.integers(1, 3))
    shape: dict[str, Any] = dict(
        hidden_size=heads * draw(st.sampled_from([4, 10])), num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=2 * draw(st.integers(1, 20)), num_hidden_layers=2 * draw(st.integers(1, 2)),
    )  # fmt: skip
    layout = {"tensor": tensor, "pipeline": pipeline}
    kind = draw(st.sampled_from(["deepseek_v2", "llama", "qwen3_moe"]))
    if kind != "deepseek_v2":
        shape |= dict(num_key_value_heads=draw(st.sampled_from([2, heads])), head_dim=2 * draw(st.integers(1, 8)))
        if heads % shape["num_key_value_heads"]:
            shape["num_key_value_heads"] = heads
        shape |= dict(tie_word_embeddings=draw(st.booleans()))
    if kind == "llama":
        model = llama(**shape)
    else:
        expert = draw(st.sampled_from([1, 2]))
        layout |= {"expert": expert}
        experts = expert * draw(st.integers(2, 4))
        top_k = draw(st.integers(1, min(3, experts)))
        shape |= dict(num_experts_per_tok=top_k, moe_intermediate_size=2 * draw(st.integers(1, 9)))
        if kind == "qwen3_moe":
            dense = draw(st.sampled_from([[], [0]]))
            model = qwen3_moe(**shape, num_experts=experts, mlp_only_layers=dense, norm_topk_prob=top_k > 1)
        else:
            shape |= dict(qk_nope_head_dim=draw(st.integers(1, 9)), qk_rope_head_dim=2 * draw(st.integers(1, 4)))
            shape |= dict(v_head_dim=draw(st.integers(1, 9)), kv_lora_rank=draw(st.integers(1, 17)))
            shape |= dict(q_lora_rank=draw(st.sampled_from([None, 5])), n_shared_experts=draw(st.integers(1, 3)))
            model = deepseek(**shape, n_routed_experts=experts, first_k_dense_replace=draw(st.integers(0, 1)))
    return model, layout, draw(st.sampled_from([torch.float32, torch.bfloat16]))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(models())
def test_every_number_of_random_small_models_comes_back(
    model_layout_and_type: tuple[torch.nn.Module, dict[str, int], torch.dtype],
) -> None:
    model, layout, dtype = model_layout_and_type
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf = save(model.to(dtype), folder / "hf", "20KB")
        again = back(into_ours(hf, folder / "ours", **layout), folder / "again")
        require_same(read_all(again), read_all(hf))
        assert {tensor.dtype for tensor in read_all(hf).values()} == {dtype}


def test_numbers_are_rounded_only_where_that_is_asked_for(tmp_path: Path) -> None:
    hf = make("deepseek_v2", tmp_path / "hf")
    half = into_ours(hf, tmp_path / "half", dtype="bfloat16")
    again = read_all(back(half, tmp_path / "again"))
    require_same(again, {name: tensor.bfloat16() for name, tensor in read_all(hf).items()})
    stored = read_record(half).tensors["weight"]
    assert stored["decoder.layers.1.mlp.router.group_constant"].dtype == "float32"
    require_same(read_all(back(half, tmp_path / "wide", dtype="float32")), {n: t.float() for n, t in again.items()})


def test_a_tied_head_that_is_stored_all_the_same_has_to_be_the_embedding(tmp_path: Path) -> None:
    hf = make("llama", tmp_path / "hf")
    tensors = read_all(hf)
    head = tensors["model.embed_tokens.weight"].clone()
    rewrite(hf, {**tensors, "lm_head.weight": head})
    require_same(read_all(back(into_ours(hf, tmp_path / "ours"), tmp_path / "again")), tensors)
    head[71, 63] += 1
    rewrite(hf, {**tensors, "lm_head.weight": head})
    with pytest.raises(CheckpointError, match="lm_head.weight is not model.embed_tokens.weight, which config"):
        into_ours(hf, tmp_path / "other")


def test_a_vocabulary_grows_by_rows_near_the_mean_and_stays_grown(tmp_path: Path) -> None:
    from megatron_most.vocab import grow

    hf = make("llama untied", tmp_path / "hf")
    tokens = grow(backbone="own", base_vocab_size=72, bos=70, eos=71, pad=71, num_units=10, multiple=8)
    tokens.save(tmp_path / "map.json")
    first = into_ours(hf, tmp_path / "ours", token_map=tmp_path / "map.json")
    cut = into_ours(hf, tmp_path / "cut", token_map=tmp_path / "map.json", tensor=4)
    before, after = read_all(hf), read_all(back(first, tmp_path / "again"))
    require_same(read_all(back(cut, tmp_path / "again cut")), after)  # the new rows do not depend on the layout
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = after[name][:72], after[name][72:]
        assert len(new) == tokens.vocab_size - 72 == 16
        assert torch.equal(old, before[name])
        mean = old.mean(0)
        assert (new - mean).abs().max() < 0.02 * mean.abs().max() and len(new.unique(dim=0)) == len(new)
    others = before.keys() - {"model.embed_tokens.weight", "lm_head.weight"}
    require_same({name: after[name] for name in others}, {name: before[name] for name in others})
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert model.config.vocab_size == 88 and model(torch.tensor([[3, 80]])).logits.shape == (1, 2, 88)


def test_deepseek_v2_lite_has_its_published_tensors_and_size() -> None:
    import json

    from megatron_most.config import RunConfig, count_parameters, replace
    from megatron_most.convert.families import FAMILIES
    from megatron_most.convert.settings import Settings
    from megatron_most.convert.shares import plan_for
    from megatron_most.convert.tables import link
    from megatron_most.vocab import deepseek_token_map

    published = json.loads((Path(__file__).parent / "deepseek_v2_lite.json").read_text())
    family, tokens = FAMILIES["deepseek_v2"], deepseek_token_map()
    fields = Settings(published, "config.json")
    plan = plan_for(replace(RunConfig(), {**family.read(fields), "layout.expert": 8}), tokens)
    fields.finish()
    links = link(family.table, plan)
    parts = {name: shape for found in links for name, shape in found.parts}
    assert len(parts) == 5291
    assert sum(torch.Size(shape).numel() for shape in parts.values()) == 15_706_484_224
    assert count_parameters(plan).active == 2_661_150_208
    assert parts["model.layers.26.mlp.experts.63.down_proj.weight"] == (2048, 1408)
    written = family.write(plan)
    same = [name for name in written if name in published and name not in ("n_group", "topk_group", "rope_scaling")]
    assert len(same) > 20 and {name: written[name] for name in same} == {name: published[name] for name in same}


def test_a_layout_that_the_model_cannot_have_is_refused_by_field(tmp_path: Path) -> None:
    from megatron_most.errors import ConfigError

    hf = make("qwen3_moe", tmp_path / "hf")
    for layout, field in ((Layout(tensor=4), "layout.tensor"), (Layout(expert=3), "layout.expert")):
        with pytest.raises(ConfigError, match=f"{field} = .: does not divide"):
            prepare_import(hf, tmp_path / "out", ImportOptions(layout=layout))


def test_old_and_new_ways_to_write_rotary_positions_mean_the_same(tmp_path: Path) -> None:
    for family in ("deepseek_v2", "llama", "qwen3_moe"):
        hf = make(family, tmp_path / family)
        plan = prepare_import(hf, tmp_path / "out", ImportOptions()).plan
        import json

        rope = json.loads((hf / "config.json").read_text())["rope_parameters"]
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        old = {"type": kind, **rope} if rope else None
        change_config(hf, rope_parameters=None, rope_theta=theta, rope_scaling=old)
        assert prepare_import(hf, tmp_path / "out", ImportOptions()).plan == plan
        assert plan.config.model.rope_theta == theta != 1234
