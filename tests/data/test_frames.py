"""Datasets of continuous frames: built without sound, proved, cut into shards, kept as features, and read back."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.data import Blend, FrameOpener, Reader, load_info, open_task, run_prepare_data
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildOptions
from megatron_most.data.dataset import open_dataset
from megatron_most.data.frame_files import FEATURES, _hear, keep_frames, open_kept
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.merge import merge
from megatron_most.data.reader import Position, Steps
from megatron_most.data.rows import ChatRow, SpeechPart, Turn
from megatron_most.data.spans import AUDIO_LIST, SPAN, SPANS, SpanTable
from megatron_most.data.verify import find_problems, verify
from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import confine
from megatron_most.speech import FrameSettings, open_frames, read_span
from megatron_most.vocab import AUDIO, WAVE
from tests.data_files import RATE, content, kill_often, make_tokenizer
from tests.datasets import sign_again
from tests.frame_files import build_frames, frame_inputs, make_speech


class Corpus:
    def __init__(self, root: Path) -> None:
        self.root, self.audio = root, root / "corpus" / "audio"
        self.speech: Manifest = make_speech(root / "corpus")
        self.tokenizer = root / "tokenizer"
        self.tokens = make_tokenizer(self.tokenizer)
        self.dataset = build_frames(frame_inputs(self.speech, self.tokenizer, stack=2), root / "set")

    def task(self, dataset: Path | None = None, **how: Any) -> Any:
        how = how or {"audio_roots": [str(self.audio)]}
        return open_task([dataset or self.dataset], self.tokens, features_of=FrameOpener(**how))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("frames"))


@pytest.fixture
def copied(corpus: Corpus, tmp_path: Path) -> Path:
    """A dataset that may be damaged."""
    return Path(shutil.copytree(corpus.dataset, tmp_path / "copied"))


def test_a_document_holds_a_begin_wave_id_for_each_frame_and_the_frames_of_its_own_cut(corpus: Corpus) -> None:
    info, documents = open_dataset(corpus.dataset)
    source = open_frames(FrameSettings(stack=2))
    assert info.frames == source.identity and info.frames.width == 78 and len(documents) == 24
    opened = corpus.task().sources[0]
    for number, row in enumerate(corpus.speech.rows()):
        document = opened.document(number)
        wave = read_span(confine(corpus.audio, row.audio), row.start, row.duration, sample_rate=RATE)
        wanted = source([wave])[0]
        assert np.array_equal(document.wave.features_NF, wanted)
        is_frame = np.asarray(document.ids) == corpus.tokens.begin_wave_id
        assert np.array_equal(np.flatnonzero(is_frame), document.wave.places_N) and is_frame.sum() == len(wanted)
        assert set(document.tags[is_frame]) == {AUDIO} and not document.is_trained[is_frame].any()
        assert np.array_equal(np.diff(document.wave.places_N), np.ones(len(wanted) - 1))  # one stretch, no marks in it
        marks = {corpus.tokens.end_wave_id, corpus.tokens.begin_audio_id, corpus.tokens.end_audio_id}
        assert not marks & set(np.asarray(document.ids).tolist())
    assert verify(corpus.dataset).is_whole


def test_frames_may_have_the_tag_of_wave(corpus: Corpus, tmp_path: Path) -> None:
    folder = build_frames(frame_inputs(corpus.speech, corpus.tokenizer, tag="wave"), tmp_path / "d")
    document = corpus.task(folder).sources[0].document(0)
    assert set(document.tags[document.wave.places_N]) == {WAVE} and load_info(folder).options["frames_tag"] == "wave"
    assert verify(folder).is_whole


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_laid_end_to_end_are_the_bytes_of_one_process(corpus: Corpus, tmp_path: Path, workers: int) -> None:
    inputs = frame_inputs(corpus.speech, corpus.tokenizer, stack=2)
    for number in range(3):
        build(inputs, BuildOptions(task="asr", workers=workers), tmp_path / "shards", (number, 3))
    merge(sorted((tmp_path / "shards").glob("*-of-*")), tmp_path / "merged")
    ours, whole = content(tmp_path / "merged"), content(corpus.dataset)
    same = {name for name in whole if ours[name] == whole[name]}
    assert set(whole) - same == {"job.json", "dataset.json"} and {SPANS, AUDIO_LIST} <= same
    assert load_info(tmp_path / "merged").fingerprint == load_info(corpus.dataset).fingerprint


def test_kept_frames_are_those_that_are_heard(corpus: Corpus, tmp_path: Path) -> None:
    source, heard = open_frames(FrameSettings(stack=2)), corpus.task().sources[0]
    for stored, tolerance in (("float32", 0.0), ("float16", 2**-11)):
        out = tmp_path / stored
        for number in (1, 0):
            keep_frames(corpus.dataset, source, out, (number, 2), [corpus.audio], stored=stored)  # type: ignore
        kept = corpus.task(kept=[str(out)]).sources[0]
        for number in range(len(heard)):
            ours, wanted = (one.document(number).wave.features_NF for one in (kept, heard))
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance * 1e-3)
        open_kept(out).verify()


def test_keeping_frames_killed_again_and_again_leaves_the_same_bytes(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_most.data.frame_files._AT_ONCE", 1)
    source, pause_s = open_frames(FrameSettings(stack=2)), 0.0

    def hear(*of: Any) -> np.ndarray:
        time.sleep(pause_s)
        return _hear(*of)

    monkeypatch.setattr("megatron_most.data.frame_files._hear", hear)

    def keep(out: Path) -> None:
        keep_frames(corpus.dataset, source, out, (0, 1), [corpus.audio])

    keep(tmp_path / "unbroken")
    pause_s = 0.1  # between two of its entries the job lives longer than it is let live after the first
    assert kill_often(lambda: keep(tmp_path / "killed"), tmp_path / "killed", seed=3, kills=8) >= 4
    assert content(tmp_path / "killed") == content(tmp_path / "unbroken")


def test_a_batch_has_features_at_their_places_and_only_places_where_none_are_needed(corpus: Corpus) -> None:
    tasks = corpus.task(), corpus.task(needs_features=False)
    readers = [Reader(Blend([task]), row_length=96, seed=1, token_map=corpus.tokens, window=24) for task in tasks]
    heard, told = (first_step(reader).batches[0] for reader in readers)
    is_wave = heard.tokens_BS == corpus.tokens.begin_wave_id
    assert heard.is_packed and is_wave.any() and (heard.is_wave_BS == is_wave).all()
    assert told.wave_BSF is None and (told.is_wave_BS == is_wave).all()
    assert not heard.wave_BSF[~is_wave].any() and heard.wave_BSF[is_wave].abs().sum(-1).all()
    for r, row in enumerate(first_step(readers[0]).rows):
        at = 0
        for piece in row.pieces:
            wanted = tasks[0].sources[0].document(piece.document).wave.features_NF
            size = piece.stop - piece.start - 1
            here = slice(at, at + size)
            assert np.array_equal(heard.wave_BSF[r, here][is_wave[r, here]].numpy(), wanted)
            at += size


def test_a_document_split_over_rows_keeps_each_frame_once(corpus: Corpus) -> None:
    task = replace(corpus.task(), long_policy="split")
    reader = Reader(Blend([task]), row_length=16, seed=1, token_map=corpus.tokens, window=24)
    rows, _ = reader.take_window(Position())
    assert any(piece.start for row in rows for piece in row.pieces)
    batch = reader.batch(rows)
    is_wave = batch.tokens_BS == corpus.tokens.begin_wave_id
    assert (batch.is_wave_BS == is_wave).all()
    table = SpanTable(corpus.dataset, open_dataset(corpus.dataset)[1].lengths)
    assert int(is_wave.sum()) == int(table.frames_before[-1])
    assert batch.wave_BSF[is_wave].abs().sum(-1).all()


def first_step(reader: Reader) -> Any:
    with Steps(reader, Position(), rows=8, micro_batch_size=8) as steps:
        return next(steps)


def test_user_speech_of_a_chat_is_frames_and_the_assistants_is_units(corpus: Corpus, tmp_path: Path) -> None:
    about: dict[str, Any] = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")
    ids = [row.id for row in corpus.speech.rows()]
    with ManifestWriter(tmp_path / "chats", kind="chat", **about) as out:
        for number, heard in enumerate([ids[0], ids[5], "unknown"]):
            turns = [
                Turn(role="user", parts=("Say it back.", SpeechPart(heard))),
                Turn(role="assistant", parts=((1, 2),)),
            ]
            out.add_chat(ChatRow(id=f"c{number}", turns=tuple(turns)))
    inputs = frame_inputs(corpus.speech, corpus.tokenizer, stack=2)
    assert inputs.frames is not None
    chats = (open_manifest(tmp_path / "chats"),)
    inputs = replace(inputs, manifests=chats, frames=replace(inputs.frames, speech=(corpus.speech,)))
    folder = build(inputs, BuildOptions(task="speech-instruct", max_reject_rate=0.5), tmp_path / "d")
    assert load_info(folder).rejects == {"no such utterance": 1} and verify(folder).is_whole
    of_asr, of_chat = corpus.task().sources[0], corpus.task(folder).sources[0]
    for number, row in enumerate((0, 5)):
        document = of_chat.document(number)
        assert np.array_equal(document.wave.features_NF, of_asr.document(row).wave.features_NF)
        units = np.isin(document.ids, [corpus.tokens.first_unit_id + 1, corpus.tokens.first_unit_id + 2])
        assert units.sum() == 2 and document.is_trained[units].all()


def test_what_cannot_be_made_of_frames_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    inputs = frame_inputs(corpus.speech, corpus.tokenizer)
    with pytest.raises(DataError, match="tts has no speech that is only heard, and frames cannot be learnt"):
        build(inputs, BuildOptions(task="tts"), tmp_path / "d")
    assert inputs.frames is not None
    elsewhere = replace(inputs, frames=replace(inputs.frames, audio_root=tmp_path))
    with pytest.raises(DataError, match="missing file"):
        build_frames(elsewhere, tmp_path / "d")


def test_sound_that_is_gone_or_changed_is_told_with_its_document(corpus: Corpus, tmp_path: Path) -> None:
    name = "document asr/r0-c0: r0.flac: "
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name}missing: not in .*empty; give where it is"):
        corpus.task(audio_roots=[str(tmp_path / "empty")]).sources[0].document(0)
    shorter = tmp_path / "shorter"
    shorter.mkdir()
    wave, _ = soundfile.read(corpus.audio / "r0.flac")
    soundfile.write(shorter / "r0.flac", wave[: len(wave) // 2], RATE)
    with pytest.raises(DataError, match=f"{name}changed: [0-9]+ bytes in .*, and [0-9]+ when the dataset was built"):
        corpus.task(audio_roots=[str(shorter)]).sources[0].document(0)
    both = corpus.task(audio_roots=[str(shorter), str(corpus.audio)]).sources[0]  # the first that fits counts
    assert both.document(0).wave is not None
    with pytest.raises(DataError, match="neither kept nor is there sound to make them of; give data.frames"):
        corpus.task(kept=[])
    with pytest.raises(DataError, match="no such folder; give where the audio is"):
        corpus.task(audio_roots=[str(tmp_path / "nowhere")])


def test_features_of_another_number_or_not_finite_are_told_with_their_document(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = corpus.task().sources[0]
    for change, told in (
        (lambda found: found[:-1], r"frames of 78 numbers, where the dataset has \d+ of 78"),
        (lambda found: found * np.float32("nan"), "features hold NaN or infinity"),
    ):
        heard = opened.features.features
        with monkeypatch.context() as patch:
            patch.setattr(opened.features, "features", lambda *which, c=change, h=heard: c(h(*which)))
            with pytest.raises(DataError, match=rf"document asr/r0-c0: r0.flac from 0 s: .*{told}"):
                opened.document(0)


def test_frames_of_another_source_or_dataset_are_refused(corpus: Corpus, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has frames of mfcc-40ms-x2 .*, not of mfcc-40ms "):
        keep_frames(corpus.dataset, open_frames(FrameSettings()), tmp_path / "k", (0, 1), [corpus.audio])
    other = build_frames(frame_inputs(corpus.speech, corpus.tokenizer), tmp_path / "other")
    keep_frames(other, open_frames(FrameSettings()), tmp_path / "of-other", (0, 1), [corpus.audio])
    opener = FrameOpener(kept=[str(tmp_path / "of-other")], audio_roots=[str(corpus.audio)])
    open_task([corpus.dataset], corpus.tokens, features_of=opener)
    with pytest.raises(ConfigError, match="data.frames = '.*of-other': frames of no dataset of this run"):
        opener.require_all_used()
    with pytest.raises(DataError, match="its source of frames is .*, but .* datasets taken as one must agree"):
        opener = FrameOpener(audio_roots=[str(corpus.audio)])
        open_task([corpus.dataset, other], corpus.tokens, features_of=opener)
    info = load_info(copied)
    assert info.frames is not None
    replace(info, frames=replace(info.frames, hash="0" * 64)).save(copied)
    with pytest.raises(DataError, match="other weights, layer or settings; give the model that the data was made with"):
        corpus.task(copied)


def damaged_span(name: str, value: float, number: int = 1) -> Any:
    def damage(folder: Path) -> None:
        records = np.fromfile(folder / SPANS, SPAN)
        records[name][number] = value
        records.tofile(folder / SPANS)

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damaged_span("document", 90), "span 1 is of no document"),
        (damaged_span("place", 10**6), "span 1 does not fit its document"),
        (damaged_span("frames", 0), "span 1 does not fit its document"),
        (damaged_span("audio", 3), "span 1 is of no recording of the list"),
        (damaged_span("start", float("nan")), "span 1 has no such time"),
        (lambda folder: (folder / SPANS).write_bytes(bytes(5)), "5 bytes are no records"),
        (lambda folder: (folder / AUDIO_LIST).write_text("12\tr0"), "its last line is not whole"),
        (damaged_span("place", 3), "begin wave ids do not stand where its 1 spans say|0 of them|of them within"),
    ],
)
def test_a_damaged_sidecar_is_found(corpus: Corpus, copied: Path, damage: Any, told: str) -> None:
    damage(copied)
    assert any("sha256" in problem or "bytes" in problem for problem in find_problems(copied).problems)
    sign_again(copied)  # what hashes cannot find is left to find
    problems = find_problems(copied).problems
    assert any(re.search(told, problem) for problem in problems), problems
    with pytest.raises(DataError, match=told):
        corpus.task(copied).sources[0].document(1)


def test_damaged_kept_frames_are_found(corpus: Corpus, tmp_path: Path) -> None:
    keep_frames(corpus.dataset, open_frames(FrameSettings(stack=2)), tmp_path / "k", (0, 1), [corpus.audio])
    data = bytearray((tmp_path / "k" / FEATURES).read_bytes())
    data[100] ^= 1
    (tmp_path / "k" / FEATURES).write_bytes(data)
    with pytest.raises(DataError, match=r"features.bin: damaged \(its sha256"):
        open_kept(tmp_path / "k").verify()
    (tmp_path / "k" / FEATURES).write_bytes(data[:-2])
    with pytest.raises(DataError, match="features.bin: .* bytes where frames.json says"):
        open_kept(tmp_path / "k")


def test_the_command_line_builds_keeps_and_verifies(corpus: Corpus, tmp_path: Path) -> None:
    at = {"manifest": corpus.speech.folder, "tokenizer": corpus.tokenizer, "out": tmp_path / "d"}
    common = [word for name, path in at.items() for word in (f"--{name}", str(path))]
    common += ["--task", "asr", "--tokens", str(corpus.tokenizer / "token_map.json")]
    run_prepare_data(["build", *common, "--speech", "frames", "--frames.stack", "2"])
    assert load_info(tmp_path / "d").fingerprint == load_info(corpus.dataset).fingerprint
    assert "--frames.kind mfcc --frames.frame-ms 40 --frames.stack 2" in (tmp_path / "d" / "README.md").read_text()
    kept = ["--out", str(tmp_path / "k"), "--audio-root", str(corpus.audio), "--stored", "float32"]
    run_prepare_data(["frames", "--dataset", str(tmp_path / "d"), *kept])
    run_prepare_data(["verify", "--paths", str(tmp_path / "d"), str(tmp_path / "k")])
    assert corpus.task(kept=[str(tmp_path / "k")]).sources[0].document(3).wave.features_NF.any()
    with pytest.raises(DataError, match="are for --speech frames; give it too"):
        run_prepare_data(["build", *common[:-6], "--frames.stack", "2", *common[-6:]])
