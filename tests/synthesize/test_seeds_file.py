"""Seeds: what is wrong with one is told and counted, the others are used; a file without any is an error."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from megatron_most.errors import DataError
from megatron_most.speech.judge_pocketsphinx import unknown_words
from megatron_most.synthesize.phrases import PROMPTS
from megatron_most.synthesize.seeds import Fact, load_seeds

ROOT = Path(__file__).resolve().parent.parent.parent
_NAMED = re.compile(r"\{[a-z_]+\}")


def write(folder: Path, text: str, name: str = "seeds.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_and_json_lines_say_the_same(tmp_path: Path) -> None:
    toml = write(
        tmp_path,
        """
        [[personas]]
        name = "a cook"
        says = ["Quick one."]
        [[topics]]
        name = "tides"
        facts = ["The Moon pulls 2 times.", { ask = "How many?", say = "There are two." }]
        """,
    )
    lines = write(
        tmp_path,
        '{"topic": "tides", "facts": ["The Moon pulls 2 times.", {"ask": "How many?", "say": "There are two."}]}\n\n'
        '{"persona": "a cook", "says": ["Quick one."]}\n',
        "seeds.jsonl",
    )
    one, other = load_seeds(toml), load_seeds(lines)
    assert one == other
    assert one.topics[0].facts == (Fact("The Moon pulls two times."), Fact("There are two.", "How many?"))
    assert one.bad == ()


def test_bad_seeds_are_told_one_by_one_and_the_others_used(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"topic": "bees", "facts": ["A bee dances."]}\n'
        "{not json\n"
        '{"facts": ["of nothing"]}\n'
        '{"topic": "empty", "facts": []}\n'
        '{"topic": "Ebbe", "facts": ["Der Mond zieht das Wasser an, und darum steigt das Meer an der Küste"]}\n'
        '{"topic": "code", "facts": ["Use `f(x)` for it."]}\n'
        '{"topic": "typo", "fact": ["x"]}\n'
        '{"topic": "bees", "facts": ["Again."]}\n'
        f'{{"topic": "long", "facts": ["{"very " * 80}"]}}\n',
        "seeds.jsonl",
    )
    seeds = load_seeds(path)
    assert [topic.name for topic in seeds.topics] == ["bees"]
    assert [(seed.id, seed.reason) for seed in seeds.bad] == [
        ("line 2", "malformed JSON"),
        ("line 3", "malformed seed"),
        ("line 4", "topic without facts"),
        ("line 5", "not English"),
        ("line 6", "holds code"),
        ("line 7", "malformed seed"),
        ("line 8", "seed given twice"),
        ("line 9", "seed too long"),
    ]


@pytest.mark.parametrize("fact", ["月球吸引海水。", "月は海を引く、2回。"])
def test_a_seed_in_another_script_is_told_to_be_no_english(tmp_path: Path, fact: str) -> None:
    lines = f'{{"topic": "bees", "facts": ["A bee dances."]}}\n{{"topic": "tides", "facts": ["{fact}"]}}\n'
    assert [seed.reason for seed in load_seeds(write(tmp_path, lines, "seeds.jsonl")).bad] == ["not English"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("seeds.toml", "", "no topic that can be used"),
        ("seeds.jsonl", "\n\n", "no topic that can be used"),
        ("seeds.jsonl", '{"topic": "x", "facts": []}\n', "the first is line 1: topic without facts"),
        ("seeds.toml", "[[topic]]\nname = 'x'", "topic: not known"),
        ("seeds.toml", "topics = 3", r"write \[\[topics\]\]"),
        ("seeds.toml", "[[topics]", "not TOML"),
        ("seeds.csv", "x", "give a .toml or .jsonl file"),
    ],
)
def test_a_file_without_seeds_is_an_error(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_seeds(write(tmp_path, text, name))


def test_the_example_is_a_dozen_topics_without_a_fault() -> None:
    seeds = load_seeds(ROOT / "examples" / "synthesis" / "seeds.toml")
    assert len(seeds.topics) == 12 and len(seeds.personas) == 5 and not seeds.bad


def test_the_judge_of_the_demo_knows_every_word_that_it_can_say() -> None:
    """A dialogue with a word that is not in its dictionary is set aside."""
    pytest.importorskip("pocketsphinx", reason="pocketsphinx is not installed: pip install pocketsphinx")
    seeds = load_seeds(ROOT / "examples" / "synthesis" / "seeds.toml")
    facts = [fact for topic in seeds.topics for fact in topic.facts]
    phrases = [text for rule in tomllib.loads((PROMPTS / "grammar.toml").read_text()).values() for text in rule]
    texts = [
        *(fact.say for fact in facts),
        *(fact.ask or "" for fact in facts),
        *(topic.name for topic in seeds.topics),
    ]
    texts += [text for persona in seeds.personas for text in persona.says]
    assert unknown_words([*texts, *(_NAMED.sub("", text) for text in phrases)]) == []
