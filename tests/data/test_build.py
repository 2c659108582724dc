"""Datasets: what manifests and units say, token for token; the same bytes for any workers, shards and kills."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile

from megatron_most.data import stats
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.dataset import open_dataset
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.indexed import IndexedDocuments
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.merge import merge
from megatron_most.data.overlap import load_evaluation_set
from megatron_most.data.rows import ChatRow, SpeechPart, Turn
from megatron_most.data.tasks import SPEECH_TASKS, TaskOptions
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.data.verify import verify
from megatron_most.errors import DataError
from megatron_most.speech import load_codec
from megatron_most.vocab import TokenMap
from tests.data_files import (
    RATE,
    content,
    cut,
    kill_often,
    make_codec,
    make_corpus,
    make_tokenizer,
    sound,
    text,
    write_manifest,
)

FORK = multiprocessing.get_context("fork")


class Corpus:
    """Everything a dataset is made from, in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.speech = make_corpus(root / "corpus")
        self.tokens: TokenMap = make_tokenizer(root / "tokenizer")
        self.codec = load_codec(make_codec(root / "codec"))
        folder = extract_units(
            self.speech, self.codec, root / "units", (0, 1), ExtractOptions(), self.speech.audio_root
        )
        self.units = open_units(folder)

    def inputs(self, *manifests: Manifest, **changes: Any) -> BuildInputs:
        made: dict[str, Any] = dict(
            manifests=manifests or (self.speech,),
            units=(self.units,),
            tokens=self.tokens,
            tokenizer=load_tokenizer(self.root / "tokenizer"),
            templates=load_templates("chat"),
        )
        return BuildInputs(**{**made, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("build"))


def texts(folder: Path, count: int, **changes: Any) -> Manifest:
    about: dict[str, Any] = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")
    about |= changes
    with ManifestWriter(folder, kind="text", **about) as out:
        for number in range(count):
            out.add_text(f"{about['corpus']}-{number}", text(number) + f" {number}")
    return open_manifest(folder)


def chat(folder: Path, utterances: list[str]) -> Manifest:
    """A chat for each utterance."""
    about: dict[str, Any] = dict(corpus="c", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(folder, kind="chat", **about) as out:
        for number, utterance in enumerate(utterances):
            user = Turn(role="user", parts=(SpeechPart(utterance),))
            out.add_chat(ChatRow(id=f"c-{number}", turns=(user, Turn(role="assistant", parts=("yes",)))))
    return open_manifest(folder)


def spoken(corpus: Corpus, folder: Path, task: str) -> list[str]:
    """What the documents of a dataset say, decoded: units as <u>."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.root / "tokenizer" / "tokenizer.json"))
    tokens, said = corpus.tokens, []
    with IndexedDocuments(folder) as documents:
        for index in range(len(documents)):
            words, run = [], []
            for id in [*documents.document(index).ids, -1]:
                is_text = 0 <= id < tokens.first_unit_id and id not in (tokens.bos_id, tokens.eos_id)
                if is_text:
                    run.append(int(id))
                    continue
                words.append(tokenizer.decode(run, skip_special_tokens=False)) if run else None
                run = []
                marks = {tokens.bos_id: "<bos>", tokens.eos_id: "<eos>", -1: ""}
                marks |= {tokens.begin_audio_id: "<audio>", tokens.end_audio_id: "</audio>"}
                words.append(marks.get(int(id), f"<{id - tokens.first_unit_id}>"))
            said.append("".join(words))
    return said


def test_asr_and_tts_documents_say_the_utterance_and_its_units(corpus: Corpus, tmp_path: Path) -> None:
    for task in ("asr", "tts"):
        build(corpus.inputs(), BuildOptions(task=task), tmp_path / task)
    asr, tts = (spoken(corpus, tmp_path / task, task) for task in ("asr", "tts"))
    for number, row in enumerate(corpus.speech.rows()):
        units = "".join(f"<{unit}>" for unit in corpus.units.find(number).units)
        assert asr[number].startswith("<bos>User: ") and f"\n\n<audio>{units}</audio>\n\nAssistant:" in asr[number]
        assert asr[number].endswith(f"Assistant: {row.text}<eos>")
        assert tts[number].endswith(f"\n\n{row.text}\n\nAssistant:<audio>{units}</audio><eos>")
    info, documents = open_dataset(tmp_path / "asr")
    first = documents.document(0)
    answer = [int(id) for id, trained in zip(first.ids, first.is_trained, strict=True) if trained]
    assert answer[-1] == corpus.tokens.eos_id and len(answer) < len(first.ids) / 2
    assert info.documents == 48 and info.seconds == pytest.approx(corpus.units.seconds, abs=1e-3)
    assert info.provenance[0].licence == "CC0-1.0" and info.codec == corpus.codec.identity
    assert "CC0-1.0" in (tmp_path / "asr" / "README.md").read_text()


def all_but_the_job(folder: Path) -> dict[str, Any]:
    """Every byte, but what says how it was made: job.json, and its line and the seal of dataset.json."""
    found: dict[str, Any] = dict(content(folder))
    info = json.loads(found["dataset.json"])
    assert found.pop("job.json") and info["files"].pop("job.json") and info.pop("seal")
    return {**found, "dataset.json": json.dumps(info)}


def two_corpora(corpus: Corpus, root: Path) -> BuildInputs:
    """Speech of two manifests, of which some rows have no text and others are too long for units."""
    import gzip

    root.mkdir()
    manifests = []
    for name, seed in (("a", 0), ("b", 40)):
        made = make_corpus(root / name, recordings=3, cuts=8, seed=seed)
        with gzip.open(made.folder / "rows.jsonl.gz") as rows:
            cuts = [{**json.loads(line), "id": f"{name}-{number}"} for number, line in enumerate(rows)]
        for row in cuts[1::5]:
            del row["supervisions"][0]["text"]
        manifests.append(write_manifest(root / name / "m", cuts, made.audio_root, corpus=name))
        options = ExtractOptions(max_seconds=1.6, max_reject_rate=1)
        extract_units(manifests[-1], corpus.codec, root / name / "u", (0, 1), options, made.audio_root)
    known = text(100 + 2)  # what a cut of the first corpus says
    (root / "test.txt").write_text(f"{known}\n")
    units = (open_units(root / "b" / "u"), open_units(root / "a" / "u"))
    evaluation = (load_evaluation_set("test", root / "test.txt", n=4),)
    return corpus.inputs(*manifests, units=units, evaluation=evaluation)


@pytest.mark.parametrize("task", ["asr", "tts", "interleaved", "text-lm"])
def test_any_number_of_workers_and_shards_makes_the_same_bytes(corpus: Corpus, tmp_path: Path, task: str) -> None:
    if task == "text-lm":
        inputs = corpus.inputs(texts(tmp_path / "t", 1500), texts(tmp_path / "t2", 40, corpus="u"), units=())
    else:
        inputs = two_corpora(corpus, tmp_path / "speech")
    options = BuildOptions(task=task, task_options=TaskOptions(by="segments"), max_reject_rate=1)
    build(inputs, options, tmp_path / "one")
    build(inputs, BuildOptions(**{**vars(options), "workers": 3}), tmp_path / "three")
    assert content(tmp_path / "one") == content(tmp_path / "three")
    for count in (2, 5):
        shards = [build(inputs, options, tmp_path / f"{count}", (number, count)) for number in range(count)]
        merge(shards, tmp_path / f"merged-{count}")
        verify(tmp_path / f"merged-{count}")
        assert all_but_the_job(tmp_path / f"merged-{count}") == all_but_the_job(tmp_path / "one")
    verify(tmp_path / "one")
    if task != "text-lm":
        reasons = [json.loads(line)["reason"] for line in (tmp_path / "one" / "rejects.jsonl").open()]
        changes = sum(a != b for a, b in zip(reasons, reasons[1:], strict=False))
        assert changes > 5 and {"missing text", "no units"} <= set(reasons)  # by row, not by reason
        assert (tmp_path / "one" / "overlaps.jsonl").stat().st_size


def test_where_a_long_recording_is_cut_depends_on_no_shard(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_most.data.build.CHUNK_ROWS", 8)
    monkeypatch.setattr("megatron_most.data.build.MOST_ROWS", 16)
    audio = tmp_path / "audio"
    audio.mkdir()
    cuts = []
    for recording, count in (("a", 5), ("b", 35), ("c", 5)):  # b begins within the first chunk
        soundfile.write(audio / f"{recording}.flac", sound(0.5 * count, count), RATE)
        for number in range(count):
            said = {"text": text(number), "speaker": recording}
            cuts.append(cut(f"{recording}-{number}", f"{recording}.flac", 0.5 * number, 0.5, 0.5 * count, **said))
    manifest = write_manifest(tmp_path / "m", cuts, audio)
    extract_units(manifest, corpus.codec, tmp_path / "u", (0, 1), ExtractOptions(), audio)
    inputs = corpus.inputs(manifest, units=(open_units(tmp_path / "u"),))
    options = BuildOptions(task="interleaved", task_options=TaskOptions(by="segments"))
    whole = build(inputs, options, tmp_path / "one")
    ids = (whole / "ids.txt").read_text().split()
    assert [id.split("/")[1] for id in ids] == ["a-0", "b-0", "b-16", "b-32", "c-0"]
    shards = [build(inputs, options, tmp_path / "shards", (number, 9)) for number in range(9)]
    assert [open_dataset(shard)[0].documents for shard in shards][:2] == [1, 3]  # b begins a shard
    merge(shards, tmp_path / "merged")
    assert all_but_the_job(tmp_path / "merged") == all_but_the_job(whole)


def test_shards_of_another_number_and_the_whole_are_refused_beside_shards(corpus: Corpus, tmp_path: Path) -> None:
    options = BuildOptions(task="asr")
    build(corpus.inputs(), options, tmp_path / "d", (0, 3))
    for shard in ((0, 1), (0, 2)):
        with pytest.raises(DataError, match="d/00000-of-00003: is one of 3 shards"):
            build(corpus.inputs(), options, tmp_path / "d", shard)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["00000-of-00003"]


def test_a_shard_proves_the_units_it_reads_and_no_others(corpus: Corpus, tmp_path: Path) -> None:
    for number in range(2):
        extract_units(
            corpus.speech, corpus.codec, tmp_path / "u", (number, 2), ExtractOptions(), corpus.speech.audio_root
        )
    path = tmp_path / "u" / "00001-of-00002" / "durations.u32"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    inputs = corpus.inputs(units=(open_units(tmp_path / "u"),))
    assert open_dataset(build(inputs, BuildOptions(task="asr"), tmp_path / "d", (0, 2)))[0].documents == 24
    with pytest.raises(DataError, match="00001-of-00002/durations.u32: damaged"):
        build(inputs, BuildOptions(task="asr"), tmp_path / "d", (1, 2))
    chats = corpus.inputs(chat(tmp_path / "chat", ["r0-c1"]), units=inputs.units)  # which may name any utterance
    with pytest.raises(DataError, match="00001-of-00002/durations.u32: damaged"):
        build(chats, BuildOptions(task="speech-instruct"), tmp_path / "c")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_at_twenty_random_moments_is_byte_equal(
    corpus: Corpus, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_most.data.build.CHUNK_ROWS", 10)
    monkeypatch.setattr("megatron_most.data.build._COMMIT_S", 0.0)
    inputs = corpus.inputs(texts(tmp_path / "t", 4000), units=())
    options = BuildOptions(task="text-lm", workers=workers)
    build(inputs, options, tmp_path / "unbroken")

    def slowly() -> None:
        from megatron_most.data.build_worker import Worker

        call = Worker.__call__
        Worker.__call__ = lambda self, chunk: (time.sleep(0.004), call(self, chunk))[1]  # type: ignore[method-assign]
        build(inputs, options, tmp_path / "killed")

    assert kill_often(slowly, tmp_path / "killed", workers) >= 20
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")


def test_held_out_speakers_are_in_one_part_only_and_nobody_is_lost(corpus: Corpus, tmp_path: Path) -> None:
    parts = {}
    for part in ("train", "valid"):
        build(corpus.inputs(), BuildOptions(task="asr", part=part, hold_out=0.6), tmp_path / part)
        parts[part] = (tmp_path / part / "ids.txt").read_text().split()
    voices = {part: {id.split("-")[1] for id in ids} for part, ids in parts.items()}
    voices = {part: {id.split("/")[1].split("-")[0] for id in ids} for part, ids in parts.items()}
    assert voices["train"] and voices["valid"] and not voices["train"] & voices["valid"]
    assert len(parts["train"]) + len(parts["valid"]) == 48


def test_chats_take_units_by_utterance_id_and_a_missing_one_is_reported(corpus: Corpus, tmp_path: Path) -> None:
    inputs = corpus.inputs(chat(tmp_path / "chat", ["r0-c1", "gone"]))
    build(inputs, BuildOptions(task="speech-instruct", max_reject_rate=0.5), tmp_path / "d")
    units = "".join(f"<{unit}>" for unit in corpus.units.by_id("r0-c1").units)
    assert spoken(corpus, tmp_path / "d", "x") == [f"<bos>User: <audio>{units}</audio>\n\nAssistant: yes<eos>"]
    [entry] = map(json.loads, (tmp_path / "d" / "rejects.jsonl").read_text().splitlines())
    assert (entry["id"], entry["reason"]) == ("c-1", "no units")


def test_a_unit_that_the_token_map_has_no_place_for_is_told_with_its_manifest_and_row(
    corpus: Corpus, tmp_path: Path
) -> None:
    about: dict[str, Any] = dict(corpus="c", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(tmp_path / "chat", kind="chat", **about) as out:
        turns = (Turn(role="user", parts=((1, 90),)), Turn(role="assistant", parts=("yes",)))
        out.add_chat(ChatRow(id="c-7", turns=turns))
    with pytest.raises(DataError, match=f"^{tmp_path}/chat: c-7: unit 90: the token map has 16 units"):
        build(corpus.inputs(open_manifest(tmp_path / "chat")), BuildOptions(task="speech-instruct"), tmp_path / "d")


def test_overlap_with_an_evaluation_set_is_listed_or_refused(corpus: Corpus, tmp_path: Path) -> None:
    first = next(iter(corpus.speech.rows()))
    (tmp_path / "test.txt").write_text(f"{first.text}\n")
    known = load_evaluation_set("test", tmp_path / "test.txt", n=4)
    inputs = corpus.inputs(evaluation=(known,))
    build(inputs, BuildOptions(task="asr", max_reject_rate=1), tmp_path / "listed")
    hits = [json.loads(line) for line in (tmp_path / "listed" / "overlaps.jsonl").read_text().splitlines()]
    assert first.id in {hit["id"] for hit in hits}
    assert open_dataset(tmp_path / "listed")[0].overlaps["test"] == len({hit["id"] for hit in hits})
    build(inputs, BuildOptions(task="asr", refuse_overlap=True, max_reject_rate=1), tmp_path / "refused")
    kept = set((tmp_path / "refused" / "ids.txt").read_text().split())
    assert kept == set((tmp_path / "listed" / "ids.txt").read_text().split()) - {f"asr/{hit['id']}" for hit in hits}
    rejects = [json.loads(line) for line in (tmp_path / "refused" / "rejects.jsonl").read_text().splitlines()]
    assert [(one["id"], one["reason"], one["detail"]) for one in rejects] == [
        (hit["id"], "overlaps test", f"text of test: {hit['what']}") for hit in hits
    ]
    assert len(hits[0]["what"].split()) >= 4


def test_what_does_not_fit_together_is_refused_before_any_work(corpus: Corpus, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "other", recordings=1, cuts=2, seed=50)
    small = TokenMap.load(corpus.root / "tokenizer" / "token_map.json")
    cases = [
        (corpus.inputs(other), BuildOptions(task="asr"), "none of the unit sets was made from it"),
        (corpus.inputs(corpus.speech, corpus.speech), BuildOptions(task="asr"), "the same rows are given twice"),
        (corpus.inputs(), BuildOptions(task="text-lm"), "a speech manifest, but text-lm needs text"),
        (corpus.inputs(), BuildOptions(task="sing"), "task 'sing': not known"),
    ]
    for inputs, options, wrong in cases:
        with pytest.raises(DataError, match=wrong):
            build(inputs, options, tmp_path / "d")
    assert small.num_units == 16 and not list(tmp_path.glob("d*"))
    assert {"asr", "tts"} <= set(SPEECH_TASKS)


def test_ids_that_two_manifests_share_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    inputs = corpus.inputs(texts(tmp_path / "a", 30), texts(tmp_path / "b", 20), units=())
    with pytest.raises(DataError, match="20 document ids come from more than one row"):
        build(inputs, BuildOptions(task="text-lm"), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_units_of_two_codecs_never_mix(corpus: Corpus, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "other", recordings=1, cuts=2, seed=50)
    codec = load_codec(make_codec(tmp_path / "codec", num_units=8))
    extract_units(other, codec, tmp_path / "units", (0, 1), ExtractOptions(), other.audio_root)
    inputs = corpus.inputs(corpus.speech, other, units=(corpus.units, open_units(tmp_path / "units")))
    with pytest.raises(DataError, match="one dataset has one codec"):
        build(inputs, BuildOptions(task="asr"), tmp_path / "d")


def test_more_units_than_the_token_map_has_places_for_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    tokens = make_tokenizer(tmp_path / "tokenizer", num_units=8)
    inputs = corpus.inputs(tokens=tokens, tokenizer=load_tokenizer(tmp_path / "tokenizer"))
    with pytest.raises(DataError, match="16 units, but the token map has places for 8"):
        build(inputs, BuildOptions(task="asr"), tmp_path / "d")


@pytest.mark.parametrize("name", ["units.u16", "durations.u32", "ends.i64", "rows.i64", "ids.txt"])
def test_damaged_units_are_refused_before_any_work(corpus: Corpus, tmp_path: Path, name: str) -> None:
    import shutil

    shutil.copytree(corpus.root / "units", tmp_path / "units")
    data = bytearray((tmp_path / "units" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "units" / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: damaged"):
        build(corpus.inputs(units=(open_units(tmp_path / "units"),)), BuildOptions(task="asr"), tmp_path / "d")
    assert not list(tmp_path.glob("d*"))


def test_a_shard_without_rows_is_a_shard_and_merges(corpus: Corpus, tmp_path: Path) -> None:
    long = make_corpus(tmp_path / "long", recordings=1, cuts=20)
    extract_units(long, corpus.codec, tmp_path / "units", (0, 1), ExtractOptions(), long.audio_root)
    inputs = corpus.inputs(long, units=(open_units(tmp_path / "units"),))
    build(inputs, BuildOptions(task="asr"), tmp_path / "whole")
    for index in range(3):
        build(inputs, BuildOptions(task="asr"), tmp_path / "shards", (index, 3))
    assert 0 in [open_dataset(folder)[0].documents for folder in (tmp_path / "shards").iterdir()]
    merge(sorted((tmp_path / "shards").iterdir()), tmp_path / "merged")
    for name in ("tokens.bin", "tokens.idx", "ids.txt"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"hold_out": 1.5, "part": "valid"}, "--hold-out 1.5: not a share"),
        ({"hold_out": float("nan"), "part": "valid"}, "--hold-out nan: not a share"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(
    corpus: Corpus, tmp_path: Path, options: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(DataError, match=wrong):
        build(corpus.inputs(), BuildOptions(task="asr", **options), tmp_path / "d")
    assert not list(tmp_path.glob("d*"))


def test_hours_are_those_of_the_units_in_the_documents(corpus: Corpus, tmp_path: Path) -> None:
    """Not of rows that were left out, nor of what interleaving turned into text; merged as built."""
    inputs = two_corpora(corpus, tmp_path / "speech")  # some rows have no text, others no units
    rows = {row.id: row for manifest in inputs.manifests for row in manifest.rows()}
    for task in ("asr", "tts", "audio-lm"):
        info, _ = open_dataset(build(inputs, BuildOptions(task=task, max_reject_rate=1), tmp_path / task))
        ids = (tmp_path / task / "ids.txt").read_text().split()
        wanted = sum(rows[id.split("/", 1)[1]].duration for id in ids)
        assert 0 < len(ids) < len(rows) and info.seconds == pytest.approx(wanted, abs=1e-5), task
        assert info.untimed_units == 0
    options = BuildOptions(task="interleaved", task_options=TaskOptions(by="segments"), max_reject_rate=1)
    info, documents = open_dataset(build(inputs, options, tmp_path / "mixed"))
    first, last = inputs.tokens.unit_ids[0], inputs.tokens.unit_ids[-1]
    counted = sum(
        ((ids := documents.document(i).ids) >= first).sum() - (ids > last).sum() for i in range(len(documents))
    )
    every = [units.find(n) for units in inputs.units for n in range(len(rows))]
    rate = sum(len(one.units) for one in every if one) / sum(one.durations.sum() * one.frame_s for one in every if one)
    assert counted / info.seconds == pytest.approx(rate, rel=0.15)  # it was half of this, as half became text


def test_speech_in_chats_counts_by_its_units_and_what_no_one_timed_is_told(corpus: Corpus, tmp_path: Path) -> None:
    about: dict[str, Any] = dict(corpus="c", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(tmp_path / "chat", kind="chat", **about) as out:
        for number, part in enumerate([SpeechPart("r0-c1"), SpeechPart("gone"), SpeechPart("r0-c2"), (1, 2, 3)]):
            turns = (Turn(role="user", parts=(part,)), Turn(role="assistant", parts=("yes",)))
            out.add_chat(ChatRow(id=f"c-{number}", turns=turns))
    inputs = corpus.inputs(open_manifest(tmp_path / "chat"))
    options = BuildOptions(task="speech-instruct", max_reject_rate=0.5)
    info, _ = open_dataset(build(inputs, options, tmp_path / "d"))
    spoken_units = [corpus.units.by_id(id) for id in ("r0-c1", "r0-c2")]
    assert info.seconds == pytest.approx(sum(one.durations.sum() * one.frame_s for one in spoken_units), abs=1e-5)
    assert info.untimed_units == 3
    [found] = stats.count([tmp_path / "d"])
    assert found.units_per_second == pytest.approx(sum(len(one.units) for one in spoken_units) / info.seconds)
    assert ("units of unknown length", "3") in stats.facts(found)["speech"]
    assert "units of unknown length, in no hours | 3" in (tmp_path / "d" / "README.md").read_text()
    for number in range(2):
        build(inputs, options, tmp_path / "s", (number, 2))
    merge(sorted((tmp_path / "s").iterdir()), tmp_path / "m")
    assert all_but_the_job(tmp_path / "m") == all_but_the_job(tmp_path / "d")
