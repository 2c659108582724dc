"""Dialogues by one offline command: enough of them, varied, resumable, in shards, and read by the next step."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_most.data import run_prepare_data
from megatron_most.errors import DataError
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize.brief import Brief
from megatron_most.synthesize.grammar import GrammarWriter
from megatron_most.synthesize.writer import Draft

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = ROOT / "examples" / "synthesis" / "seeds.toml"
GUIDE = (ROOT / "docs" / "synthesis.md").read_text(encoding="utf-8")
FIRST = next(line for line in GUIDE.splitlines() if "tools/synthesize.py dialogues --seeds" in line)


def make(out: Path, *more: str, seeds: Path = SEEDS) -> dict:
    run_synthesize(["dialogues", "--seeds", str(seeds), "--out", str(out), *more])
    return json.loads((out / "synthesis.json").read_text())


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documented command makes, run as it stands in the guide."""
    folder = tmp_path_factory.mktemp("guide")
    program, *words = shlex.split(FIRST.replace("runs/", f"{folder}/"))
    assert program == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return folder / "synthesis" / "dialogues"


def test_the_documented_command_makes_500_different_dialogues_of_a_dozen_seeds(whole: Path) -> None:
    made, found = rows(whole), json.loads((whole / "diversity.json").read_text())
    assert len(made) == 500 == len({json.dumps(row["messages"]) for row in made})
    assert len(found["topics"]) == 12 and len(found["personas"]) == 5
    assert found["nearest_similarity"]["max"] < 0.8 and found["nearest_similarity"]["median"] < 0.5
    assert 0.15 < found["interrupted_share"] < 0.35  # 0.25 was asked for
    assert set(found["exchanges"]) == {"1", "2", "3", "4"}
    for row in made:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for before, after in zip(row["messages"], row["messages"][1:], strict=False):
            assert before.get("interrupted", False) == after.get("interrupts", False)
            assert before["content"].endswith("—") == before.get("interrupted", False)
    assert max(map(int, found["words_of_assistant"])) <= 75  # 30 s at 2.5 words


def test_killed_and_started_again_the_bytes_are_the_same(whole: Path, tmp_path: Path) -> None:
    program, *words = shlex.split(FIRST.replace("runs/", f"{tmp_path}/"))
    command = [sys.executable, *words]
    out = tmp_path / "synthesis" / "dialogues"
    journal = out.with_name("dialogues.part") / ".journal.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed_at = []
    for commits in (1, 4):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= commits:
                break
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        killed_at.append(json.loads(journal.read_bytes().splitlines()[-1])["progress"]["kept"])
    assert 0 < killed_at[0] < killed_at[1] < 500  # it was killed in the middle, and the second one went on
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert files(out) == files(whole)


def test_run_again_it_does_nothing_and_other_settings_are_refused(whole: Path) -> None:
    before = files(whole)
    make(whole, "--dialogues", "500")
    assert files(whole) == before
    with pytest.raises(DataError, match="begun with seed = 0, now 1"):
        make(whole, "--dialogues", "500", "--seed", "1")


def test_the_data_room_reads_them_and_makes_documents(whole: Path, tmp_path: Path) -> None:
    run_prepare_data(
        ["manifest", "chat", "--files", str(whole / "dialogues.jsonl"), "--name", "synthetic", "--licence", "CC0-1.0",
         "--source", "synthesize.py", "--out", str(tmp_path / "m")]
    )  # fmt: skip
    run_prepare_data(
        ["fit-tokenizer", "--manifest", str(tmp_path / "m"), "--out", str(tmp_path / "t"), "--vocab-size", "512"]
    )
    run_prepare_data(
        ["build", "--task", "text-instruct", "--manifest", str(tmp_path / "m"), "--tokenizer", str(tmp_path / "t"),
         "--tokens", str(tmp_path / "t" / "token_map.json"), "--out", str(tmp_path / "d")]
    )  # fmt: skip
    header = json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert header["documents"] == 500 and not header.get("rejects")


def test_shards_and_their_merge_hold_what_was_wanted_once(tmp_path: Path) -> None:
    for number in range(3):
        run_synthesize(
            ["dialogues", "--seeds", str(SEEDS), "--out", str(tmp_path / "s"), "--dialogues", "50",
             "--shard", f"{number}/3"]
        )  # fmt: skip
    shards = [rows(tmp_path / "s" / f"0000{number}-of-00003") for number in range(3)]
    assert [len(shard) for shard in shards] == [17, 17, 16]
    run_synthesize(["merge", "--dialogues", str(tmp_path / "s"), "--out", str(tmp_path / "m")])
    merged = rows(tmp_path / "m")
    assert merged == [row for shard in shards for row in shard] and len({row["id"] for row in merged}) == 50
    run_synthesize(
        ["merge", "--dialogues", str(tmp_path / "s"), "--out", str(tmp_path / "n"), "--near-duplicate", "0.25"]
    )
    header = json.loads((tmp_path / "n" / "synthesis.json").read_text())
    assert header["rejects"]["near-duplicate"] == 50 - header["dialogues"] > 0


def test_a_shard_that_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        run_synthesize(
            [
                "dialogues",
                "--seeds",
                str(SEEDS),
                "--out",
                str(tmp_path / "s"),
                "--dialogues",
                "4",
                "--shard",
                f"{number}/2",
            ]
        )
    first = tmp_path / "s" / "00000-of-00002"
    text = (first / "dialogues.jsonl").read_text()
    (first / "dialogues.jsonl").write_text(text.replace("tides", "Tides").replace("a", "b", 1))
    with pytest.raises(DataError, match="changed since it was made"):
        run_synthesize(["merge", "--dialogues", str(tmp_path / "s"), "--out", str(tmp_path / "m")])
    first.rename(tmp_path / "away")
    with pytest.raises(DataError, match="1 of 2 shards are finished"):
        run_synthesize(["merge", "--dialogues", str(tmp_path / "s"), "--out", str(tmp_path / "m")])


def test_near_duplicates_are_set_aside_and_counted(tmp_path: Path) -> None:
    near = make(tmp_path / "near", "--dialogues", "60", "--filters.near-duplicate", "0.3")
    assert near["rejects"]["near-duplicate"] > 5 and near["dialogues"] == 60
    found = json.loads((tmp_path / "near" / "diversity.json").read_text())
    assert found["nearest_similarity"]["max"] < 0.3


def test_a_run_that_goes_on_still_knows_what_it_has_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = ["--dialogues", "70", "--filters.near-duplicate", "0.32"]
    whole = make(tmp_path / "whole", *close)
    assert whole["rejects"]["near-duplicate"] > 3
    write, count = GrammarWriter.write, 0

    def stop_later(self: GrammarWriter, brief: Brief) -> Draft:
        nonlocal count
        count += 1
        if count > 68:  # after its first commit
            raise OSError("the power is gone")
        return write(self, brief)

    monkeypatch.setattr(GrammarWriter, "write", stop_later)
    with pytest.raises(OSError, match="the power is gone"):
        make(tmp_path / "out", *close)
    monkeypatch.setattr(GrammarWriter, "write", write)
    make(tmp_path / "out", *close)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_bad_seeds_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(
        '{"topic": "bees", "facts": ["A bee dances to show the way to the flowers.", "A hive has one queen."]}\n'
        '{"topic": "empty", "facts": []}\n'
        '{"topic": "Ebbe", "facts": ["Der Mond zieht das Wasser an, und darum steigt das Meer an der Küste"]}\n'
    )
    header = make(tmp_path / "out", "--dialogues", "5", seeds=seeds)
    assert header["dialogues"] == 5
    assert header["rejects"] == {"topic without facts": 1, "not English": 1}


def test_seeds_that_give_too_little_stop_the_run_and_say_so(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"topic": "bees", "facts": ["A bee dances on the comb to show the way to the flowers."]}\n')
    with pytest.raises(DataError, match="near-duplicate.*raise --max-reject-rate"):
        make(tmp_path / "out", "--dialogues", "5000", "--filters.near-duplicate", "0.3", seeds=seeds)


CHATS = [
    [("user", "What's the capital of Australia?"),
     ("assistant", "The capital is **Canberra**, founded in 1913. It is not Sydney. You do not have to go far.")],
    [("user", "Write me a `for` loop."), ("assistant", "Here:\n```python\nfor i in x: pass\n```")],
    [("user", "Was ist die Hauptstadt?"), ("assistant", "Die Hauptstadt von Österreich ist Wien, und sie ist groß.")],
    [("system", "You are a pirate."), ("user", "Hi"), ("assistant", "Arr.")],
    [("user", "Tell me everything."), ("assistant", "This goes on for ten minutes, as one breath, " * 300)],
    [("user", "How far is it?"),
     ("assistant", "It is about 300 km by train, or 4 hours by car if there is no traffic on the way.")],
]  # fmt: skip


def test_chats_are_put_into_spoken_words_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    chats = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats) + "{broken\n")
    command = ["dialogues", "--chats", str(path), "--out", str(tmp_path / "out"), "--max-reject-rate", "0.9"]
    run_synthesize([*command, "--shape.interruptions", "0"])
    made = rows(tmp_path / "out")
    assert [row["messages"][1]["content"] for row in made] == [
        "The capital is Canberra, founded in nineteen thirteen. It's not Sydney. You don't have to go far.",
        "It's about three hundred kilometers by train, or four hours by car if there is no traffic on the way.",
    ]
    assert [row["origin"] for row in made] == ["chat-chats-1", "chat-chats-6"]
    header = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert header["rejects"] == {
        "holds code": 1, "not English": 1, "a system turn": 1, "turn too long": 1, "malformed JSON": 1,
    }  # fmt: skip


def test_in_rewritten_chats_the_user_cuts_in_and_hears_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in CHATS[5]]}) + "\n")
    command = ["dialogues", "--chats", str(path), "--out", str(tmp_path / "out"), "--shape.interruptions", "1"]
    run_synthesize(command)
    [row] = rows(tmp_path / "out")
    _, cut, user, rest = row["messages"]
    assert cut["interrupted"] and user["interrupts"] and "interrupted" not in rest
    said = cut["content"].removesuffix(" —").split()
    assert "It's about three hundred kilometers by train, or four hours by car".startswith(" ".join(said))
    assert rest["content"].endswith("if there is no traffic on the way.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dialogues", "--out", "x"], "give --seeds FILE, or --chats FILES"),
        (["dialogues", "--out", "x", "--seeds", str(SEEDS), "--dialogues", "0"], "--dialogues 0"),
        (["dialogues", "--out", "x", "--seeds", str(SEEDS), "--max-reject-rate", "1"], "--max-reject-rate 1"),
        (["dialogues", "--out", "x", "--seeds", str(SEEDS), "--filters.near-duplicate", "0"], "near-duplicate 0"),
        (["dialogues", "--out", "x", "--seeds", "nowhere.toml"], "nowhere.toml"),
        (["dialogues", "--out", "x", "--chats", "nowhere.jsonl"], "nowhere.jsonl: .*check the path"),
        (["merge", "--dialogues", "nowhere", "--out", "x"], "no shards here"),
        (["report", "--dialogues", "nowhere", "--out", "x.html"], "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_options_are_refused_by_name(words: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        run_synthesize(words)


def test_the_page_shows_topics_and_examples_and_loads_nothing(whole: Path, tmp_path: Path) -> None:
    run_synthesize(["report", "--dialogues", str(whole), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "honey bees" in page and "cutting in" in page and page.count("<svg") == 4
    assert "http://" not in page and "https://" not in page and "<script" not in page
    run_synthesize(["report", "--dialogues", str(whole), "--out", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == page
