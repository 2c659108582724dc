"""A token map survives its file, and a file that is not one is refused with its path and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_most.errors import DataError
from megatron_most.vocab import TokenMap, deepseek_token_map, tiny_token_map


def test_a_saved_map_loads_equal_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "token_map.json"
    deepseek_token_map(1000).save(path)
    assert TokenMap.load(path) == deepseek_token_map(1000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["token_map.json"]


def test_saving_replaces_the_old_map_and_keeps_it_when_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token_map.json"
    deepseek_token_map().save(path)
    tiny_token_map().save(path)
    assert TokenMap.load(path) == tiny_token_map()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(DataError, match=r"token_map.json: cannot be written.*No space"):
        deepseek_token_map().save(path)
    assert TokenMap.load(path) == tiny_token_map()
    assert [entry.name for entry in tmp_path.iterdir()] == ["token_map.json"]


def test_a_saved_map_is_as_readable_to_others_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    tiny_token_map().save(tmp_path / "map")  # a temporary file of mode 0600 would shut colleagues out
    assert (tmp_path / "map").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_reader_who_opened_the_old_map_still_reads_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    deepseek_token_map().save(path)
    with path.open(encoding="utf-8") as reader:
        tiny_token_map().save(path)
        assert TokenMap.from_dict(json.load(reader)) == deepseek_token_map()
    assert TokenMap.load(path) == tiny_token_map()


@pytest.mark.parametrize("parent", ["missing", "a_file"])
def test_saving_where_no_folder_is_names_the_path(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a_file").write_text("")
    with pytest.raises(DataError, match=f"{parent}/map.json: cannot be written"):
        tiny_token_map().save(tmp_path / parent / "map.json")


def test_the_order_of_keys_in_a_file_changes_neither_map_nor_hash(tmp_path: Path) -> None:
    values = tiny_token_map().to_dict()
    path = tmp_path / "map.json"
    path.write_text(json.dumps(dict(reversed(values.items()))), encoding="utf-8")
    assert list(json.loads(path.read_text(encoding="utf-8"))) != list(values)
    assert TokenMap.load(path).hash == tiny_token_map().hash


def test_the_hash_of_the_published_map_never_changes() -> None:
    # Data sets and checkpoints are stored with this value: a change makes all of them unusable.
    assert deepseek_token_map().hash == "dbc18d9fa2bef101877b7b38b844cede6321eeda833a6ec985ae89d23f96dd0b"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in tiny_token_map().to_dict().items() if key != name}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (without("eos_id"), "missing: eos_id"),
        (without("unit_token"), "missing: unit_token"),  # a default in code must not fill in for data
        ({**tiny_token_map().to_dict(), "eos": 1, "unk": 2}, "unknown: eos, unk"),
        ({**tiny_token_map().to_dict(), "num_units": 22.0}, "num_units = 22.0: is a float"),
        ({**tiny_token_map().to_dict(), "pad_id": None}, "pad_id = None"),
        ({**tiny_token_map().to_dict(), "tag_ranges": {"text": [0, 39]}}, "tag_ranges"),
        ({**tiny_token_map().to_dict(), "tag_ranges": [7]}, "tag_ranges = 7: not three integers"),
        ({**tiny_token_map().to_dict(), "tag_ranges": [[0, 39, 0], [30, 63, 1], [64, 65, 2]]}, "overlaps"),
        ({**tiny_token_map().to_dict(), "end_wave_id": 200}, "end_wave_id = 200: not in 0..71"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_wrong_file_is_refused_by_path_and_field(tmp_path: Path, values: object, named: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match=f"map.json: token map: .*{named}"):
        TokenMap.load(path)


@pytest.mark.parametrize("content", [b"", b'{"backbone": ', b"\xff\xfe{}"])
def test_a_torn_or_foreign_file_is_refused_by_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "map.json").write_bytes(content)
    with pytest.raises(DataError, match=r"map.json: not a readable token map"):
        TokenMap.load(tmp_path / "map.json")


def test_a_missing_file_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.json: not a readable token map"):
        TokenMap.load(tmp_path / "nowhere.json")
