"""An import that shares the experts out: renumbered layer by layer, the same model without modalities, and told of."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import TensorWriter, read_record, verify_files
from megatron_most.convert import ImportOptions, inspect, open_ours, prepare_import, run_import
from megatron_most.convert.families import FAMILIES
from megatron_most.convert.hf_folder import HfFolder
from megatron_most.convert.hf_layers import HfModel
from megatron_most.convert.layerwise import LayerOutput, run_layers
from megatron_most.convert.look import verify
from megatron_most.convert.options import PartitionOptions
from megatron_most.convert.partition import ours_by_theirs
from megatron_most.convert.partitioned import FILE, PAGE, experts_in
from megatron_most.convert.prompts import random_prompts
from megatron_most.convert.readers import as_base, read_files
from megatron_most.convert.tables import link
from megatron_most.errors import MostError
from megatron_most.vocab import tiny_token_map
from tests.checkpoint.small import in_child
from tests.convert.folders import back, change_config, into_ours, make, read_all, require_same, rewrite
from tests.convert.most_twins import apart, plan_of
from tests.convert.whole_logits import logits, theirs
from tests.pages import Seen, require_nothing_loaded

WORDS = [f"w{number}" for number in range(38)]


def write_texts(folder: Path) -> tuple[Path, Path, Path]:
    """A tokenizer of the tiny map's 38 words, lines of text, and lines of units."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "<s>", "</s>"])}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    draw = torch.Generator().manual_seed(1)
    words = [" ".join(WORDS[n] for n in torch.randint(38, (40,), generator=draw)) for _ in range(30)]
    units = ["".join(f"[Hu{n}]" for n in torch.randint(22, (40,), generator=draw)) for _ in range(30)]
    for name, lines in (("text", words), ("units", units)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder / "tokenizer.json", folder / "text.txt", folder / "units.txt"


def partitioned(folder: Path, out: Path, strategy: Any, **options: Any) -> Path:
    """With tokenizer and prompts of write_texts in the model's folder; in a process of its own, for Core's groups, once
    they were there, do not survive a fork.
    """
    _, text, units = write_texts(folder)
    audio = {"audio": units} if strategy == "affinity" else {}
    of = PartitionOptions(strategy=strategy, **{k: options.pop(k) for k in ("sizes", "page") if k in options})
    options = {"partition": of, "text": text, "constant": "measured", **audio, **options}
    return apart(functools.partial(into_ours, folder, out, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model by every strategy, with its folder."""
    folder = tmp_path_factory.mktemp("partitions")
    hf = make("deepseek_v2", folder / "hf")
    sizes = {"affinity": ("text=5", "audio+wave=3")}
    strategies = ("index", "alternate", "load", "affinity")
    return {"hf": hf} | {
        name: partitioned(hf, folder / name, name, **({"sizes": sizes[name]} if name in sizes else {}))
        for name in strategies
    }


def found_in(folder: Path) -> Any:
    return json.loads((folder / FILE).read_text())


@pytest.mark.parametrize("strategy", ["index", "alternate", "load", "affinity"])
def test_without_modalities_it_is_the_model_it_was(made: dict[str, Path], tmp_path: Path, strategy: str) -> None:
    drop = {"family": "deepseek_v2", "drop_routing": True}
    again = back(made[strategy], tmp_path / "again", **drop)
    torch.testing.assert_close(theirs(again), theirs(made["hf"]), atol=1e-4, rtol=1e-4)
    if strategy != "index":
        with pytest.raises(AssertionError):
            require_same(read_all(again), read_all(made["hf"]))  # its experts have other numbers
    before, after = read_all(made["hf"]), read_all(again)
    for layer in found_in(made[strategy])["layers"]:
        order = [expert for group in layer["groups"] for expert in group["experts"]]
        at = f"model.layers.{layer['layer']}.mlp."
        assert torch.equal(after[f"{at}gate.weight"], before[f"{at}gate.weight"][order])
        for ours, expert in enumerate(order):
            for part in ("gate", "up", "down"):
                name = f".{part}_proj.weight"
                assert torch.equal(after[f"{at}experts.{ours}{name}"], before[f"{at}experts.{expert}{name}"])


def test_with_modalities_the_exported_model_equals_ours(made: dict[str, Path], tmp_path: Path) -> None:
    found = logits(made["affinity"])
    again = back(made["affinity"], tmp_path / "again")
    config = json.loads((again / "config.json").read_text())
    assert [group["experts"] for group in config["expert_groups"]] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    torch.testing.assert_close(theirs(again), found, atol=1e-4, rtol=1e-4)
    assert (found - theirs(made["hf"])).abs().max() > 0.1


def test_by_index_the_files_are_those_of_groups(tmp_path: Path) -> None:
    hf = make("deepseek_v2", tmp_path / "hf")  # no tokenizer: nothing is measured
    by_index = into_ours(hf, tmp_path / "by" / "index", partition=PartitionOptions(strategy="index"))
    plain = into_ours(hf, tmp_path / "index", groups=("text: 0-3", "audio: 4-7"))
    for name in ("weights-00000.safetensors", "resolved.toml", "token_map.json"):
        found = (by_index / name).read_bytes().replace(str(by_index).encode(), str(plain).encode())
        assert found == (plain / name).read_bytes()
    assert {path.name for path in by_index.iterdir()} - {path.name for path in plain.iterdir()} == {FILE, PAGE}
    assert "partition" not in json.loads((plain / "source.json").read_text())


@pytest.mark.parametrize("strategy", ["index", "affinity"])
def test_constants_are_the_mass_of_the_experts_that_a_group_has(made: dict[str, Path], strategy: str) -> None:
    found, ours = found_in(made[strategy]), open_ours(made[strategy])
    for layer in found["layers"]:
        kinds = ("text", "audio") if strategy == "affinity" else ("text", "text")
        wanted = [
            sum(layer["use"]["mass"][kind][expert] for expert in group["experts"])
            for kind, group in zip(kinds, layer["groups"], strict=True)
        ]
        stored = ours.read("weight", f"decoder.layers.{layer['layer']}.mlp.router.group_constant").tolist()
        assert stored == pytest.approx(wanted, abs=1e-5)
        assert [group["constant"] for group in layer["groups"]] == pytest.approx(wanted, abs=1e-5)
        told = ours.source["constants"]["layers"][str(layer["layer"])]
        assert told == [group["constant"] for group in layer["groups"]]
    assert strategy == "index" or len({group["constant"] for group in found["layers"][0]["groups"]}) == 2


def test_a_stored_bias_on_the_choice_moves_with_its_experts() -> None:
    plan = plan_of("vanilla-moe-tiny", {"moe.bias_rate": 1e-3})
    order = (5, 0, 7, 2, 1, 3, 6, 4)
    links = link(FAMILIES["most"].table, plan, experts={2: ours_by_theirs(order)})
    rows = {
        found.name: [run.part_row + n for run in found.runs for n in range(run.rows)]
        for found in links if ".router." in found.name
    }  # fmt: skip
    for name in ("weight", "expert_bias"):
        assert rows[f"decoder.layers.2.mlp.router.{name}"] == list(order)
        assert rows[f"decoder.layers.1.mlp.router.{name}"] == list(range(8))


def compare_choices(hf: Path, ours: Path) -> list[float]:
    """Of each layer with experts: how often transformers' model and ours choose the same, by the numbers of ours."""
    opened = open_ours(ours)
    plan, read = as_base(opened.plan(), read_files(opened.reader))
    prompts = random_prompts(plan.tokens, ["text"] * 4, length=16)
    chosen = [found.chosen_BSE for found in run_layers(plan, read, prompts) if found.chosen_BSE is not None]
    theirs, same = HfModel(HfFolder(hf), plan.tokens, our_ids=experts_in(ours)), []

    def look(found: LayerOutput) -> None:
        if found.chosen_BSE is not None:
            moved = torch.zeros_like(found.chosen_BSE)
            moved[..., list(theirs.our_ids[found.layer])] = found.chosen_BSE
            same.append(float((moved == chosen[len(same)]).double().mean()))

    theirs.run(prompts, look)
    return same


def test_the_logits_gate_finds_the_choices_of_experts_under_their_new_numbers(made: dict[str, Path]) -> None:
    assert apart(compare_choices, made["hf"], made["affinity"]) == pytest.approx([1.0] * 3, abs=0.01)


def test_load_is_shared_out_and_affinity_keeps_most_mass(made: dict[str, Path]) -> None:
    for layer in found_in(made["load"])["layers"]:
        load = layer["use"]["load"]["text"]
        first = sum(load[expert] for expert in layer["groups"][0]["experts"])
        assert abs(first - 0.5) <= (max(load) - min(load)) / 2 + 1e-5
    for layer in found_in(made["affinity"])["layers"]:
        assert sum(group["mass"] for group in layer["groups"]) >= sum(g["mass_by_index"] for g in layer["groups"])
    moved = found_in(made["affinity"])["layers"]
    assert len({tuple(layer["groups"][0]["experts"]) for layer in moved}) > 1  # each layer has its own


def test_it_is_told_in_the_folder_and_on_a_page(made: dict[str, Path]) -> None:
    ours = made["affinity"]
    record = read_record(ours)
    assert {FILE, PAGE} < record.files.keys()
    verify_files(ours, record)
    said = inspect(ours, ImportOptions())
    found, source = found_in(ours), open_ours(ours).source["partition"]
    assert "partition    by affinity" in said and "groups       text: 0-4; audio+wave: 5-7" in said
    for layer in found["layers"]:
        order = [expert for group in layer["groups"] for expert in group["experts"]]
        assert source["experts"][str(layer["layer"])] == order
        assert f"layer {layer['layer']}  text: " in said
    page = (ours / PAGE).read_text()
    require_nothing_loaded(page)
    seen = " ".join(Seen(page).texts)
    for words in ("affinity", "Layer 1", "Layer 3", "Mass inside the group", "Choices of audio by group", "units, "):
        assert words in seen, words
    assert found["prompts"]["tokens"].keys() == {"text", "audio"}
    assert page.count("<svg") == 3 + len(found["layers"])
    assert verify(ours, ImportOptions()).startswith("whole: ")


def test_other_cuts_and_another_try_give_the_same(made: dict[str, Path], tmp_path: Path) -> None:
    cut = partitioned(made["hf"], tmp_path / "load", "load", expert=4, tensor=2)
    assert (cut / FILE).read_bytes() == (made["load"] / FILE).read_bytes()
    for name in open_ours(cut).weights:
        assert torch.equal(open_ours(cut).read("weight", name), open_ours(made["load"]).read("weight", name))
    options = ImportOptions(partition=PartitionOptions(strategy="load"), text=made["hf"] / "text.txt", gate=False)
    before = (made["load"] / "manifest.json").stat().st_mtime_ns
    assert not run_import(prepare_import(made["hf"], made["load"], options), made["load"])
    assert (made["load"] / "manifest.json").stat().st_mtime_ns == before


def test_after_a_kill_it_goes_on_with_the_partition_it_had(made: dict[str, Path], tmp_path: Path) -> None:
    """Measured elsewhere it could be another one: then half of the files would be of each."""
    out = tmp_path / "out"

    def killed() -> None:
        TensorWriter.close = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
        of = PartitionOptions(strategy="load")
        into_ours(made["hf"], out, partition=of, text=made["hf"] / "text.txt", constant="measured")

    process = in_child(killed)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    part = out.with_name("out.part")
    found = json.loads((part / FILE).read_text())
    for layer in found["layers"]:
        layer["groups"][0]["experts"], layer["groups"][1]["experts"] = [0, 1, 2, 4], [3, 5, 6, 7]
    (part / FILE).write_text(json.dumps(found))
    again = {"text": made["hf"] / "text.txt", "constant": "measured"}  # which it is not, so it can run here
    into_ours(made["hf"], out, partition=PartitionOptions(strategy="load"), **again)
    assert all(of == [0, 1, 2, 4, 3, 5, 6, 7] for of in open_ours(out).source["partition"]["experts"].values())
    at = "model.layers.1.mlp.gate.weight"
    ours = open_ours(out).read("weight", "decoder.layers.1.mlp.router.weight")
    assert torch.equal(ours, read_all(made["hf"])[at][[0, 1, 2, 4, 3, 5, 6, 7]])


def test_without_a_tokenizer_what_needs_no_measure_goes_on(tmp_path: Path) -> None:
    hf = make("deepseek_v2", tmp_path / "hf")
    ours = into_ours(hf, tmp_path / "ours", partition=PartitionOptions(strategy="alternate"))
    assert found_in(ours)["prompts"] == {} and found_in(ours)["layers"][0]["groups"][0]["experts"] == [0, 2, 4, 6]
    assert "Nothing was measured" in (ours / PAGE).read_text()
    without = into_ours(hf, tmp_path / "without", partition=PartitionOptions(strategy="alternate", page=False))
    assert not (without / PAGE).exists() and (without / FILE).exists()


def units(folder: Path) -> Path:
    return write_texts(folder)[2]


def mixed(folder: Path) -> Path:
    path = units(folder)
    path.write_text(path.read_text() + "w1 w2\n")
    return path


def unheard(folder: Path) -> Path:
    path = units(folder)
    path.write_text("[Hu1][Hu22]\n")
    return path


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "both": ("deepseek_v2", {"strategy": "load"}, {"groups": ("text: 0-3", "audio: 4-7")}, "give one of the two"),
    "sizes alone": ("deepseek_v2", {"sizes": ("text=4", "audio=4")}, {}, "give --partition.strategy too"),
    "too few": ("deepseek_v2", {"strategy": "index", "sizes": ("text=3", "audio=4")}, {}, "make them add up to 8"),
    "nobody": (
        "deepseek_v2",
        {"strategy": "index", "sizes": ("text=4", "video=4")},
        {},
        "there is no modality 'video'",
    ),
    "dense": ("llama", {"strategy": "load"}, {}, "a dense model has no experts to be shared out"),
    "shared out already": ("most", {"strategy": "load"}, {}, "its experts belong to modalities already"),
    "no text": ("deepseek_v2", {"strategy": "load"}, {"text": None}, "no tokenizer.json, so no text"),
    "no speech": ("deepseek_v2", {"strategy": "affinity"}, {}, "give --audio FILE"),
    "no file": ("deepseek_v2", {"strategy": "affinity"}, {"audio": Path("nowhere.txt")}, "nowhere.txt: "),
    "nothing to hear": ("deepseek_v2", {}, {"audio": units}, "nothing here is measured on speech; give --partition"),
    "no tokenizer": ("deepseek_v2", {"strategy": "index"}, {"text": None, "constant": "measured"}, "--constant 1"),
    "both kinds": (
        "deepseek_v2",
        {"strategy": "affinity"},
        {"audio": mixed},
        "utterance 1 is units, utterance 31 word",
    ),
    "no such unit": ("deepseek_v2", {"strategy": "affinity"}, {"audio": unheard}, r"utterance 1: .*'\[Hu22\]'"),
    "fewer than top-k": ("deepseek_v2", {"strategy": "index", "sizes": ("text=7", "audio=1")}, {}, "moe.top_k = 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    family, of, options, message = REFUSED[name]
    hf = make(family, tmp_path / "hf")
    if "text" not in options:
        options = {**options, "text": write_texts(hf)[1]}
    if callable(options.get("audio")):
        options = {**options, "audio": options["audio"](hf)}
    with pytest.raises(MostError, match=message):
        into_ours(hf, tmp_path / "out", partition=PartitionOptions(**of), **options)
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def test_routing_groups_are_not_renumbered(tmp_path: Path) -> None:
    limited = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    hf = change_config(make("deepseek_v2", tmp_path / "hf"), **limited)
    with pytest.raises(MostError, match="routing groups are runs of numbers; renumbered it would be another model"):
        into_ours(hf, tmp_path / "out", partition=PartitionOptions(strategy="alternate"))
    assert (into_ours(hf, tmp_path / "out", partition=PartitionOptions(strategy="index")) / FILE).exists()


def test_a_model_that_knows_no_units_is_shown_transcripts(tmp_path: Path) -> None:
    hf, rows = make("deepseek_v2", tmp_path / "hf"), tiny_token_map().backbone_vocab_size
    grown = {"model.embed_tokens.weight", "lm_head.weight"}
    rewrite(hf, {name: t[:rows].clone() if name in grown else t for name, t in read_all(hf).items()})
    change_config(hf, vocab_size=rows)
    _, text, units = write_texts(hf)
    with pytest.raises(MostError, match="vocabulary of 40 rows has none for them: they begin as new rows; give transc"):
        into_ours(hf, tmp_path / "out", partition=PartitionOptions(strategy="affinity"), text=text, audio=units)
    layer = found_in(partitioned(hf, tmp_path / "out", "affinity", audio=text))["layers"][0]
    assert layer["use"]["mass"]["audio"] == layer["use"]["mass"]["text"]  # the same words
