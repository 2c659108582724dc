"""A temporary disk without room: one line that says where it is and what to set, and nothing half-written."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from megatron_most.data import temporary
from megatron_most.data.corpora.table import DiskTable
from megatron_most.data.manifest import open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.errors import DataError

ABOUT = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder in which SQLite finds room for 8 pages."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)
    monkeypatch.setattr(temporary, "_SETTINGS", (*temporary._SETTINGS, "PRAGMA max_page_count=8"))
    return folder


def write(folder: Path, rows: int) -> None:
    with ManifestWriter(folder, kind="text", **ABOUT) as out:  # type: ignore[arg-type]
        for number in range(rows):
            out.add_text(f"t-{number}", "a text")


def test_a_manifest_without_temporary_room_is_told_in_one_line_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "m", 5000)
    assert str(caught.value) == f"{small}: temporary disk full; set TMPDIR to a folder with room"
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    write(tmp_path / "m", 50)  # there is room for these, and nothing in the way
    assert open_manifest(tmp_path / "m").header.rows == 50


def test_side_files_without_temporary_room_are_told_in_one_line(small: Path) -> None:
    table = DiskTable("text")
    with pytest.raises(DataError, match=f"{small}: temporary disk full; set TMPDIR"):
        table.fill((f"key {number}", "value") for number in range(5000))


def test_a_temporary_folder_that_is_not_there_is_passed_over_as_sqlite_does(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "gone"))
    error = sqlite3.OperationalError("disk I/O error")
    assert str(temporary.cannot_spill(error)) == (
        f"{small}: temporary disk cannot be used: disk I/O error; set TMPDIR to a folder with room"
    )
