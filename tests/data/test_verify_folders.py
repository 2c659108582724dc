"""No byte of a manifest, a unit set or a dataset changes unseen; of other folders `verify` says what they are."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_most.data import commands
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.commands import run_prepare_data
from megatron_most.data.dataset import load_info, open_dataset
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.overlap import load_evaluation_set
from megatron_most.data.seal import sealed
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.data.verify_folder import verify_folder
from megatron_most.errors import DataError
from megatron_most.speech import load_codec
from tests.data_files import make_codec, make_corpus, make_tokenizer

ARRAYS = ("units.u16", "durations.u32", "ends.i64", "rows.i64")
FILES = {
    "manifest": ("manifest.json", "rows.jsonl.gz", "rejects.jsonl"),
    "units": ("units.json", *ARRAYS, "ids.txt", "rejects.jsonl", "job.json"),
    "set": ("dataset.json", "tokens.bin", "tokens.idx", "ids.txt", "rejects.jsonl", "overlaps.jsonl", "README.md")
    + ("job.json",),
}
RECORDS: dict[str, Callable[[Path], object]] = {
    "manifest": open_manifest,
    "units": open_units,
    "set": load_info,
}
EVERY = [(kind, name) for kind, names in FILES.items() for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, as the steps make them; rejects and overlaps are in it, so that no file is empty."""
    root = tmp_path_factory.mktemp("made")
    corpus = make_corpus(root / "corpus", recordings=2, cuts=8)
    with gzip.open(corpus.folder / "rows.jsonl.gz") as rows:
        cuts = [json.loads(line) for line in rows]
    about = dict(corpus="test", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(root / "manifest", kind="speech", audio_root=str(corpus.audio_root), max_reject_rate=1,
                        **about) as out:  # type: ignore[arg-type]  # fmt: skip
        for cut in [*cuts, {**cuts[0], "id": "nothing", "duration": 0}]:
            out.add_cut(cut)
    manifest = open_manifest(root / "manifest")
    codec, tokens = load_codec(make_codec(root / "codec")), make_tokenizer(root / "tokenizer")
    options = ExtractOptions(max_seconds=1.8, max_reject_rate=1)
    extract_units(manifest, codec, root / "units", (0, 1), options, manifest.audio_root)
    (root / "test.txt").write_text(f"{next(iter(manifest.rows())).text}\n")
    inputs = BuildInputs(
        manifests=(manifest,),
        units=(open_units(root / "units"),),
        tokens=tokens,
        tokenizer=load_tokenizer(root / "tokenizer"),
        templates=load_templates("chat"),
        evaluation=(load_evaluation_set("test", root / "test.txt", n=4),),
    )
    build(inputs, BuildOptions(task="asr", max_reject_rate=1), root / "set")
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(made / kind, tmp_path / kind))


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_holds_just_these_files_none_empty_and_is_whole(made: Path, kind: str) -> None:
    found = {path.name: path.stat().st_size for path in (made / kind).iterdir()}
    assert set(found) == set(FILES[kind]) and all(found.values()), found
    assert verify_folder(made / kind, with_core=False)


def damaged(data: bytes, how: str, draw: random.Random) -> bytes | None:
    if how == "a bit flipped":
        at = draw.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if how == "a byte changed":
        at = draw.randrange(len(data))
        return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]
    return {"a byte less": data[:-1], "a byte more": data + b"\n", "emptied": b"", "removed": None}[how]


HARMS = ("a bit flipped", "a byte changed", "a byte less", "a byte more", "emptied", "removed")


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind}-{name}" for kind, name in EVERY])
def test_any_damage_to_any_file_is_found(copy: Callable[[str], Path], kind: str, name: str) -> None:
    folder = copy(kind)
    whole, draw = (folder / name).read_bytes(), random.Random(f"{kind}/{name}")
    for how in HARMS:
        for _ in range(6 if how.startswith("a bit") else 1):
            data = damaged(whole, how, draw)
            assert data != whole
            (folder / name).unlink()
            if data is not None:
                (folder / name).write_bytes(data)
            with pytest.raises(DataError) as error:
                verify_folder(folder, with_core=False)
            assert name in str(error.value), how
            (folder / name).write_bytes(whole)
    assert verify_folder(folder, with_core=False)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_with_a_byte_changed_is_not_even_opened(copy: Callable[[str], Path], kind: str) -> None:
    path = copy(kind) / FILES[kind][0]
    whole, draw = path.read_bytes(), random.Random(kind)
    assert RECORDS[kind](path.parent)
    blanks = [at for at, byte in enumerate(whole) if byte in b" \n"]
    end = range(len(whole) - 80, len(whole))  # the seal itself
    for at in {*draw.sample(range(len(whole)), 100), *draw.sample(blanks, 20), *end}:
        other = ord(" ") if whole[at] == ord("\n") else ord("\n") if whole[at] == ord(" ") else draw.randrange(1, 256)
        changed = bytes([other if other != whole[at] else whole[at] ^ 1])  # a blank for a blank: the values stay
        path.write_bytes(whole[:at] + changed + whole[at + 1 :])
        with pytest.raises(DataError, match=path.name):
            RECORDS[kind](path.parent)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_an_earlier_version_says_to_make_it_again(copy: Callable[[str], Path], kind: str) -> None:
    path = copy(kind) / FILES[kind][0]
    values = json.loads(path.read_text())
    values.pop("seal")
    path.write_text(json.dumps({**values, "format": values["format"][:-1] + "1"}, indent=1) + "\n")
    with pytest.raises(DataError, match=r"format.*again"):
        RECORDS[kind](path.parent)


def test_what_is_sealed_is_read_back_and_its_seal_is_its_last_line() -> None:
    text = sealed({"a": "ü", "b": [1.5, None]})
    values = json.loads(text)
    assert values.pop("seal") and values == {"a": "ü", "b": [1.5, None]}
    assert text.splitlines()[-2].startswith(' "seal": "') and text.endswith('"\n}\n')


def test_an_edited_card_is_found_but_no_reason_not_to_train(copy: Callable[[str], Path]) -> None:
    folder = copy("set")
    with open(folder / "README.md", "a") as card:
        card.write("\nOur notes.\n")
    with pytest.raises(DataError, match="README.md"):
        verify_folder(folder, with_core=False)
    assert len(open_dataset(folder)[1])


# Folders of another kind.


def shards_of(made: Path, root: Path) -> Path:
    """The dataset in three shards."""
    inputs = BuildInputs(
        manifests=(open_manifest(made / "manifest"),),
        units=(open_units(made / "units"),),
        tokens=make_tokenizer(root / "tokenizer"),
        tokenizer=load_tokenizer(root / "tokenizer"),
        templates=load_templates("chat"),
    )
    for number in range(3):
        build(inputs, BuildOptions(task="asr", max_reject_rate=1), root / "shards", (number, 3))
    return root / "shards"


def test_all_shards_of_a_dataset_are_proven_by_their_folder(made: Path, tmp_path: Path) -> None:
    folder = shards_of(made, tmp_path)
    documents = load_info(made / "set").documents
    assert verify_folder(folder, with_core=False) == f"3 shards, {documents} documents"
    with open(folder / "00001-of-00003" / "job.json", "a") as job:
        job.write(" ")
    with pytest.raises(DataError, match=r"00001-of-00003.*job\.json"):
        verify_folder(folder, with_core=False)
    shutil.rmtree(folder / "00001-of-00003")
    with pytest.raises(DataError, match="shard 1 of 3 is missing"):
        verify_folder(folder, with_core=False)


def run_folder(root: Path) -> Path:
    for name in ("resolved.toml", "token_map.json", "metrics.jsonl"):
        (root / name).write_text("x")
    return root


def checkpoint(root: Path) -> Path:
    for name in ("manifest.json", "manifest.sha256", "0.safetensors"):
        (root / name).write_text("{}")
    return root


def three_manifests(root: Path) -> Path:
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        (root / name / "manifest.json").write_text("{}")
    return root


def begun(root: Path) -> Path:
    (root / "x.part").mkdir()
    return root / "x"


def listed(*names: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for name in names:
            (root / name).write_text("x")
        return root

    return make


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda root: root / "x", "x: no such folder"),
    "an empty folder": (lambda root: root, "an empty folder"),
    "begun": (begun, "x: unfinished: run the step that makes it again"),
    "a shard begun": (lambda root: begun(root).parent, "unfinished: run the step that makes it again"),
    "a run": (run_folder, "the folder of a training run .resolved.toml is in it."),
    "a checkpoint": (checkpoint, "a checkpoint of a training run .manifest.sha256"),
    "manifests above": (three_manifests, "none itself, but above 3; name .*/a, .*/b, .*/c"),
    "a codec": (listed("codec.json", "centroids.safetensors"), "a codec .codec.json"),
    "a tokenizer": (listed("tokenizer.json"), "a tokenizer .tokenizer.json"),
    "other things": (listed("thesis.txt", "b"), "a folder with b, thesis.txt"),
    "no record of a manifest": (listed("rows.jsonl.gz"), "a manifest without its manifest.json"),
    "no record of units": (listed("units.u16"), "a unit set without its units.json"),
    "no record of a dataset": (listed("tokens.bin"), "a dataset without its dataset.json"),
    "a file": (lambda root: listed("dataset.json")(root) / "dataset.json", "a file; name its folder"),
    "a journal": (listed(".journal.jsonl", "ids.txt"), "the unfinished work of a step"),
}


@pytest.mark.parametrize(("make", "said"), WRONG.values(), ids=WRONG)
def test_another_folder_is_told_by_what_it_is_and_what_was_expected(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    path = make(tmp_path)
    wanted = r"; verify takes the folder of a manifest \(manifest.json in it\), of a unit set .* or of a dataset"
    with pytest.raises(DataError, match=f"{said}.*{wanted}") as error:
        verify_folder(path, with_core=False)
    assert str(error.value).startswith(f"{path}: ")


def test_the_command_proves_each_folder_it_is_given(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(commands, "say", lambda text, *values: said.append(text % values))
    run_prepare_data(["verify", "--no-with-core", "--paths", *(str(made / kind) for kind in FILES)])
    assert [line.split(": whole; ")[0] for line in said] == [str(made / kind) for kind in FILES]
    assert said[0].endswith("16 rows") and "1 shards, " in said[1] and " documents, " in said[2]
    with pytest.raises(DataError, match="an empty folder"):
        run_prepare_data(["verify", "--paths", str(made / "set"), str(tmp_path), "--no-with-core"])
