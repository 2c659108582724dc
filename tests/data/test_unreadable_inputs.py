"""Inputs that cannot be read and folders that cannot be written: one message that says what, where and what to do."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_most.data.corpora import Chat, LibriHeavy, Text, write_manifest
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.overlap import load_evaluation_set
from megatron_most.data.templates import load_templates, template_names
from megatron_most.data.tokenizer import load_tokenizer, token_map_for
from megatron_most.data.unit_set import open_units
from megatron_most.errors import DataError
from megatron_most.speech import SpeechCodec, import_quantiser, load_codec, save_codec
from tests.closed_files import as_nobody, open_folder
from tests.data_files import make_codec, make_corpus, make_tokenizer

UNIT_FILES = ("units.json", "units.u16", "durations.u32", "ends.i64", "rows.i64", "ids.txt", "rejects.jsonl")
CLOSED = "Permission denied; check the mode of "


class Made:
    """A corpus with its codec, units and tokenizer."""

    def __init__(self, root: Path) -> None:
        self.manifest: Manifest = make_corpus(root / "corpus", recordings=1, cuts=3)
        self.codec: SpeechCodec = load_codec(make_codec(root / "codec", 8))
        self.root = root
        make_tokenizer(root / "tokenizer", 8)
        self.extract(root / "units")

    def extract(self, out: Path) -> Path:
        return extract_units(self.manifest, self.codec, out, (0, 1), ExtractOptions(), self.manifest.audio_root)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with open_folder() as folder:
        yield Made(folder)


@pytest.fixture
def own(made: Made) -> Iterator[Path]:
    """A copy of it all that a test may close; a child that is nobody can come here."""
    with open_folder() as folder:
        template_names()  # kept: the package itself may lie where nobody else may look
        for name in ("units", "corpus", "codec", "tokenizer"):
            shutil.copytree(made.root / name, folder / name)
        (folder / "talk.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
        (folder / "mine.toml").write_text("")
        (folder / "eval.txt").write_text("one two three four five\n")
        pyarrow.parquet.write_table(pyarrow.table({"text": ["some words"]}), folder / "text.parquet")
        (folder / "outs").mkdir()
        (folder / "outs").chmod(0o777)
        yield folder


def units_in_full(folder: Path) -> int:
    """Every file of a unit set, read and proved."""
    found = open_units(folder / "units")
    for shard in found.shards:
        shard.verify()
    found.by_id("r0-c0")
    return len(found.shards)


@pytest.mark.parametrize("name", UNIT_FILES)
def test_a_unit_file_that_is_no_file_is_named(own: Path, name: str) -> None:
    path = own / "units" / name
    for make, told in (
        (lambda: path.mkdir(), "a folder; give a file"),
        (lambda: path.symlink_to("gone"), "cannot be read: a link to gone, which is not there; mend the link"),
        (lambda: os.mkfifo(path), "a pipe or a device, not a file; give a file"),
    ):
        path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
        make()
        with pytest.raises(DataError) as caught:
            units_in_full(own)
        assert str(caught.value) == f"{path}: {told}"


@pytest.mark.parametrize("name", UNIT_FILES)
def test_a_unit_file_that_may_not_be_read_is_named_with_its_mode(own: Path, name: str) -> None:
    (own / "units" / name).chmod(0)
    told = as_nobody(lambda: units_in_full(own))
    assert told == f"{own}/units/{name}: cannot be read: {CLOSED}{own}/units/{name} (----------)"


def readers(own: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """What reads a file, and the file."""
    outs = own / "outs" / "m"
    return {
        "chat rows": (lambda: write_manifest(Chat(files=(own / "talk.jsonl",), out=outs)), "talk.jsonl"),
        "parquet": (lambda: write_manifest(Text(files=(own / "text.parquet",), out=outs)), "text.parquet"),
        "cuts": (
            lambda: write_manifest(LibriHeavy(cuts=(own / "talk.jsonl",), audio_root=own / "corpus", out=outs)),
            "talk.jsonl",
        ),
        "tokenizer": (lambda: load_tokenizer(own / "tokenizer"), "tokenizer/tokenizer.json"),
        "its names": (lambda: token_map_for(own / "tokenizer", "own", 8), "tokenizer/tokenizer_config.json"),
        "templates": (lambda: load_templates(own / "mine.toml"), "mine.toml"),
        "evaluation": (lambda: load_evaluation_set("e", own / "eval.txt"), "eval.txt"),
        "rows": (lambda: list(open_manifest(own / "corpus" / "manifest").rows()), "corpus/manifest/rows.jsonl.gz"),
        "proved rows": (lambda: open_manifest(own / "corpus" / "manifest").verify(), "corpus/manifest/rows.jsonl.gz"),
        "header": (lambda: open_manifest(own / "corpus" / "manifest"), "corpus/manifest/manifest.json"),
        "codec": (lambda: load_codec(own / "codec"), "codec/codec.json"),
        "centroids": (lambda: import_quantiser(own / "eval.txt"), "eval.txt"),
        "centroids of a codec": (lambda: load_codec(own / "codec"), "codec/centroids.safetensors"),
    }


@pytest.mark.parametrize("what", readers(Path()))
def test_a_file_that_may_not_be_read_is_one_message_with_its_mode(own: Path, what: str) -> None:
    read, name = readers(own)[what]
    (own / name).chmod(0)
    assert as_nobody(read) == f"{own}/{name}: cannot be read: {CLOSED}{own}/{name} (----------)"


@pytest.mark.parametrize("what", ["chat rows", "parquet", "cuts", "evaluation", "templates", "centroids"])
def test_a_named_pipe_is_refused_and_not_waited_for(own: Path, what: str) -> None:
    read, name = readers(own)[what]
    (own / name).unlink()
    os.mkfifo(own / name)
    with pytest.raises(DataError, match=f"{name}: a pipe or a device, not a file; give a file"):
        read()


def test_a_folder_above_that_may_not_be_entered_is_the_one_that_is_named(own: Path) -> None:
    (own / "units").chmod(0o600)
    told = as_nobody(lambda: units_in_full(own))
    assert told == f"{own}/units: cannot be read: {CLOSED}{own}/units (drw-------)"


def test_audio_in_a_folder_that_may_not_be_entered_is_one_error(own: Path, made: Made) -> None:
    (own / "corpus").chmod(0o600)
    audio, closed = own / "corpus" / "audio", f"{own}/corpus/audio: cannot be read: {CLOSED}{own}/corpus (drw-------)"
    units = (own / "outs" / "u", (0, 1), ExtractOptions(), audio)
    assert as_nobody(lambda: extract_units(made.manifest, made.codec, *units)) == closed
    listed = LibriHeavy(cuts=(own / "talk.jsonl",), audio_root=audio, out=own / "outs" / "m")
    assert as_nobody(lambda: write_manifest(listed)) == closed


def test_a_folder_that_may_not_be_written_is_named_by_every_step(own: Path, made: Made) -> None:
    (own / "outs").chmod(0o555)
    closed = f"{own}/outs"
    talk = Chat(files=(own / "talk.jsonl",), out=own / "outs" / "m", max_reject_rate=1.0)
    for write in (
        lambda: write_manifest(talk),
        lambda: made.extract(own / "outs" / "u"),
        lambda: save_codec(made.codec, own / "outs" / "c"),
    ):
        told = as_nobody(write)
        assert told.startswith(f"{closed}/") and f": cannot be written: {CLOSED}{closed} (dr-xr-xr-x)" in told
        assert "room" not in told


def test_a_folder_given_for_a_list_or_a_list_for_a_folder_says_so(own: Path) -> None:
    with pytest.raises(DataError, match="eval.txt: a file, not the folder of a manifest; give the folder"):
        open_manifest(own / "eval.txt")
    with pytest.raises(DataError, match="eval.txt: cannot be read: Not a directory; give the folder of a unit set"):
        open_units(own / "eval.txt")
    with pytest.raises(DataError, match="corpus: a folder; give a file"):
        write_manifest(LibriHeavy(cuts=(own / "corpus",), audio_root=own, out=own / "outs" / "m"))
    (own / "eval.txt.gz").write_bytes(gzip.compress(b"one two three four five\n"))
    assert load_evaluation_set("e", own / "eval.txt.gz").num_texts == 1
