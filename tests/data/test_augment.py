"""Augmented manifests: durations and word times are those of the sound that `units` makes; no order changes a byte."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from megatron_most.config import AugmentConfig
from megatron_most.data.augment import augment_manifest, augmented, augmenter_of
from megatron_most.data.augment_command import Augment
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.commands import run_prepare_data
from megatron_most.data.dataset import load_info, open_dataset
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.manifest import HEADER, Manifest, Utterance, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rows import ChatRow, SpeechPart, Turn
from megatron_most.data.shards import shard_rows
from megatron_most.data.stats_examples import find_examples
from megatron_most.data.tasks import TaskOptions
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import UnitSet, open_units
from megatron_most.errors import ConfigError, DataError
from megatron_most.speech import SpeechCodec, UnitSequence, load_codec, read_span
from megatron_most.vocab import AUDIO, TokenMap
from tests.data_files import (
    RATE,
    content,
    cut,
    kill_often,
    make_codec,
    make_corpus,
    make_tokenizer,
    sound,
    write_manifest,
)

ALL = AugmentConfig(speed=0.6, tempo=0.3, room=0.5, noise=0.5, band=0.3, mulaw=0.3, volume=0.5, mp3=0.1)
PACE = AugmentConfig(speed=1.0, speed_range=(1.2, 1.2))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> SpeechCodec:
    return load_codec(make_codec(tmp_path_factory.mktemp("codec") / "c"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_corpus(tmp_path_factory.mktemp("corpus"), recordings=3, cuts=8)


@pytest.fixture(scope="module")
def drawn(corpus: Manifest) -> Manifest:
    out = corpus.folder.with_name("augmented")
    augment_manifest(corpus, out, ALL, copies=2)
    return open_manifest(out)


def extract(
    manifest: Manifest, codec: SpeechCodec, out: Path, shard: tuple[int, int] = (0, 1), **options: Any
) -> UnitSet:
    extract_units(manifest, codec, out, shard, ExtractOptions(**options), manifest.audio_root)
    return open_units(out)


def rows_of(manifest: Manifest) -> list[Utterance]:
    return [row for row in manifest.rows() if isinstance(row, Utterance)]


def test_every_row_comes_so_many_times_with_ids_and_draws_of_its_own(corpus: Manifest, drawn: Manifest) -> None:
    plain, rows = rows_of(corpus), rows_of(drawn)
    assert len(rows) == 2 * len(plain) and len({row.id for row in rows}) == len(rows)
    for number, row in enumerate(rows):
        of = plain[number // 2]
        assert row.augmented is not None and (row.augmented.of, row.augmented.copy) == (of.id, number % 2 + 1)
        assert (row.audio, row.start, row.text, row.speaker) == (of.audio, of.start, of.text, of.speaker)
        assert row.read_duration == of.duration == pytest.approx(row.duration * row.augmented.pace)
    paces = {row.augmented.pace for row in rows if row.augmented}
    assert len(paces) > 15 and min(paces) < 1 < max(paces)
    assert drawn.header.seconds == pytest.approx(sum(row.duration for row in rows), abs=0.01)
    assert "augmented" in drawn.header.source and drawn.header.sha256 != corpus.header.sha256


def test_units_are_those_of_the_changed_sound_and_last_as_long_as_the_row_says(
    corpus: Manifest, drawn: Manifest, codec: SpeechCodec, tmp_path: Path
) -> None:
    units, plain = extract(drawn, codec, tmp_path / "u"), extract(corpus, codec, tmp_path / "plain")
    augmenter = augmenter_of(drawn)
    assert augmenter is not None
    changed = 0
    for number, row in enumerate(rows_of(drawn)):
        wave = read_span(corpus.audio_root / row.audio, row.start, row.read_duration, sample_rate=RATE)
        assert row.augmented is not None
        wanted = codec.encode([augmenter(wave, (row.augmented.of, row.augmented.copy), RATE)])[0]
        found, before = units.find(number), plain.find(number // 2)
        assert found is not None and before is not None
        assert found == wanted
        assert found.num_frames * found.frame_s == pytest.approx(row.duration, abs=0.07)  # frames of 40 ms
        changed += found != before
    assert changed > 30
    assert units.shards[0].header.augmentation == augmenter.augmentation.hash
    assert plain.shards[0].header.augmentation is None
    assert b"augmentation" not in (tmp_path / "plain" / "units.json").read_bytes()


def test_units_are_the_same_for_other_threads_batches_shards_and_after_kills(
    drawn: Manifest, codec: SpeechCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_most.data.extract.CHUNK_ROWS", 5)
    whole = extract(drawn, codec, tmp_path / "one", decode_threads=1)
    monkeypatch.setattr("megatron_most.data.extract.CHUNK_ROWS", 3)
    extract(drawn, codec, tmp_path / "many", decode_threads=4)

    def body() -> None:
        extract(drawn, codec, tmp_path / "killed", decode_threads=2)

    assert kill_often(body, tmp_path / "killed", seed=3, kills=3) >= 2
    for name in ("many", "killed"):
        ours, theirs = content(tmp_path / name), content(tmp_path / "one")
        assert {n for n in theirs if not n.startswith(".")} == {n for n in ours if not n.startswith(".")}
        for file in ("units.u16", "durations.u32", "ends.i64", "rows.i64", "ids.txt", "units.json"):
            assert ours[file] == theirs[file], (name, file)
    for shard in range(2):
        extract_units(drawn, codec, tmp_path / "shards", (shard, 2), ExtractOptions(), drawn.audio_root)
    parts = open_units(tmp_path / "shards")
    assert shard_rows(drawn, (0, 2))[1] < drawn.header.rows
    assert all(parts.find(row) == whole.find(row) for row in range(drawn.header.rows))


def test_word_times_follow_the_speed(codec: SpeechCodec, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.flac", sound(3, 1), RATE)
    row = cut("a", "a.flac", 0.5, 2.4, 3.0, text="one two", alignment={"word": [["one", 0.0, 1.2], ["two", 1.2, 1.2]]})
    plain = write_manifest(tmp_path / "plain", [row], tmp_path / "audio")
    augment_manifest(plain, tmp_path / "fast", PACE, copies=1)
    fast = rows_of(open_manifest(tmp_path / "fast"))[0]
    assert fast.duration == pytest.approx(2.0) and fast.start == 0.5 and fast.read_duration == 2.4
    assert [(w.text, round(w.start, 6), round(w.duration, 6)) for w in fast.words] == [("one", 0, 1), ("two", 1, 1)]


def inputs_of(manifest: Manifest, units: UnitSet, tokenizer: Path) -> BuildInputs:
    return BuildInputs(
        manifests=(manifest,),
        units=(units,),
        tokens=TokenMap.load(tokenizer / "token_map.json"),
        tokenizer=load_tokenizer(tokenizer),
        templates=load_templates("chat"),
    )


def test_datasets_of_it_say_so_and_no_plain_units_pass_for_augmented_ones(
    corpus: Manifest, drawn: Manifest, codec: SpeechCodec, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "tok")
    plain, units = extract(corpus, codec, tmp_path / "plain"), extract(drawn, codec, tmp_path / "u")
    with pytest.raises(DataError, match="none of the unit sets was made from it"):
        build(inputs_of(drawn, plain, tmp_path / "tok"), BuildOptions(task="asr"), tmp_path / "no")
    info = load_info(build(inputs_of(drawn, units, tmp_path / "tok"), BuildOptions(task="asr"), tmp_path / "asr"))
    assert info.documents == drawn.header.rows and "augmented (" in info.provenance[0].source
    assert info.seconds == pytest.approx(drawn.header.seconds, abs=2.5)
    asked = TaskOptions(by="segments")
    with pytest.raises(DataError, match=r"interleaving by segments.*hears recordings as they are"):
        options = BuildOptions(task="interleaved", task_options=asked)
        build(inputs_of(drawn, units, tmp_path / "tok"), options, tmp_path / "seg")


def test_a_row_held_out_stays_so_in_every_copy(
    corpus: Manifest, drawn: Manifest, codec: SpeechCodec, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "tok")
    found = {}
    for name, manifest in (("plain", corpus), ("drawn", drawn)):
        inputs = inputs_of(manifest, extract(manifest, codec, tmp_path / name), tmp_path / "tok")
        options = BuildOptions(task="asr", part="valid", hold_out=0.4, hold_out_by="row")
        folder = build(inputs, options, tmp_path / f"{name}-valid")
        found[name] = (folder / "ids.txt").read_text().split()
    assert 0 < len(found["plain"]) < corpus.header.rows
    assert {id.partition("~")[0] for id in found["drawn"]} == set(found["plain"])
    assert len(found["drawn"]) == 2 * len(found["plain"])


def test_other_settings_files_or_seeds_are_another_manifest_and_the_same_are_the_same_bytes(
    corpus: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "noises").mkdir()
    soundfile.write(tmp_path / "noises" / "n.wav", 0.1 * sound(1, 5), RATE)
    noisy = replace(ALL, noise_folders=(str(tmp_path / "noises"),))
    settings = {
        "a": ALL,
        "again": ALL,
        "seed": replace(ALL, seed=1),
        "db": replace(ALL, noise_db=(0.0, 1.0)),
        "n": noisy,
    }
    made = {name: augment_manifest(corpus, tmp_path / name, config, 1) for name, config in settings.items()}
    assert content(tmp_path / "a") == content(tmp_path / "again")
    assert len({header.sha256 for header in made.values()}) == 4
    hashes = {json.loads((tmp_path / name / HEADER).read_text())["augmentation"]["hash"] for name in settings}
    assert len(hashes) == 4
    (tmp_path / "moved").mkdir()
    (tmp_path / "noises").rename(tmp_path / "moved" / "noises")
    with pytest.raises(DataError, match="put it back, or augment again"):
        augmenter_of(open_manifest(tmp_path / "n"))


def test_noises_given_by_a_relative_path_move_with_the_manifest(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "noises").mkdir(parents=True)
    soundfile.write(home / "noises" / "n.wav", 0.1 * sound(1, 5), RATE)
    monkeypatch.chdir(home)
    augment_manifest(corpus, Path("m/a"), AugmentConfig(noise=1.0, noise_folders=("noises",)), 1)
    home.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    augmenter = augmenter_of(open_manifest(tmp_path / "elsewhere" / "m" / "a"))
    assert augmenter is not None and np.abs(augmenter(sound(1, 1), ("x", 1), RATE) - sound(1, 1)).max() > 0


def test_what_would_hear_recordings_as_they_are_refuses_it(corpus: Manifest, drawn: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its speech is augmented, and another augmentation hears"):
        augment_manifest(drawn, tmp_path / "twice", ALL, 1)
    with pytest.raises(DataError, match="a codec that is fitted hears recordings as they are"):
        run_prepare_data(["fit-codec", "--manifest", str(drawn.folder), "--out", str(tmp_path / "c")])
    row = rows_of(drawn)[0]
    with pytest.raises(DataError, match="do not agree on augmentation"):
        augmented(None, row, sound(1, 1), RATE)
    augmenter = augmenter_of(drawn)
    with pytest.raises(DataError, match="do not agree on augmentation"):
        augmented(augmenter, rows_of(corpus)[0], sound(1, 1), RATE)
    assert row.augmented is not None
    other = replace(row, augmented=replace(row.augmented, pace=row.augmented.pace + 0.01))
    with pytest.raises(DataError, match="of another augmentation than its manifest's"):
        augmented(augmenter, other, sound(1, 1), RATE)


def test_settings_that_do_nothing_and_too_many_copies_are_refused(corpus: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is switched on"):
        augment_manifest(corpus, tmp_path / "a", AugmentConfig(), 1)
    with pytest.raises(DataError, match="--copies 0: give 1 to 100"):
        augment_manifest(corpus, tmp_path / "a", ALL, 0)
    with pytest.raises(ConfigError, match=r"data.augment.voices_folders"):
        augment_manifest(corpus, tmp_path / "a", AugmentConfig(voices=0.5), 1)
    assert not (tmp_path / "a").exists()


def test_the_command_takes_the_default_set_or_a_recipe_and_examples_are_heard_as_changed(
    corpus: Manifest, codec: SpeechCodec, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'extends = "parts/augment"\n[data.augment]\nspeed = 1.0\nspeed_range = [1.25, 1.25]\ntempo = 0.0\n'
    )
    run_prepare_data(
        ["augment", "--manifest", str(corpus.folder), "--out", str(tmp_path / "m"), "--augment", str(recipe)]
    )
    Augment(manifest=corpus.folder, out=tmp_path / "default", seed=7).run()
    fast = open_manifest(tmp_path / "m")
    assert fast.header.seconds == pytest.approx(corpus.header.seconds / 1.25, abs=0.01)
    header = open_manifest(tmp_path / "default").header
    assert header.augmentation is not None and header.augmentation["config"]["seed"] == 7
    examples = find_examples(fast, extract(fast, codec, tmp_path / "u"), count=2)
    for example in examples:
        assert len(example.wave) / RATE == pytest.approx(example.utterance.duration, abs=1e-3)
        assert isinstance(example.units, UnitSequence) and example.utterance.read_duration > example.utterance.duration


def test_users_are_heard_augmented_and_assistants_speak_plainly(
    corpus: Manifest, drawn: Manifest, codec: SpeechCodec, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "tok")
    plain, units = extract(corpus, codec, tmp_path / "plain"), extract(drawn, codec, tmp_path / "u")
    about: dict[str, Any] = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(tmp_path / "chats", kind="chat", **about) as out:
        for n in range(4):
            turns = (
                Turn(role="user", parts=(SpeechPart(f"r0-c{n}"),)),
                Turn(role="assistant", parts=(SpeechPart(f"r1-c{n}"),)),
            )
            out.add_chat(ChatRow(id=f"chat-{n}", turns=turns))
        noisy = (SpeechPart(rows_of(drawn)[0].id),)  # by its own name, in an assistant's mouth
        turns = (Turn(role="user", parts=("hi",)), Turn(role="assistant", parts=noisy))
        out.add_chat(ChatRow(id="noisy", turns=turns))
    inputs = replace(inputs_of(open_manifest(tmp_path / "chats"), plain, tmp_path / "tok"), units=(plain, units))
    first = inputs.tokens.first_unit_id
    for copy in (1, 2):
        folder = build(
            inputs, BuildOptions(task="speech-instruct", copy=copy, max_reject_rate=0.5), tmp_path / f"talk-{copy}"
        )
        info, documents = open_dataset(folder)
        assert info.options.get("copy") == (None if copy == 1 else 2)
        assert (info.documents, info.rejects) == (4, {"no units": 1})
        for n in range(4):
            document = documents.document(n)
            said = [int(id) - first for id in np.asarray(document.ids)[np.asarray(document.tags) == AUDIO]]
            said = [unit for unit in said if 0 <= unit < 16]
            user = units.by_id(f"r0-c{n}~{units.augmentation[:6]}.{copy}")  # type: ignore[index]
            assistant = plain.by_id(f"r1-c{n}")
            assert user is not None and assistant is not None
            assert said == [*user.units.tolist(), *assistant.units.tolist()]
    with pytest.raises(DataError, match="--copy 2: from 1 on, and for chats whose utterances have augmented units"):
        build(replace(inputs, units=(plain,)), BuildOptions(task="speech-instruct", copy=2), tmp_path / "no")
    with pytest.raises(DataError, match="who learns to speak hears recordings as they are"):
        build(inputs_of(drawn, units, tmp_path / "tok"), BuildOptions(task="tts"), tmp_path / "tts")
