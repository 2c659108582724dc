"""Training starts from an imported model: its first weights are the model's, expert by expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_most.checkpoint import TensorReader, read_record
from megatron_most.convert import Upcycling, open_ours
from megatron_most.convert.hashes import hash_tensor
from megatron_most.vocab import TokenMap
from tests.convert.folders import back, into_ours, save
from tests.hf_models import deepseek, llama
from tests.phases import losses, recipe, refusal, run


@pytest.fixture(scope="module")
def imported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokens = tmp_path_factory.mktemp("imported"), data / "tokenizer" / "token_map.json"
    model = deepseek(vocab_size=TokenMap.load(tokens).vocab_size, num_hidden_layers=2)
    hf = save(model, folder / "hf")
    return into_ours(hf, folder / "ours", token_map=tokens, groups=("text: 0-3", "audio: 4-7"), expert=2)


def test_a_run_starts_from_it_and_is_exported_again(data: Path, imported: Path, tmp_path: Path) -> None:
    """With a rate of 0, what is saved after a step on two expert ranks is what was loaded."""
    changes = {"checkpoint.start_from": str(imported), "train.steps": 1, "train.learning_rate": 0.0}
    run(recipe(data, tmp_path / "run", **changes, **{"layout.expert": 2, "train.validate_every": 0}), 2)
    trained = open_ours(tmp_path / "run")
    assert trained.record.step == 1 and "exp_avg" in trained.record.tensors
    before = TensorReader(imported, read_record(imported))
    for name in trained.weights:
        assert hash_tensor(trained.reader, "weight", name) == hash_tensor(before, "weight", name), name
    from transformers import AutoModelForCausalLM

    again = back(tmp_path / "run", tmp_path / "again", text_only=True, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(again)
    assert model.config.n_routed_experts == 4 and model.dtype == torch.bfloat16
    assert "asr 0.4, tts 0.4, text-lm 0.2" in (again / "README.md").read_text()


def test_a_recipe_of_another_model_is_refused(data: Path, imported: Path, tmp_path: Path) -> None:
    changes = {"checkpoint.start_from": str(imported), "moe.groups": ["text+audio: 0-7"]}
    said = refusal(recipe(data, tmp_path, **changes))
    assert said.startswith("moe.groups = ('text+audio: 0-7',): the weights of ") and str(imported) in said
    said = refusal(recipe(data, tmp_path, **changes, **{"checkpoint.allow_changes": ["moe.groups"]}))
    assert "group_constant has shape [2], the model wants [1]" in said


def test_an_upcycled_model_trains_under_its_recipe_and_begins_with_the_dense_models_loss(
    data: Path, tmp_path: Path
) -> None:
    tokens = data / "tokenizer" / "token_map.json"
    model = llama(vocab_size=TokenMap.load(tokens).vocab_size, num_hidden_layers=2)
    hf, first = save(model, tmp_path / "hf"), {}
    for name, upcycle in (("dense", Upcycling()), ("upcycled", Upcycling(group_sizes=("text=4", "audio=4")))):
        into_ours(hf, tmp_path / name, token_map=tokens, upcycle=upcycle)
        changes = {"checkpoint.start_from": str(tmp_path / name), "train.steps": 1, "train.validate_every": 0}
        run(recipe(data, tmp_path / f"run {name}", f"most-tiny-{name}", **changes))
        first[name] = losses(tmp_path / f"run {name}")[0]
    assert first["upcycled"] == pytest.approx(first["dense"], rel=1e-5)  # fp32, sums in another order
    at = "decoder.layers.1.mlp"
    before, after = (open_ours(tmp_path / name) for name in ("upcycled", "run upcycled"))
    names = [
        *(f"{at}.experts.{expert}.linear_fc1.weight" for expert in (0, 1, 4, 7)),
        f"{at}.shared_experts.linear_fc2.weight",
    ]
    moved = [after.read("weight", name) for name in names]
    assert all((new != before.read("weight", name)).any() for name, new in zip(names, moved, strict=True))
    assert not torch.equal(moved[0], moved[1])  # copies part by the tokens that they see
