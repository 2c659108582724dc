"""Folders of MostForCausalLM: names on disk, a round trip bit for bit, code that stands alone, code that is not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM

from megatron_most.convert.most_hf import AUTO_MAP, CODE_FILES, MostConfig, MostForCausalLM, copy_code, register
from tests.convert.most_twins import spread, twin

IDS_BS = torch.tensor([[38, 1, 2, 3, 62, 40, 43, 46, 63, 64, 65, 5], [38, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 39]])
CONSTANTS = [f"model.layers.{layer}.mlp.gate.group_constant" for layer in (1, 2, 3)]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register()
    register()  # twice does no harm


@pytest.fixture(scope="module")
def model() -> MostForCausalLM:
    return twin(changes={"moe.bias_rate": 0.1})


@pytest.fixture(scope="module")
def folder(model: MostForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("exported")
    model.save_pretrained(where)
    return where


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS_BS).logits


def names_on_disk(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: (file.get_tensor(name).dtype, tuple(file.get_slice(name).get_shape())) for name in file.keys()}


def test_a_round_trip_through_auto_classes_is_bit_identical(model: MostForCausalLM, folder: Path) -> None:
    again, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(again) is MostForCausalLM and type(AutoConfig.from_pretrained(folder)) is MostConfig
    assert not any(info.values())
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(again), logits(model))
    settings = [{**each.config.to_dict(), "auto_map": None, "_name_or_path": None} for each in (again, model)]
    assert settings[0] == settings[1]
    hidden_BSD = AutoModel.from_pretrained(folder)(IDS_BS).last_hidden_state
    assert torch.equal(model.lm_head(hidden_BSD), model(IDS_BS).logits)


def test_names_on_disk_are_those_of_deepseek_with_a_constant_and_a_bias_per_gate(folder: Path, tmp_path: Path) -> None:
    deepseek(8).save_pretrained(tmp_path)
    theirs, ours = names_on_disk(tmp_path), names_on_disk(folder)
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in theirs
    extra = {name: (torch.float32, (2,)) for name in CONSTANTS}
    extra |= {name.replace("group_constant", "expert_bias"): (torch.float32, (8,)) for name in CONSTANTS}
    assert ours == {**theirs, **extra}


def test_half_precision_folders_hold_gates_constants_in_fp32(model: MostForCausalLM, tmp_path: Path) -> None:
    half = twin(changes={"moe.bias_rate": 0.1}).bfloat16()
    half.save_pretrained(tmp_path)
    assert {dtype for name, (dtype, _) in names_on_disk(tmp_path).items() if ".mlp.gate." not in name} == {
        torch.bfloat16
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert again.lm_head.weight.dtype == dtype
        for name, buffer in again.named_buffers():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, model.get_buffer(name)), name


def test_weights_of_an_ungrouped_model_lack_the_constants_and_the_loader_says_so(tmp_path: Path) -> None:
    twin(changes={"moe.gate": "reference"}).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "gate": "masked_softmax"}))
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(CONSTANTS)


def test_tied_embeddings_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    model = twin("most-tiny-upcycled")
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in names_on_disk(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(logits(again), logits(model))


def test_the_code_in_a_folder_runs_without_this_package(model: MostForCausalLM, tmp_path: Path) -> None:
    folder = tmp_path / "a-model"
    model.save_pretrained(folder)
    for name in CODE_FILES:
        (folder / name).unlink()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": AUTO_MAP}))
    copy_code(folder)
    torch.save({"ids": IDS_BS, "logits": logits(model)}, folder / "wanted.pt")
    program = """
import sys, torch
sys.modules["megatron_most"] = sys.modules["megatron"] = None  # an import would raise
from transformers import AutoModelForCausalLM, AutoModel
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
wanted = torch.load(sys.argv[1] + "/wanted.pt", weights_only=True)
torch.testing.assert_close(model(wanted["ids"]).logits, wanted["logits"], atol=1e-6, rtol=1e-6)
assert model.generate(wanted["ids"][:1], max_new_tokens=3).shape == (1, 15)
assert type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "MostModel"
print("the same")
"""
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.endswith("the same\n"), done.stderr


def test_our_tools_never_run_the_code_in_a_folder(folder: Path, model: MostForCausalLM, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in CODE_FILES:
        (tmp_path / name).write_text("raise SystemExit('code of a model folder was run')")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_saving_writes_the_code_that_made_the_model(folder: Path) -> None:
    import megatron_most.convert.most_hf as package

    assert {path.name for path in folder.glob("*.py")} == set(CODE_FILES)
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (Path(str(package.__file__)).parent / name).read_bytes()
    written = json.loads((folder / "config.json").read_text())["auto_map"]
    assert written.items() <= AUTO_MAP.items() and "AutoModelForCausalLM" in written


def deepseek(num_experts: int) -> DeepseekV2ForCausalLM:
    """transformers' own model in the shapes of most-tiny."""
    rope = dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=64)
    rope |= dict(beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)
    config = DeepseekV2Config(
        vocab_size=72, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=4, n_routed_experts=num_experts, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, kv_lora_rank=24, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, max_position_embeddings=2560, rms_norm_eps=1e-6, rope_parameters=rope, topk_method="greedy",
        routed_scaling_factor=1.5,
    )  # fmt: skip
    return spread(DeepseekV2ForCausalLM(config))


def test_on_text_it_is_a_plain_deepseek_of_its_text_experts() -> None:
    text = [0, 2, 3, 5, 6]
    groups = {"moe.groups": ["text: 0,2,3,5,6", "audio: 1,4,7"], "moe.scale": 1.5}
    ours = twin(changes=groups)
    weights = {name: weight for name, weight in ours.state_dict().items() if ".experts." not in name}
    for layer in (1, 2, 3):
        at = f"model.layers.{layer}.mlp"
        constant = weights.pop(f"{at}.gate.group_constant")[0]
        weights[f"{at}.gate.weight"] = weights[f"{at}.gate.weight"][text]
        experts = [ours.model.layers[layer].mlp.experts[expert] for expert in text]
        gate_up = [torch.cat([expert.gate_proj.weight, expert.up_proj.weight]) for expert in experts]
        weights[f"{at}.experts.gate_up_proj"] = torch.stack(gate_up)
        weights[f"{at}.experts.down_proj"] = torch.stack([expert.down_proj.weight * constant for expert in experts])
    plain = deepseek(len(text))
    plain.load_state_dict(weights)
    ids_BS = IDS_BS[1:]
    torch.testing.assert_close(logits_of(plain, ids_BS), logits_of(ours, ids_BS), atol=1e-4, rtol=1e-4)
    for layer in ours.model.layers[1:]:
        layer.mlp.gate.group_constant[0] += 0.1  # the constant counts
    assert (logits_of(plain, ids_BS) - logits_of(ours, ids_BS)).abs().max() > 1e-2


@torch.no_grad()
def logits_of(model: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    return model(ids_BS).logits
