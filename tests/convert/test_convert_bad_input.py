"""Whatever is wrong with a folder, one clear line says so, and nothing is left where the output would have been."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_most.checkpoint import read_record, verify_files
from megatron_most.convert import run_convert_ckpt
from megatron_most.errors import MostError
from megatron_most.runtime import claim
from tests.checkpoint.small import die_before, in_child
from tests.convert.damage import (
    EXPERT,
    INDEX,
    Damage,
    content,
    in_header,
    in_index,
    in_tensors,
    nan_in,
    shards,
    stop_at,
)
from tests.convert.folders import change_config, into_ours, make
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]


def only_pickles(folder: Path) -> None:
    for path in (*shards(folder), folder / INDEX):
        path.unlink()
    torch.save({"x": torch.ones(2)}, folder / "pytorch_model.bin")


def link_out(folder: Path) -> None:
    shutil.move(shards(folder)[0], folder.parent / "elsewhere")
    shards(folder)  # of which the first is gone
    names = json.loads((folder / INDEX).read_text())["weight_map"].values()
    (folder / min(names)).symlink_to("../elsewhere")


def first(head: dict[str, Any]) -> dict[str, Any]:
    return head[min(name for name in head if name != "__metadata__")]


def repeat(head: dict[str, Any]) -> str:
    text = json.dumps(head)
    entry = json.dumps(first(head))
    return text[:-1] + f', "{min(n for n in head if n != "__metadata__")}": {entry}}}'


def twice(folder: Path) -> None:
    shutil.copy(shards(folder)[0], folder / "model-copy.safetensors")
    in_index(lambda names: names.update({"another": "model-copy.safetensors"}))(folder)


SINGLE = "model.safetensors"
NAMES = ("../m.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "", "a\0.safetensors")
BAD: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "hf: no such folder"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read: No such file"),
    "a pipe for config.json": (
        lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "config.json: a pipe or a device",
    ),
    "config.json of nothing": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "a deep config.json": (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "no shard": (lambda f: shards(f)[2].unlink(), "model-00003-of-00006.safetensors is missing; fetch it again"),
    "a truncated shard": (lambda f: os.truncate(shards(f)[1], 5000), "truncated"),
    "a shard short of a byte": (
        lambda f: os.truncate(shards(f)[1], shards(f)[1].stat().st_size - 1), "00002-of-00006.safetensors: truncated",
    ),
    "an empty shard": (lambda f: os.truncate(shards(f)[1], 0), "truncated or no safetensors file: 0 bytes"),
    "a longer shard": (lambda f: open(shards(f)[0], "ab").write(b"0"), "longer than its header says"),
    "text for a shard": (lambda f: shards(f)[0].write_text("version https://git-lfs"), "no safetensors file"),
    "a header of nonsense": (in_header(lambda head: "{" * 50), "not readable as safetensors"),
    "overlapping tensors": (
        in_header(lambda head: first(head).update(data_offsets=[8, first(head)["data_offsets"][1] + 8])), "",
    ),
    "a shape that is not its bytes'": (in_header(lambda head: first(head).update(shape=[3, 5])), "bytes for shape"),
    "a negative size": (in_header(lambda head: first(head).update(shape=[-72, -64])), "-72 is no size"),
    "a type unknown here": (in_header(lambda head: first(head).update(dtype="F8_E4M3")), "F8_E4M3, which is not read"),
    "a type that is no word": (in_header(lambda head: first(head).update(dtype=["F32"])), "no dtype, no shape or no"),
    "three places of one tensor": (
        in_header(lambda head: first(head).update(data_offsets=[0, 1, 2])), "no dtype, no shape or no two data_offsets",
    ),
    "a tensor of nothing": (in_header(lambda head: head.update(x=None)), "x has no dtype, no shape or no two data_off"),
    "a tensor named half a character": (
        in_header(lambda head: head.update({"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})),
        "is no text",
    ),
    "a name twice in a header": (in_header(repeat), "is named twice"),
    "a tensor in two shards": (twice, "is in model-00001-of-00006.safetensors and in model-copy.safetensors"),
    "an extra tensor": (in_tensors(lambda t: t.update(more=torch.ones(2))), "tensor more: not known; config.json says"),
    "a missing tensor": (in_tensors(lambda t: t.pop(EXPERT)), f"tensor {EXPERT}: missing; the folder is not whole"),
    "a misshaped tensor": (
        in_tensors(lambda t: t.update({EXPERT: t[EXPERT].T.contiguous()})),
        rf"{EXPERT} has shape \[32, 64\], config.json makes it \[64, 32\]",
    ),
    "NaN": (in_tensors(nan_in(EXPERT)), f"{EXPERT} holds NaN; --allow-nonfinite"),
    "infinity": (in_tensors(lambda t: t[EXPERT].fill_(float("inf"))), f"{EXPERT} holds infinite numbers"),
    "whole numbers for weights": (in_tensors(lambda t: t.update({EXPERT: t[EXPERT].int()})), "weights are floating"),
    "parts of two types": (
        in_tensors(lambda t: t.update({EXPERT.replace("down", "up"): t[EXPERT.replace("down", "up")].half()})),
        "are parts of one tensor, but of different types",
    ),
    "another family": (lambda f: change_config(f, model_type="gpt2"), "model_type = 'gpt2': no family"),
    "the wrong family": (
        lambda f: change_config(f, model_type="llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        "not known here, and may change what the model computes",
    ),
    "only the index of pickles": (
        lambda f: (*(path.unlink() for path in [*shards(f), f / INDEX]), (f / "x.bin.index.json").write_text("{}")),
        "only x.bin.index.json: pickles can run code",
    ),
    "more experts than anybody has": (
        lambda f: change_config(f, n_routed_experts=10**5, num_hidden_layers=10**4),
        "tells of 10000 layers, 9999 of them with 100000 experts, but the files hold 118 tensors",
    ),
    "a token map that lacks its fields": (
        lambda f: change_config(f, token_map={"backbone": "own"}), "config.json: token_map: token map: missing: backb",
    ),
    "a deep token map": (lambda f: (f / "token_map.json").write_text("[" * 100_000), "not a readable token map"),
    "only pickles": (only_pickles, "only pytorch_model.bin: pickles can run code and are never read"),
    "no index": (lambda f: (f / INDEX).unlink(), f"but neither {SINGLE} nor {INDEX}"),
    "an index of nonsense": (lambda f: (f / INDEX).write_text("{}"), "cannot be read as an index"),
    "an index that is a list": (lambda f: (f / INDEX).write_text("[1]"), "it has no weight_map of tensors and files"),
    "an empty index": (in_index(dict.clear), "names no tensor"),
    "an index that names another file": (
        in_index(lambda names: names.update({EXPERT: "model-00001-of-00006.safetensors"})), f"has {EXPERT} in",
    ),
    "an index without a tensor": (in_index(lambda names: names.pop(EXPERT)), f"{EXPERT} is in .*, but not in {INDEX}"),
    **{
        f"a shard named {name!r}": (in_index(lambda index, name=name: index.update({EXPERT: name})), "names '|names a")
        for name in NAMES
    },
    "a shard named in half a character": (in_index(lambda i: i.update({EXPERT: "\ud800.safetensors"})), "is no safet"),
    "a shard of a long name": (in_index(lambda i: i.update({EXPERT: "m" * 300 + ".safetensors"})), "m is missing|…m"),
    "a shard that leads out": (link_out, "names a file outside of it"),
    "wrong sizes": (lambda f: change_config(f, hidden_size=32), "has shape"),
    "sizes of nonsense": (lambda f: change_config(f, hidden_size=0), "hidden_size = 0: is no whole number"),
    "another vocabulary": (lambda f: change_config(f, vocab_size=100), "vocab_size = 100, but .*token_map.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    damage, message = BAD[name]
    hf = make("deepseek_v2", tmp_path / "hf")
    damage(hf)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MostError, match=message) as error:
        run_convert_ckpt(["import", "--source", str(hf), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_finite_is_taken_when_that_is_asked_for(tmp_path: Path) -> None:
    hf = make("deepseek_v2", tmp_path / "hf")
    in_tensors(nan_in(EXPERT))(hf)
    folder = into_ours(hf, tmp_path / "out", allow_nonfinite=True)
    with pytest.raises(MostError, match="weight of decoder.layers.2.mlp.experts.3.linear_fc2.weight holds NaN"):
        run_convert_ckpt(["verify", "--paths", str(folder)])
    run_convert_ckpt(["verify", "--paths", str(folder), "--no-finite"])


def test_numbers_too_large_for_the_wanted_type_are_refused(tmp_path: Path) -> None:
    hf = make("deepseek_v2", tmp_path / "hf")
    in_tensors(lambda tensors: tensors[EXPERT].fill_(1e5))(hf)
    with pytest.raises(MostError, match=f"{EXPERT} holds numbers beyond torch.float16"):
        into_ours(hf, tmp_path / "out", dtype="float16")
    into_ours(hf, tmp_path / "out", dtype="bfloat16")


def test_nothing_in_a_folder_is_run(tmp_path: Path) -> None:
    """Pickles, code, and a config.json that asks for code."""
    hf = make("deepseek_v2", tmp_path / "hf")
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (hf / name).write_bytes(bomb)
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (hf / name).write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    change_config(hf, auto_map={"AutoConfig": "configuration_evil.X", "AutoModelForCausalLM": "modeling_evil.X"})
    into_ours(hf, tmp_path / "out")
    run_convert_ckpt(["inspect", "--path", str(hf), "--hashes"])
    run_convert_ckpt(["verify", "--paths", str(hf), str(tmp_path / "out")])
    assert not (tmp_path / "exploded").exists()


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_the_hubs_cache_with_its_links_is_a_folder_like_any_other(tmp_path: Path) -> None:
    hf = make("llama", tmp_path / "made")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(hf.iterdir())):
        shutil.move(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    into_ours(snapshot, tmp_path / "out")


def test_a_folder_in_use_or_of_something_else_is_left_alone(tmp_path: Path) -> None:
    hf = make("llama", tmp_path / "hf")
    (tmp_path / "out.part").mkdir()
    with (
        claim(tmp_path / "out.part"),
        pytest.raises(MostError, match="is writing here; wait for it, or choose another"),
    ):
        into_ours(hf, tmp_path / "out")
    assert (tmp_path / "out.part").is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(MostError, match="not the folder of such a job .*; choose another folder or remove this"):
        into_ours(hf, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    into_ours(hf, tmp_path / "out")
    with pytest.raises(MostError, match="begun with recipe = .*choose another folder or remove this"):
        into_ours(hf, tmp_path / "out", tensor=2)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    hf = make("deepseek_v2", tmp_path_factory.mktemp("unbroken") / "hf")
    return hf, content(into_ours(hf, hf.parent / "out", expert=4))


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    hf, wanted = unbroken
    kept = 0
    for moment in range(0, 70, 8):
        out = tmp_path / str(moment) / "out"
        out.parent.mkdir()
        process = in_child(
            lambda out=out, moment=moment: (die_before(out.parent, moment), into_ours(hf, out, expert=4))
        )
        process.join()
        assert process.exitcode == -signal.SIGKILL or (moment > 40 and process.exitcode == 0), moment
        half = {path.name: path.stat().st_ino for path in out.parent.glob("out.part/weights-*")}
        into_ours(hf, out, expert=4)
        found = content(out)
        for name, data in wanted.items():
            if name not in ("manifest.json", "manifest.sha256", "resolved.toml"):  # those name the folder
                assert found[name] == data, name
        verify_files(out, read_record(out))
        assert not (out.parent / "out.part").exists() and not [name for name in found if name.startswith(".")]
        kept += sum((out / name).stat().st_ino == number for name, number in half.items())
    assert kept > 5  # finished files were not written again


def test_what_was_damaged_in_between_is_written_again(unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    hf, wanted = unbroken
    out = tmp_path / "out"
    stop_at("weights-00002", lambda: into_ours(hf, out, expert=4))
    files = sorted((tmp_path / "out.part").glob("weights-*"))
    assert len(files) == 2
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    into_ours(hf, out, expert=4)
    assert content(out)[files[0].name] == wanted[files[0].name]


def test_a_source_that_changed_in_between_is_refused(unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    hf = Path(shutil.copytree(unbroken[0], tmp_path / "hf"))
    stop_at("weights-00002", lambda: into_ours(hf, tmp_path / "out", expert=4))
    os.utime(shards(hf)[0], (1, 1))
    with pytest.raises(MostError, match="source = .*choose another folder, or remove this one"):
        into_ours(hf, tmp_path / "out", expert=4)


def test_a_full_disk_is_one_clear_error_and_it_goes_on_when_there_is_room(
    unbroken: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf, wanted = unbroken

    def limited() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        try:
            into_ours(hf, tmp_path / "out", expert=4)
        except MostError as error:
            os._exit(7 if "cannot be written" in str(error) and "it goes on from there" in str(error) else 8)
        os._exit(9)

    process = in_child(limited)
    process.join()
    assert process.exitcode == 7 and not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(MostError, match="out: needs .* MB, but only 0.100 MB are free; make room"):
        into_ours(hf, tmp_path / "out", expert=4)
    monkeypatch.undo()
    assert content(into_ours(hf, tmp_path / "out", expert=4)).keys() == wanted.keys()


def test_the_command_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "convert_ckpt.py"
    done = run_program(tool, "import", "--source", tmp_path / "none", "--out", tmp_path / "out", cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.count("\n") == 1 and done.stderr.startswith("convert_ckpt.py: ") and "no such folder" in done.stderr
    )
