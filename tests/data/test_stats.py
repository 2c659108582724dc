"""What `stats` says of datasets is what is in them; its page loads nothing, escapes everything, and plays the sound."""

from __future__ import annotations

import base64
import io
import re
import sys
import tracemalloc
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_most.data import indexed, stats
from megatron_most.data.dataset import load_info
from megatron_most.data.dataset_info import DatasetInfo
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.index_writer import write_index
from megatron_most.data.manifest import Manifest, open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.stats import LONG, PERCENTILES, DatasetStats, as_text, count, count_speakers, percent, short
from megatron_most.data.stats_page import Example, find_examples, require_page, write_page
from megatron_most.data.unit_set import UnitSet, open_units
from megatron_most.errors import DataError, MostError
from megatron_most.speech import SpeechCodec, load_codec
from megatron_most.vocab import AUDIO, TAG_NAMES, TEXT, TokenMap, deepseek_token_map
from tests.data_files import RATE, cut, make_codec, make_corpus, write_manifest
from tests.datasets import CODEC, SOURCE, TOKENS, random_documents, sign_again, write_dataset
from tests.pages import HOSTILE, STEERING, Seen, require_nothing_loaded

DEEPSEEK = deepseek_token_map(500)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, UnitSet, SpeechCodec]:
    root = tmp_path_factory.mktemp("spoken")
    manifest = make_corpus(root, recordings=4, cuts=6)
    codec = load_codec(make_codec(root / "codec"))
    extract_units(manifest, codec, root / "units", (0, 1), ExtractOptions(), manifest.audio_root)
    return manifest, open_units(root / "units"), codec


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> DatasetStats:
    return count([write_dataset(tmp_path_factory.mktemp("counted") / "one", random_documents(40))])[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, one: DatasetStats, spoken: tuple) -> Seen:
    """A page on which every name is harmless."""
    examples = find_examples(spoken[0], spoken[1], count=1)
    return Seen(full_page(tmp_path_factory.mktemp("plain") / "page.html", one, examples, "plain name"))


def made(lengths: np.ndarray, info: DatasetInfo) -> DatasetStats:
    values, counts = np.unique(lengths, return_counts=True)
    units = np.zeros(info.tokens.num_units, np.int64)
    sums = (int(lengths.sum()), 0, 0)
    return DatasetStats(
        name="made", info=info, tokens_by_tag=sums, trained_tokens=0, unit_counts=units,
        lengths=values, length_counts=counts,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [TOKENS, DEEPSEEK], ids=["uint16", "int32"])
def test_counts_are_those_of_a_plain_walk_over_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: TokenMap
) -> None:
    monkeypatch.setattr(stats, "_TOKENS_AT_ONCE", 37)
    monkeypatch.setattr(indexed, "_DOCUMENTS_AT_ONCE", 50)
    sets = [random_documents(number, seed, tokens) for number, seed in ((230, 1), (1, 2))]
    folders = [write_dataset(tmp_path / f"set{i}", documents, tokens=tokens) for i, documents in enumerate(sets)]
    for found, documents in zip(count(folders), sets, strict=True):
        units = dict.fromkeys(range(tokens.num_units), 0)
        by_tag, trained = dict.fromkeys(TAG_NAMES, 0), 0
        for run in (run for document in documents for run in document.runs):
            by_tag[TAG_NAMES[run.tag]] += len(run.ids)
            trained += len(run.ids) * run.is_trained
            for id in run.ids.tolist():
                if id in tokens.unit_ids:
                    units[tokens.unit_of_id(id)] += 1
        lengths = [document.length for document in documents]
        assert found.unit_counts.tolist() == list(units.values())
        assert found.tokens_by_tag == tuple(by_tag.values())
        assert (found.documents, found.tokens, found.trained_tokens) == (len(documents), sum(lengths), trained)
        assert np.repeat(found.lengths, found.length_counts).tolist() == sorted(lengths)
        assert found.units == sum(units.values())
        assert found.units_per_second == found.units / len(documents)  # the helper writes a second for each
        assert found.hours == len(documents) / 3600
        audio = by_tag["audio"]
        assert found.text_per_audio == (by_tag["text"] / audio if audio else None)
        assert found.trained_share == trained / sum(lengths)
        assert found.unused_units == sum(units[unit] == 0 for unit in range(CODEC.num_units))


def test_ids_next_to_the_units_are_no_units(tmp_path: Path) -> None:
    first, last = DEEPSEEK.unit_ids[0], DEEPSEEK.unit_ids[-1]
    audio = Run(np.array([DEEPSEEK.begin_audio_id, first, first, last, DEEPSEEK.end_audio_id], np.int32), AUDIO, True)
    text = Run(np.array([0, 5, DEEPSEEK.eos_id, 99999], np.int32), TEXT, False)
    [found] = count([write_dataset(tmp_path / "set", [DocumentRuns("a", (text, audio))], tokens=DEEPSEEK)])
    assert np.flatnonzero(found.unit_counts).tolist() == [0, 499]
    assert (found.unit_counts[0], found.unit_counts[499], found.units) == (2, 1, 3)


def test_a_document_of_many_sequences_counts_once_by_its_whole_length(tmp_path: Path) -> None:
    runs = tuple(Run(np.zeros(8001, np.int32), TEXT, number % 2 == 0) for number in range(9))
    [found] = count([write_dataset(tmp_path / "set", [DocumentRuns("a", runs), DocumentRuns("b", runs[:1])])])
    assert found.lengths.tolist() == [8001, 9 * 8001] and found.length_counts.tolist() == [1, 1]
    assert found.longest == 72009 and found.share_longer(4096) == 1 and found.share_longer(8001) == 0.5


def test_percentiles_are_lengths_that_documents_have() -> None:
    draw = np.random.default_rng(0)
    info = load_free_info()
    for size in (1, 2, 3, 7, 100, 1001):
        lengths = draw.lognormal(6, 1.2, size).astype(np.int64) + 1
        found = made(lengths, info)
        wanted = [int(np.percentile(lengths, p, method="inverted_cdf")) for p in (*PERCENTILES, 0.1, 100)]
        assert [found.percentile(p) for p in (*PERCENTILES, 0.1, 100)] == wanted
        assert found.longest == lengths.max()
        for limit in (*LONG, int(lengths[0])):
            assert found.share_longer(limit) == (lengths > limit).mean()


def load_free_info() -> DatasetInfo:
    return DatasetInfo(
        task="asr", tokens=TOKENS, codec=CODEC, tokenizer=None, templates=("chat", ""), documents=0, sequences=0,
        tokens_by_tag={}, trained_tokens=0, longest=0, seconds=0.0, untimed_units=0, files={}, provenance=(),
    )  # fmt: skip


def test_entropy_and_perplexity_of_known_histograms() -> None:
    base = made(np.array([4]), load_free_info())

    def bits(counts: list[int]) -> tuple[float, float]:
        padded = np.array(counts + [0] * (len(base.unit_counts) - len(counts)))
        found = replace(base, unit_counts=padded)
        return found.unit_entropy, found.unit_perplexity

    assert bits([5, 5, 5, 5]) == (2.0, 4.0)
    assert bits([7]) == (0.0, 1.0)
    assert bits([]) == (0.0, 1.0)
    assert bits([2, 1, 1])[0] == pytest.approx(1.5)


def test_without_audio_or_seconds_there_is_no_rate_and_no_ratio(tmp_path: Path) -> None:
    text = [DocumentRuns("a", (Run(np.arange(5, dtype=np.int32), TEXT, True),))]
    [found] = count([write_dataset(tmp_path / "set", text, codec=None, seconds=0.0, task="text-lm")])
    assert found.units_per_second is None and found.text_per_audio is None and found.units == 0
    write_page([found], (), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Units by number" not in page and "Length of documents" in page


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    documents, draw = 300_000, np.random.default_rng(0)
    lengths = draw.integers(1, 50, documents).astype(np.int32)
    total = int(lengths.sum())
    folder = write_dataset(tmp_path / "set", random_documents(1, tokens=DEEPSEEK), tokens=DEEPSEEK)
    units = draw.integers(DEEPSEEK.unit_ids.start, DEEPSEEK.unit_ids.stop, total).astype(np.int32)
    units.tofile(folder / "tokens.bin")
    raw = {"lengths": lengths, "modes": np.full(documents, AUDIO, np.int8), "counts": np.ones(documents, np.int32)}
    for name, array in raw.items():
        array.tofile(folder / name)
    write_index(folder / "tokens.idx", *(folder / name for name in raw), dtype=np.int32)
    by_tag = {"text": 0, "audio": total, "wave": 0}
    replace(
        load_info(folder), documents=documents, sequences=documents, tokens_by_tag=by_tag, trained_tokens=0,
        longest=int(lengths.max()),
    ).save(folder)  # fmt: skip
    sign_again(folder)
    del raw
    tracemalloc.start()
    [found] = count([folder])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.units == total and total * 4 > 25e6
    assert np.array_equal(found.unit_counts, np.bincount(units - DEEPSEEK.first_unit_id, minlength=500))
    assert peak < 16e6, f"{peak / 1e6:.0f} MB for {total * 4 / 1e6:.0f} MB of tokens"


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_folder_without_a_dataset_is_refused_before_any_counting(tmp_path: Path, name: str) -> None:
    good = write_dataset(tmp_path / "good", random_documents(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        count([good, tmp_path / name])


def test_no_dataset_and_the_same_one_twice_are_refused(tmp_path: Path) -> None:
    good = write_dataset(tmp_path / "good", random_documents(3))
    (tmp_path / "link").symlink_to(good)
    with pytest.raises(DataError, match="no data set given"):
        count([])
    with pytest.raises(DataError, match="more than once"):
        count([good, tmp_path / "link"])


@pytest.mark.parametrize("field", ["tokens_by_tag", "trained_tokens", "longest"])
def test_a_dataset_that_says_other_than_it_holds_is_refused(tmp_path: Path, field: str) -> None:
    folder = write_dataset(tmp_path / "set", random_documents(9))
    info = load_info(folder)
    by_tag = {**info.tokens_by_tag, "text": info.tokens_by_tag["text"] + 1, "audio": info.tokens_by_tag["audio"] - 1}
    changed = by_tag if field == "tokens_by_tag" else getattr(info, field) - 1
    replace(info, **{field: changed}).save(folder)
    with pytest.raises(DataError, match=f"{field} = .*verify"):
        count([folder])


def test_names_are_as_long_as_it_takes_to_tell_datasets_apart(tmp_path: Path) -> None:
    folders = [tmp_path / place for place in ("asr/train", "tts/train", "tts/valid")]
    for folder in folders:
        write_dataset(folder, random_documents(2))
    assert [found.name for found in count(folders)] == ["asr/train", "tts/train", "tts/valid"]
    assert [found.name for found in count(folders[1:])] == ["train", "valid"]


def test_the_text_holds_every_dataset_in_120_columns(tmp_path: Path) -> None:
    rejects = ["no units"] * 3 + [f"reason {HOSTILE}"] + [f"a reason of some length, number {i}" for i in range(9)]
    folders = [tmp_path / f"a-dataset-with-a-name-of-more-than-thirty-letters-{i}" for i in range(7)]
    for i, folder in enumerate(folders):
        write_dataset(folder, random_documents(10 + i, seed=i), rejects=rejects)
    found = count(folders)
    text = as_text(found)
    assert max(map(len, text.splitlines())) <= 120
    for one in found:
        assert any(f"{one.documents}" in line.split() for line in text.splitlines() if line.startswith("  documents "))
        assert f"{one.tokens:,}" in text and f"{one.longest:,}" in text and one.name in text
    assert text.count("no units 3") == 7 and "units per second" in text and "median" in text


def test_the_text_steers_no_terminal(one: DatasetStats) -> None:
    bad = replace(one, name=STEERING, info=replace(one.info, task=STEERING, rejects={STEERING: 1}))
    text = as_text([bad])
    assert all(sign.isprintable() or sign == "\n" for sign in text) and "[31mred" in text
    text.encode()


def test_none_and_all_are_told_from_almost_none_and_almost_all() -> None:
    shares = (0.0, 1e-9, 0.0001, 0.05, 0.1, 0.5, 0.9994, 1 - 1e-9, 1.0)
    words = [percent(share) for share in shares]
    assert words == ["0 %", "< 0.01 %", "0.01 %", "5.00 %", "10.0 %", "50.0 %", "99.9 %", "> 99.9 %", "100 %"]
    numbers = (0, 999, 1000, 12345, 999_999, 1_234_567, 45_000_000_000)
    assert [short(n) for n in numbers] == ["0", "999", "1k", "12.3k", "1M", "1.23M", "45B"]


def full_page(out: Path, found: DatasetStats, examples: tuple[Example, ...], name: str) -> str:
    """A page on which everything a user or a corpus can name has this name."""
    source = replace(SOURCE, corpus=name, split=name, licence=name, source=name, language=name, normalisation=name)
    info = replace(
        found.info,
        task=name,
        codec=replace(CODEC, name=name),
        tokens=replace(TOKENS, backbone=name),
        templates=(name, "e" * 64),
        provenance=(source, SOURCE),
        rejects={name: 2, "no units": 1},
        overlaps={name: 2},
    )
    named = [
        replace(
            example,
            utterance=replace(example.utterance, id=name, text=name, speaker=name, language=name),
            codec=replace(example.codec, name=name),
        )
        for example in examples
    ]
    speakers = [stats.SpeakerHours(name, 3, 7200.0), stats.SpeakerHours(None, 1, 3600.0)]
    write_page([replace(found, name=name, info=info)], named, out, speakers)
    return out.read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_anyone(tmp_path: Path, one: DatasetStats, spoken: tuple) -> None:
    examples = find_examples(spoken[0], spoken[1], count=2)
    page = full_page(tmp_path / "page.html", one, examples, "https://example.test/licence")
    assert {"svg", "audio", "table", "style"} <= set(Seen(page).tags)
    require_nothing_loaded(page)


@pytest.mark.parametrize("name", [HOSTILE, f"{STEERING} 多語 عربى"], ids=["html", "control"])
def test_no_name_changes_the_page(tmp_path: Path, one: DatasetStats, spoken: tuple, plain: Seen, name: str) -> None:
    page = full_page(tmp_path / "page.html", one, find_examples(spoken[0], spoken[1], count=1), name)
    seen = Seen(page)
    assert seen.tags == plain.tags
    assert [name for _, name, _ in seen.attributes] == [name for _, name, _ in plain.attributes]
    assert all(sign.isprintable() or sign == "\n" for sign in page)
    if name == HOSTILE:
        assert sum(HOSTILE.strip() in text for text in seen.texts) >= 10
        assert "49" not in [text for text in seen.texts if "7*7" in text]


def test_equal_data_give_equal_pages_and_a_page_is_replaced(tmp_path: Path, one: DatasetStats, spoken: tuple) -> None:
    pages = []
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "page.html").write_text("an old page")
    for out in (tmp_path / "new" / "page.html", tmp_path / "again.htm"):
        write_page([one], find_examples(spoken[0], spoken[1], count=1), out, count_speakers(spoken[0]))
        pages.append(out.read_bytes())
    assert pages[0] == pages[1] and len(pages[0]) > 50_000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_the_page_holds_the_numbers_licences_and_rejects(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", random_documents(40), rejects=["no units", "no units", "missing text"])
    [found] = count([folder])
    write_page([found], (), tmp_path / "page.html")
    texts = Seen((tmp_path / "page.html").read_text()).texts
    for words in (f"{found.tokens:,}", f"{found.units:,}", f"{found.longest:,}", "CC0-1.0", "made up", "no units"):
        assert words in texts, words
    assert "Hours of speakers" not in texts and "Examples" not in texts


def test_the_settings_of_a_user_of_matplotlib_neither_matter_nor_change(tmp_path: Path, one: DatasetStats) -> None:
    import matplotlib

    write_page([one], (), tmp_path / "plain.html")
    with matplotlib.rc_context({"axes.titleweight": "bold", "xtick.bottom": False, "font.size": 30.0}):
        write_page([one], (), tmp_path / "other.html")
        assert matplotlib.rcParams["font.size"] == 30.0
    assert (tmp_path / "plain.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    page = (tmp_path / "plain.html").read_text()
    assert "#fe0" not in page and "var(--audio)" in page  # every colour follows the reader's scheme
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 5 and not any(re.search(r"#[0-9a-f]{6}\b", svg.replace('"#', "")) for svg in drawn)


def sounds(page: str) -> list[tuple[int, np.ndarray]]:
    found = []
    for data in re.findall(r'src="data:audio/wav;base64,([^"]*)"', page):
        with wave.open(io.BytesIO(base64.b64decode(data, validate=True))) as sound:
            assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            found.append((sound.getframerate(), samples))
    return found


def test_examples_play_the_very_samples_of_their_spans(tmp_path: Path, one: DatasetStats, spoken: tuple) -> None:
    manifest, units, codec = spoken
    examples = find_examples(manifest, units, count=3)
    write_page([one], examples, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    played = sounds(page)
    assert len(played) == len(examples) == 3 == len({example.utterance.id for example in examples})
    texts = Seen(page).texts
    for (rate, samples), example in zip(played, examples, strict=True):
        row = example.utterance
        start, count_ = round(row.start * RATE), round(row.duration * RATE)
        file, _ = soundfile.read(manifest.audio_root / row.audio, start=start, frames=count_, dtype="int16")
        assert rate == RATE and np.array_equal(samples, file)
        [again] = codec.encode([example.wave])
        assert again == example.units == units.by_id(row.id)
        shown = [unroll(text) for text in texts if re.fullmatch(r"[\d× ]+", text) and " " in text]
        assert again.per_frame().tolist() in shown
        assert row.text in texts and row.id in texts and row.speaker in texts


def unroll(text: str) -> list[int]:
    parts = (part.split("×") for part in text.split())
    return [int(part[0]) for part in parts for _ in range(int(part[1]) if len(part) > 1 else 1)]


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path, one: DatasetStats, spoken: tuple) -> None:
    [example] = find_examples(spoken[0], spoken[1], count=1)
    loud = np.array([0.0, 1.0, -1.0, 1.5, -1.5, 0.5] * 2000, np.float32)
    write_page([one], [replace(example, wave=loud)], tmp_path / "page.html")
    [(_, samples)] = sounds((tmp_path / "page.html").read_text())
    assert samples[:6].tolist() == [0, 32767, -32768, 32767, -32768, 16384]


def test_examples_depend_on_the_seed_and_not_on_the_shards(tmp_path: Path, spoken: tuple) -> None:
    manifest, units, codec = spoken
    for shard in range(3):
        extract_units(manifest, codec, tmp_path / "units", (shard, 3), ExtractOptions(), manifest.audio_root)
    chosen = [
        [example.utterance.id for example in find_examples(manifest, source, seed=seed)]
        for source, seed in ((units, 0), (open_units(tmp_path / "units"), 0), (units, 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    everything = find_examples(manifest, units, count=100)
    assert [example.utterance.id for example in everything] == [row.id for row in manifest.rows()]


def test_long_utterances_are_examples_only_where_there_are_no_others(tmp_path: Path, spoken: tuple) -> None:
    manifest, _, codec = spoken
    whole = np.concatenate([soundfile.read(manifest.audio_root / f"r{i}.flac")[0] for i in range(4)] * 2)
    soundfile.write(tmp_path / "long.wav", whole, RATE)
    seconds = len(whole) / RATE
    rows = [cut(f"long{i}", "long.wav", i * 0.01, 31.0, seconds) for i in range(8)]
    rows += [cut(f"short{i}", "long.wav", i * 1.0, 0.8, seconds) for i in range(2)]
    mixed = write_manifest(tmp_path / "manifest", rows, tmp_path)
    extract_units(mixed, codec, tmp_path / "units", (0, 1), ExtractOptions(), tmp_path)
    units = open_units(tmp_path / "units")
    assert {example.utterance.id for example in find_examples(mixed, units, count=2)} == {"short0", "short1"}
    assert len(find_examples(mixed, units, count=3)) == 3


def test_audio_that_has_moved_is_found_by_its_new_place_and_else_refused(tmp_path: Path, spoken: tuple) -> None:
    manifest, units, _ = spoken
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in manifest.audio_root.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    lost = replace(manifest, header=replace(manifest.header, audio_root=str(tmp_path / "gone")))
    with pytest.raises(DataError, match="gone.*--audio-root"):
        find_examples(lost, units)
    with pytest.raises(DataError, match="missing file.*--audio-root"):
        find_examples(lost, units, tmp_path)
    here, there = find_examples(manifest, units), find_examples(lost, units, moved)
    assert all(np.array_equal(a.wave, b.wave) for a, b in zip(here, there, strict=True))


def test_a_link_out_of_the_audio_root_is_not_followed(tmp_path: Path, spoken: tuple) -> None:
    manifest, units, _ = spoken
    for path in manifest.audio_root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(DataError, match="leads out of"):
        find_examples(manifest, units, tmp_path)


def test_units_of_another_manifest_are_refused(tmp_path: Path, spoken: tuple) -> None:
    manifest, units, _ = spoken
    files = {**manifest.header.files, "rows.jsonl.gz": (1, "0" * 64)}
    other = replace(manifest, header=replace(manifest.header, files=files))
    with pytest.raises(DataError, match="another manifest"):
        find_examples(other, units)


def test_speakers_have_the_hours_of_their_rows(tmp_path: Path) -> None:
    said = [("ann", 2.0), ("bob", 3.0), (None, 0.5), ("ann", 2.5), ("cem", 4.5)]
    rows = [cut(f"u{i}", "a.wav", 0, t, 9, **({"speaker": s} if s else {})) for i, (s, t) in enumerate(said)]
    found = count_speakers(write_manifest(tmp_path / "manifest", rows, tmp_path))
    assert [(one.speaker, one.utterances, one.seconds) for one in found] == [
        ("ann", 2, 4.5), ("cem", 1, 4.5), ("bob", 1, 3.0), (None, 1, 0.5),
    ]  # fmt: skip


def test_a_manifest_of_texts_has_no_speakers(tmp_path: Path) -> None:
    about = dict(corpus="t", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(tmp_path / "manifest", kind="text", **about) as out:
        out.add_text("a", "words")
    with pytest.raises(DataError, match="a manifest of text"):
        count_speakers(open_manifest(tmp_path / "manifest"))


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_without_its_libraries_the_page_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: DatasetStats, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MostError, match=rf"{name}: not installed.*pip install megatron-most\[data\]") as caught:
        require_page(tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    with pytest.raises(MostError, match="megatron-most"):
        write_page([one], (), tmp_path / "page.html")


def test_a_page_goes_to_a_name_for_pages_only(tmp_path: Path, one: DatasetStats) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dataset.json").write_text("{}")
    for out in (tmp_path / "dataset.json", tmp_path / "folder.html", tmp_path / "page"):
        with pytest.raises(DataError, match="--out"):
            write_page([one], (), out)
    with pytest.raises(DataError, match="cannot be written"):
        write_page([one], (), tmp_path / "file" / "page.html")
    assert (tmp_path / "dataset.json").read_text() == "{}"
