"""Whatever happens to the files of a checkpoint, it is either used exactly as it was saved or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from megatron_most.checkpoint import LocalTensors, Shelf, TensorReader, read_record, verify_files
from megatron_most.errors import CheckpointError
from tests.checkpoint.small import newest, save_all, small_pieces

SHARD, OTHER = "weights-00000.safetensors", "moments-00000.safetensors"
TRIES = 30


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Steps 1 and 2, whole."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return save_all(tmp_path / "checkpoints", 1, 2)


def flip(path: Path, draw: random.Random) -> Callable[[], None]:
    """Change one byte of a file; the undoing."""
    before = path.read_bytes()
    at = draw.randrange(len(before))
    path.write_bytes(before[:at] + bytes([before[at] ^ draw.randrange(1, 256)]) + before[at + 1 :])
    return lambda: path.write_bytes(before)  # type: ignore[return-value]


@pytest.mark.parametrize("name", [SHARD, OTHER, "manifest.json", "manifest.sha256", "recipe.toml"])
def test_a_flipped_byte_anywhere_makes_it_the_one_before_and_is_said(
    shelf: Shelf, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(name)
    for _ in range(TRIES):
        undo = flip(shelf.path(2) / name, draw)
        assert newest(shelf.folder) == (1, 0)
        assert "step-00000002 is not whole" in capsys.readouterr().err
        undo()
    assert newest(shelf.folder) == (2, 0)


def test_a_flipped_byte_in_latest_changes_nothing(shelf: Shelf) -> None:
    draw = random.Random(0)
    for _ in range(TRIES):
        undo = flip(shelf.folder / "latest", draw)
        assert newest(shelf.folder) == (2, 0)
        undo()


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_pipe_in_the_place_of_a_manifest_is_damage_and_not_waited_for(
    shelf: Shelf, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf.path(2) / name).unlink()
    os.mkfifo(shelf.path(2) / name)
    assert newest(shelf.folder) == (1, 0)
    assert f"{name}: a pipe or a device, not a file" in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_has_the_name_of_latest_and_is_no_file_is_said_and_costs_no_checkpoint(
    shelf: Shelf, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf.folder / "latest").unlink()
    make(shelf.folder / "latest")
    assert newest(shelf.folder) == (2, 0)
    assert "latest: does not help" in capsys.readouterr().err
    save_all(shelf.folder, 3)
    assert newest(shelf.folder) == (3, 0)
    said = capsys.readouterr().err
    is_folder = (shelf.folder / "latest").is_dir()
    assert ("latest: cannot be written: Is a directory; step 3 is saved all the same; move away" in said) == is_folder
    assert "not saved" not in said and "make room" not in said


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("nowhere")])
def test_what_has_the_name_of_a_step_and_is_no_folder_is_named_as_being_in_the_way(
    shelf: Shelf, make: Callable[[Path], None]
) -> None:
    make(shelf.path(3))
    with pytest.raises(CheckpointError, match="step-00000003: not saved: what has this name is no folder, or a link"):
        save_all(shelf.folder, 3)
    assert newest(shelf.folder) == (2, 0)


@pytest.mark.parametrize(
    "content", [None, b"", b'{"step": 1}', b'{"step": 77}', b'{"step": "2"}', b"[]", b"\xff", b"[" * 100000]
)
def test_a_lost_or_wrong_latest_is_said_and_the_folders_decide(
    shelf: Shelf, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf.folder / "latest").unlink()
    if content is not None:
        (shelf.folder / "latest").write_bytes(content)
    assert newest(shelf.folder) == (2, 0)
    assert "latest: " in (said := capsys.readouterr().err) and "taking the newest whole one" in said


def truncate(path: Path) -> None:
    os.truncate(path / SHARD, (path / SHARD).stat().st_size - 1)


def lengthen(path: Path) -> None:
    with open(path / SHARD, "ab") as file:
        file.write(b"\0")


def lose_shard(path: Path) -> None:
    (path / OTHER).unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_sum(path: Path) -> None:
    (path / "manifest.sha256").unlink()


def sum_ends_otherwise(path: Path) -> None:
    (path / "manifest.sha256").write_text((path / "manifest.sha256").read_text().strip() + " ")


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def swap_shards(path: Path) -> None:
    (path / SHARD).rename(path / "between")
    (path / OTHER).rename(path / SHARD)
    (path / "between").rename(path / OTHER)


def take_shard_of_step_1(path: Path) -> None:
    shutil.copy(path.with_name("step-00000001") / SHARD, path / SHARD)


def take_manifest_of_step_1(path: Path) -> None:
    for name in ("manifest.json", "manifest.sha256"):
        shutil.copy(path.with_name("step-00000001") / name, path / name)


def take_all_of_step_1(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000001"), path)


def link_out(path: Path) -> None:
    (path / SHARD).rename(path.parent.parent / "out")
    (path / SHARD).symlink_to("../../out")


def shard_as_folder(path: Path) -> None:
    (path / SHARD).unlink()
    (path / SHARD).mkdir()


def manifest_as_folder(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


def unreadable_disk(path: Path) -> None:
    """/proc/self/mem is a file whose first bytes cannot be read: EIO, as of a bad disk."""
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/proc/self/mem")


def sealed(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """A manifest that was changed together with its sum: as our own mistake would, or malice."""

    def damage(path: Path) -> None:
        body = json.loads((path / "manifest.json").read_text())
        change(body)
        text = json.dumps(body)
        (path / "manifest.json").write_text(text)
        (path / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")

    return damage


def first_piece(body: dict) -> list:
    return body["tensors"]["weight"]["layer.weight"][2][0]


DAMAGES = {
    "truncated": truncate,
    "longer": lengthen,
    "no shard": lose_shard,
    "no manifest": lose_manifest,
    "no sum": lose_sum,
    "sum ends otherwise": sum_ends_otherwise,
    "empty folder": empty,
    "swapped shards": swap_shards,
    "shard of another step": take_shard_of_step_1,
    "manifest of another step": take_manifest_of_step_1,
    "another step under this name": take_all_of_step_1,
    "link out of the folder": link_out,
    "shard a folder": shard_as_folder,
    "manifest a folder": manifest_as_folder,
    "disk fails": unreadable_disk,
    "other format": sealed(lambda body: body.update(format="most-checkpoint-0")),
    "no step": sealed(lambda body: body.pop("step")),
    "step a word": sealed(lambda body: body.update(step="2")),
    "attempt a word": sealed(lambda body: body.update(attempt="2")),
    "more fields": sealed(lambda body: body.update(more=1)),
    "files a list": sealed(lambda body: body.update(files=[])),
    "nested": sealed(lambda body: body.update(files=None)),
    "gap": sealed(lambda body: first_piece(body)[3].__setitem__(0, 11)),
    "a piece twice": sealed(lambda body: body["tensors"]["weight"]["layer.weight"][2].append(first_piece(body))),
    "unknown dtype": sealed(lambda body: body["tensors"]["weight"]["layer.weight"].__setitem__(1, "Tensor")),
    "unlisted file": sealed(lambda body: body["files"].pop(SHARD)),
    "file outside": sealed(lambda body: body["files"].update({"../latest": [1, ""]})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_for_the_one_before(
    shelf: Shelf, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](shelf.path(2))
    assert newest(shelf.folder) == (1, 0)
    assert "step-00000002 is not whole" in capsys.readouterr().err


def test_deep_json_is_damage_too(shelf: Shelf) -> None:
    text = "[" * 200_000
    (shelf.path(2) / "manifest.json").write_text(text)
    (shelf.path(2) / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")
    assert newest(shelf.folder) == (1, 0)


@pytest.mark.parametrize("damage", ["truncated", "no manifest", "empty folder"])
def test_where_none_is_whole_it_is_an_error_that_says_why(shelf: Shelf, damage: str) -> None:
    for step in (1, 2):
        DAMAGES[damage](shelf.path(step))
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole; the newest: .*step-00000002"):
        shelf.find_newest(verify_files)


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "step-7").mkdir()  # not a name of ours
    (tmp_path / "step-00000007").write_text("a file")
    (tmp_path / ".step-00000008.attempt-1.x").mkdir()
    assert Shelf(tmp_path).find_newest(verify_files) is None
    assert Shelf(tmp_path / "not there").find_newest(verify_files) is None


def test_each_of_two_ranks_proves_its_share_and_together_they_prove_all(shelf: Shelf) -> None:
    record = read_record(shelf.path(2))
    for name in record.files:
        undo = flip(shelf.path(2) / name, random.Random(name))
        found = []
        for rank in range(2):
            try:
                verify_files(shelf.path(2), record, rank, 2)
            except CheckpointError:
                found.append(rank)
        assert len(found) == 1
        undo()


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_in_the_folder_is_never_run(shelf: Shelf, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    for name in ("model.pt", "optim.pkl", "pytorch_model.bin", "latest.pt", "more.safetensors", "data.pickle"):
        for folder in (shelf.folder, shelf.path(2)):
            (folder / name).write_bytes(bomb)
    torch.save(Bomb(mark), shelf.path(2) / "mp_rank_00_model_states.pt")
    found = shelf.find_newest(verify_files)
    assert found is not None and found[1].step == 2
    read_everything(*found)
    # Now in the place of files that are read, first as damage, then with a manifest that vouches for it.
    for name in (SHARD, OTHER):
        (shelf.path(2) / name).write_bytes(bomb)
    assert newest(shelf.folder) == (1, 0)
    listed = [len(bomb), hashlib.sha256(bomb).hexdigest()]
    sealed(lambda body: body["files"].update({SHARD: listed, OTHER: listed}))(shelf.path(2))
    found = shelf.find_newest(verify_files)
    assert found is not None and found[1].step == 2
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_everything(*found)
    for name in ("manifest.json", "manifest.sha256"):
        (shelf.path(2) / name).write_bytes(bomb)
    (shelf.folder / "latest").write_bytes(bomb)
    assert newest(shelf.folder) == (1, 0)
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # the bomb is live


def read_everything(folder: Path, record: object) -> None:
    tensors = LocalTensors(TensorReader(folder, record), small_pieces())  # type: ignore[arg-type]
    for local, boxes in small_pieces().items():
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            tensors.read(kind, local, boxes[0].whole)


def test_any_safetensors_reader_opens_a_shard(shelf: Shelf) -> None:
    with safe_open(shelf.path(2) / SHARD, framework="pt") as file:
        keys = set(file.keys())
    assert {"weight/layer.weight", "weight/fc1.weight@0,0", "weight/fc1.weight@4,0"} <= keys
