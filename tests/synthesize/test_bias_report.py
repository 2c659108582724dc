"""The bias report: what is planted is found and named, what is alike is not called biased, by chance or otherwise."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rows import ChatRow, SpeechPart, Turn
from megatron_most.data.unit_set import ARRAYS, FILES, HASHED, HEADER, IDS, REJECTS, UnitHeader
from megatron_most.errors import DataError
from megatron_most.runtime import sha256_file
from megatron_most.speech import CodecIdentity
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize.bias import BiasOptions, BiasReport, compare
from megatron_most.synthesize.bias_measure import js_divergence
from tests.data_files import cut, write_manifest

TOPICS = {
    "cooking": "bread oven flour butter kitchen sugar dough recipe salt pan".split(),
    "travel": "train station ticket harbour island luggage hotel border map bridge".split(),
    "music": "violin concert melody rhythm singer piano orchestra guitar chorus drum".split(),
}
SMALL = "the of and to in is it you that was for on are with as they at be this have".split()
OPTIONS = BiasOptions(topics=3)
OF_DIALOGUES = ("turns", "user length", "assistant length")


def sentence(draw: random.Random, topic: str, length: int) -> str:
    return " ".join(draw.choice(SMALL if draw.random() < 0.5 else TOPICS[topic]) for _ in range(length))


def speech(
    folder: Path, seed: int, *, count: int = 300, weights: tuple[int, int, int] = (1, 1, 1), first: float = 0.0,
    phrase: str = "", words: tuple[int, int] = (6, 18),
) -> Path:  # fmt: skip
    """Utterances by twenty speakers. `first`: the share that one of them says alone; `phrase` begins each utterance."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        [topic] = draw.choices(list(TOPICS), weights)
        text = f"{phrase} {sentence(draw, topic, draw.randint(*words))}".strip()
        speaker = 0 if draw.random() < first else draw.randrange(20)
        seconds = round(0.4 * len(text.split()), 3)
        said = {"text": text, "speaker": f"{folder.name}-{speaker}"}
        rows.append(cut(f"{folder.name}-{number}", f"{number}.wav", 0, seconds, seconds, **said))
    write_manifest(folder, rows, folder.parent)
    return folder


def units(folder: Path, seed: int, *, count: int = 200, favourite: float = 0.0, hash: str = "c" * 64) -> Path:
    """A unit set of random units; `favourite`: the share of unit 7 beyond its due."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    lengths = draw.integers(20, 60, count)
    codes = draw.integers(0, 50, lengths.sum()).astype(np.uint16)
    codes[draw.random(len(codes)) < favourite] = 7
    arrays = {
        "units.u16": codes, "durations.u32": draw.integers(1, 4, len(codes)), "ends.i64": np.cumsum(lengths),
        "rows.i64": np.arange(count),
    }  # fmt: skip
    for name, array in arrays.items():
        (folder / name).write_bytes(array.astype(ARRAYS[name]).tobytes())
    (folder / IDS).write_text("".join(f"{folder.name}-{n}\n" for n in range(count)))
    (folder / REJECTS).write_text("")
    (folder / "job.json").write_text("{}")
    assert set(FILES) < set(HASHED)
    header = UnitHeader(
        codec=CodecIdentity(name="tiny", hash=hash, num_units=50, sample_rate=16000, frame_s=0.04),
        manifest_sha256="d" * 64, manifest_rows=count, corpus="x", split="train", shard=(0, 1), first_row=0,
        last_row=count, utterances=count, units=len(codes), seconds=1.0,
        files={name: ((folder / name).stat().st_size, sha256_file(folder / name)) for name in HASHED},
    )  # fmt: skip
    (folder / HEADER).write_text(header.to_json())
    return folder


def dialogues(
    folder: Path, seed: int, *, count: int = 300, user: tuple[int, int] = (3, 6), assistant: tuple[int, int] = (20, 30),
    exchanges: tuple[int, ...] = (2, 3), user_speaks: bool = False,
) -> Path:  # fmt: skip
    """Chats; `user` and `assistant` are ranges of words a turn, `exchanges` what their number is drawn of."""
    draw = random.Random(seed)
    about = dict(corpus=folder.name, split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(folder, kind="chat", **about) as out:
        for number in range(count):
            [topic], turns = draw.choices(list(TOPICS)), []
            for at in range(draw.choice(exchanges)):
                said = sentence(draw, topic, draw.randint(*user))
                asked = SpeechPart(utterance=f"spoken-{number}-{at}") if user_speaks else said
                turns.append(Turn(role="user", parts=(asked,)))
                turns.append(Turn(role="assistant", parts=(sentence(draw, topic, draw.randint(*assistant)),)))
            out.add_chat(ChatRow(id=f"{folder.name}-{number}", turns=tuple(turns)))
    return folder


def biased(found: BiasReport) -> set[str]:
    return {one.name for one in found.findings if one.is_biased}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("real") / "real", seed=1)


@pytest.fixture(scope="module")
def real_dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dialogues(tmp_path_factory.mktemp("real") / "chats", seed=1)


def test_two_draws_of_one_source_are_not_called_biased(tmp_path: Path, real: Path) -> None:
    sides = [units(tmp_path / name, seed) for seed, name in enumerate(("one", "other"))]
    found = compare([speech(tmp_path / "again", seed=2)], [real], sides[:1], sides[1:], OPTIONS)
    assert biased(found) == set() and found.verdict() == "no difference beyond chance"
    assert len(found.findings) == 11 and set(found.left_out) == set(OF_DIALOGUES)
    assert all(one.divergence <= 1.5 * one.chance for one in found.findings)


def test_two_draws_of_dialogues_are_not_called_biased(tmp_path: Path, real_dialogues: Path) -> None:
    found = compare([dialogues(tmp_path / "again", seed=2)], [real_dialogues], (), (), OPTIONS)
    assert biased(found) == set() and set(found.left_out) == {"speakers", "seconds", "units"}
    assert set(OF_DIALOGUES) < {one.name for one in found.findings}
    assert all(0 < one.divergence <= 1.5 * one.chance for one in found.findings if one.name in OF_DIALOGUES)


def test_few_dialogues_among_many_utterances_are_not_called_biased(tmp_path: Path) -> None:
    """Chance is dealt among the dialogues alone: dealt among all rows, each side would have had 160 of them, not 20."""
    shape = dict(user=(1, 60), assistant=(1, 60), exchanges=tuple(range(1, 9)))
    real, called = dialogues(tmp_path / "real", seed=1, **shape), 0
    for seed in range(2, 7):
        few = dialogues(tmp_path / f"few-{seed}", seed, count=20, **shape)
        ours = [few, speech(tmp_path / f"said-{seed}", seed)]
        found = compare(ours, [real], (), (), BiasOptions(topics=3, least=0.0))
        called += sum(one.is_biased for one in found.findings if one.name in OF_DIALOGUES)
    assert called <= 1  # of fifteen, at one in a hundred


@pytest.mark.parametrize(
    ("planted", "caught", "named"),
    [
        ({"user": (20, 30), "assistant": (3, 6)}, {"user length", "assistant length"}, "16 to 22.6"),
        ({"exchanges": (1, 1, 1, 8)}, {"turns"}, "2 turns"),
        ({"assistant": (3, 6)}, {"length", "assistant length"}, "4 to 5.66"),
    ],
    ids=["sides", "exchanges", "answers"],
)
def test_a_planted_bias_of_dialogues_is_caught_and_named(
    tmp_path: Path, real_dialogues: Path, planted: dict, caught: set[str], named: str
) -> None:
    found = compare([dialogues(tmp_path / "ours", seed=2, **planted)], [real_dialogues], (), (), OPTIONS)
    assert biased(found) & {"length", *OF_DIALOGUES} == caught  # and the others are not blamed
    assert all(one.is_ordered for one in found.findings if one.name in caught)
    assert named in [label for one in found.findings if one.name in caught for label, _, _ in one.more]


def test_a_side_whose_turns_have_no_words_is_not_compared_by_them(tmp_path: Path, real_dialogues: Path) -> None:
    spoken = dialogues(tmp_path / "spoken", seed=2, user_speaks=True)
    found = compare([spoken], [real_dialogues], (), (), OPTIONS)
    assert "fewer than 20" in found.left_out["user length"] and "user" in found.left_out["user length"]
    names = {one.name for one in found.findings}
    assert {"turns", "assistant length"} < names and not {"turns", "assistant length"} & biased(found)


@pytest.mark.parametrize(
    ("planted", "caught", "named"),
    [
        ({"first": 0.8}, {"speakers"}, "speaker 1 by rank"),
        ({"weights": (8, 1, 1)}, {"topics", "words"}, "bread"),
        ({"phrase": "as you know"}, {"words", "runs of two", "runs of three"}, "as you know"),
        ({"words": (20, 40)}, {"length", "seconds"}, "22.6 to 32"),
    ],
    ids=["speaker", "topic", "phrase", "length"],
)
def test_a_planted_bias_is_caught_and_named(
    tmp_path: Path, real: Path, planted: dict, caught: set[str], named: str
) -> None:
    found = compare([speech(tmp_path / "ours", seed=2, **planted)], [real], (), (), OPTIONS)
    assert caught <= biased(found)
    more = [label for one in found.findings if one.is_biased for label, _, _ in one.more]
    assert named in more
    if "first" in planted or "weights" in planted:  # and nothing else is blamed: neither touches these
        assert not {"length", "seconds"} & biased(found)


def test_a_favourite_unit_is_caught(tmp_path: Path, real: Path) -> None:
    ours, theirs = units(tmp_path / "ours", 0, favourite=0.15), units(tmp_path / "theirs", 1)
    found = compare([speech(tmp_path / "again", seed=2)], [real], [ours], [theirs], OPTIONS)
    assert biased(found) == {"units", "unit pairs"}
    by_name = {one.name: one for one in found.findings}
    assert by_name["units"].more[0][0] == "[Hu7]" and by_name["unit pairs"].more[0][0] == "[Hu7][Hu7]"


def test_a_difference_too_small_to_speak_of_is_not_called_one(tmp_path: Path, real: Path) -> None:
    ours = speech(tmp_path / "ours", seed=2, weights=(8, 1, 1))
    assert "topics" not in biased(compare([ours], [real], (), (), BiasOptions(topics=3, least=0.9)))


def test_what_neither_side_has_is_no_difference(tmp_path: Path) -> None:
    sides = [speech(tmp_path / name, seed, words=(1, 2)) for seed, name in enumerate(("one", "other"))]
    runs = next(one for one in compare(sides[:1], sides[1:], (), (), OPTIONS).findings if one.name == "runs of three")
    assert runs.divergence == runs.chance == 0 and not runs.is_biased


def test_divergence_is_that_of_the_definition() -> None:
    p, q = np.array([4.0, 0.0, 4.0]), np.array([1.0, 1.0, 2.0])

    def entropy(shares: np.ndarray) -> float:
        return -sum(float(s) * np.log2(s) for s in shares if s)

    p_shares, q_shares = p / 8, q / 4
    wanted = entropy((p_shares + q_shares) / 2) - (entropy(p_shares) + entropy(q_shares)) / 2
    assert js_divergence(p, q) == pytest.approx(wanted, abs=1e-12)
    assert js_divergence(p, p) == 0 and js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1


def test_chats_are_compared_by_turns_and_what_is_missing_is_said(tmp_path: Path, real: Path) -> None:
    draw = random.Random(3)
    about = dict(corpus="c", split="train", licence="CC0-1.0", source="made", normalisation="none")
    with ManifestWriter(tmp_path / "chats", kind="chat", **about) as out:
        for number in range(60):
            turns = [Turn(role=role, parts=(sentence(draw, "music", 9),)) for role in ("user", "assistant") * 2]
            turns[0] = Turn(role="user", parts=(SpeechPart(utterance=f"spoken-{number}"),))  # no words: not 0 words
            out.add_chat(ChatRow(id=f"chat-{number}", turns=tuple(turns)))
    found = compare([tmp_path / "chats"], [real], (), (), OPTIONS)
    assert set(found.left_out) == {"speakers", "seconds", "units", *OF_DIALOGUES}  # utterances are no dialogues
    length = next(one for one in found.findings if one.name == "length")
    assert length.synthetic[length.labels.index("8 to 11.3")] == 1.0  # each turn has nine words
    assert "topics" in biased(found)


def test_the_command_writes_numbers_and_a_page_that_loads_nothing(
    tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = speech(tmp_path / "ours", seed=2, phrase="<script>as you know")
    words = ["bias", "--synthetic", str(ours), "--real", str(real), "--topics", "3"]
    run_synthesize([*words, "--out", str(tmp_path / "b.json"), "--page", str(tmp_path / "b.html")])
    told = capsys.readouterr().out
    assert "BIAS" in told and "runs of three" in told
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert "runs of three" in numbers["verdict"] and numbers["num_items"] == [300, 300]
    page = (tmp_path / "b.html").read_text()
    assert page.count("<svg") == len(numbers["findings"]) == 7
    assert "as you know" in page and "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_page_draws_what_dialogues_differ_in(tmp_path: Path, real_dialogues: Path) -> None:
    ours = dialogues(tmp_path / "ours", seed=2, exchanges=(1, 8))
    words = ["bias", "--synthetic", str(ours), "--real", str(real_dialogues), "--topics", "3"]
    run_synthesize([*words, "--out", str(tmp_path / "b.json"), "--page", str(tmp_path / "b.html")])
    page, found = (tmp_path / "b.html").read_text(), json.loads((tmp_path / "b.json").read_text())
    assert page.count("<svg") == len(found["findings"]) == 8
    assert "<h3>turns · differs</h3>" in page and "<h3>user length</h3>" in page
    turns = next(one for one in found["findings"] if one["name"] == "turns")
    assert turns["labels"] == [f"{n} turns" for n in range(2, 17)]
    assert turns["synthetic"][0] + turns["synthetic"][-1] == 1 and turns["real"][2] + turns["real"][4] == 1


def test_what_cannot_be_compared_is_refused(tmp_path: Path, real: Path) -> None:
    few = speech(tmp_path / "few", seed=2, count=5)
    with pytest.raises(DataError, match="5 synthetic and 300 real rows: too few"):
        compare([few], [real], (), (), OPTIONS)
    one, other = units(tmp_path / "one", 0), units(tmp_path / "other", 1, hash="e" * 64)
    with pytest.raises(DataError, match="extract both with the same"):
        compare([real], [real], [one], [other], OPTIONS)
    with pytest.raises(DataError, match="give both, or neither"):
        compare([real], [real], [one], [], OPTIONS)
    with pytest.raises(DataError, match="--permutations 3"):
        compare([real], [real], (), (), BiasOptions(permutations=3))
