"""Files are whole or old, and paths stay in their folder."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.runtime import confine, ensure_new_folder, sha256_file, write_atomically


def test_a_written_file_is_whole_readable_and_alone(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.json", "ä\n")
        write_atomically(str(tmp_path / "a.json"), b"new")
    finally:
        os.umask(umask)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640  # as the user's umask says


def write_and_die(path: Path, at: str) -> None:
    setattr(os, at, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    write_atomically(path, "new" * 1000)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path, at: str) -> None:
    path = tmp_path / "latest"
    write_atomically(path, "old")
    child = multiprocessing.get_context("fork").Process(target=write_and_die, args=(path, at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # it died between the temporary file and the rename


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root-2").mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "to-sub").symlink_to("sub")
    (root / "loop").symlink_to("loop")
    return root


@pytest.mark.parametrize(
    "relative",
    ["../a", "sub/../../a", "..", "../root-2/a", "out/a", "sub/../out/root-2", "/a", "a\0b"],
)
def test_a_path_that_leads_out_is_refused(root: Path, relative: str) -> None:
    with pytest.raises(DataError):
        confine(root, relative)


@pytest.mark.parametrize(
    ("relative", "real"), [("sub/a", "sub/a"), ("to-sub/a", "sub/a"), ("sub/../b", "b"), ("..a", "..a")]
)
def test_a_path_that_stays_inside_is_made_real(root: Path, relative: str, real: str) -> None:
    assert confine(root, relative) == root.resolve() / real


def test_a_loop_of_links_is_refused(root: Path) -> None:
    with pytest.raises(DataError):
        confine(root, "loop/a")


def test_a_new_folder_is_empty(tmp_path: Path) -> None:
    assert ensure_new_folder(tmp_path / "a" / "b").is_dir()
    ensure_new_folder(str(tmp_path / "a" / "b"))  # empty is as good as new
    with pytest.raises(DataError, match="not empty, it holds b"):
        ensure_new_folder(tmp_path / "a")
    (tmp_path / "c").write_text("")
    with pytest.raises(DataError, match="a file with this name exists"):
        ensure_new_folder(tmp_path / "c")
