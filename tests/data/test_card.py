"""The data card: complete, the same each time, honest about licences and overlap, and safe from the names in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from megatron_most.data.card import write_card
from megatron_most.data.dataset_info import DatasetInfo, Source
from megatron_most.data.tasks import TASKS
from megatron_most.data.tokenizer import TokenizerIdentity
from megatron_most.speech import CodecIdentity
from megatron_most.vocab import tiny_token_map

SOURCE = Source(
    corpus="librispeech",
    split="train-clean-100",
    licence="CC-BY-4.0",
    source="https://www.openslr.org/12",
    language="en",
    normalisation="lower_case",
    manifest_sha256="ab" * 32,
    rows=28539,
)
INFO = DatasetInfo(
    task="asr",
    tokens=tiny_token_map(),
    codec=CodecIdentity(name="mhubert", hash="c0" * 32, num_units=500, sample_rate=16000, frame_s=0.04),
    tokenizer=TokenizerIdentity("hf", "d1" * 32, 100002),
    templates=("chat", "e2" * 32),
    documents=28500,
    sequences=85500,
    tokens_by_tag={"text": 2_000_000, "audio": 6_000_000, "wave": 0},
    trained_tokens=1_600_000,
    longest=1234,
    seconds=362_160.0,
    untimed_units=0,
    files={"tokens.bin": (32_000_000, "f3" * 32), "tokens.idx": (1_000, "a4" * 32)},
    provenance=(SOURCE, replace(SOURCE, split="train-clean-360", rows=104014)),
    rejects={"missing text": 9, "no units": 30},
    overlaps={"test-clean": 0, "gsm8k": 12},
    options={"shard": [0, 1], "part": "train", "hold_out": 0.01, "refuse_overlap": False, "task.order": None},
)
HOSTILE = [
    "a\n---\nlicense: mit\n---\n# Owned",
    "x | y | z",
    "`code` ```\nfence",
    "<script>alert(1)</script><!--",
    "[link](https://example.org) ![image](https://example.org/x.png)",
    "**bold** _it_ ~~gone~~ # head $x$ &lt;b&gt;",
    "\\| \\",
    "\\",
    "- item\n1. item\n> quote\n    code",
    "|---|---|",
    "\u2028---\u2028\x85---\x0c\x00\u202etxt",
    "yes: [no, {a: 'b\"",
    "",
]


def front(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0])


def shape(card: str) -> list[tuple[str, str]]:
    """What Markdown makes of the body, without the texts."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [(child.type, child.tag) for token in tokens for child in token.children or [] if child.type != "text"]
    return [(token.type, token.tag) for token in tokens] + inline


def texts(card: str) -> list[str]:
    """The texts of the body's cells and paragraphs as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    return ["".join(c.content for c in token.children or []) for token in tokens if token.type == "inline"]


def with_names(name: str) -> DatasetInfo:
    """A data set in which a user chose this for every name there is."""
    bad = replace(SOURCE, corpus=name, split=name, source=name, language=name, normalisation=name)
    bad = replace(bad, licence=f"{name} unlisted")  # whatever the name, a licence to heed
    return replace(
        INFO,
        tokens=replace(INFO.tokens, backbone=name or "x"),
        codec=replace(INFO.codec, name=name) if INFO.codec else None,
        templates=(name, "e2" * 32),
        provenance=(replace(bad, manifest_sha256="cd" * 32), SOURCE),
        rejects={name: 3},
        overlaps={name: 2},
        options={**INFO.options, f"x {name}": name, "list": [name, 1, None]},
    )


def test_the_card_says_what_the_dataset_is() -> None:
    said = texts(write_card(INFO))
    everything = "\n".join(said)
    for words in (
        "28,500 documents of the task asr (speech as units, then its transcript)",
        "train-clean-360", "104,014", "CC-BY-4.0", "https://www.openslr.org/12", "lower_case", "abababababab",
        "2,000,000 (25.0%)", "6,000,000 (75.0%)", "1,600,000 (20.0%)", "8,000,000", "1,234", "100.60", "280.7",
        "mhubert (500 units, 16,000 Hz, a frame each 40 ms, computed in fp32)",
            "c0" * 32, "hf, 100,002 tokens", "d1" * 32, "e2" * 32,
        INFO.tokens.hash, "39 rows; rejects.jsonl names each.", "--hold-out", "0.01", "32,000,000", "f3" * 32,
        "prepare_data.py build --task asr", "prepare_data.py verify",
    ):  # fmt: skip
        assert words in everything or words in write_card(INFO), words
    assert said.index("no units") < said.index("missing text")  # the most frequent first
    assert "shard" not in said[1]
    assert front(write_card(INFO)) == {
        "pretty_name": "asr: librispeech",
        "license": ["cc-by-4.0"],
        "language": ["en"],
        "task_categories": ["automatic-speech-recognition"],
        "size_categories": ["10K<n<100K"],
        "tags": ["megatron-most", "speech-units"],
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_words_of_its_own(task: str) -> None:
    card = write_card(replace(INFO, task=task))
    assert front(card)["task_categories"] and "as the task says" not in card
    assert f"build --task {task} " in card


def test_a_shard_is_not_taken_for_the_whole() -> None:
    assert "shard 3 of 8 (counted from 0), not the whole" in write_card(replace(INFO, options={"shard": [3, 8]}))
    assert "not the whole" not in write_card(INFO) + write_card(replace(INFO, options={}))


@pytest.mark.parametrize(
    ("licence", "hub", "heeded"),
    [
        ("CC0-1.0", ["cc0-1.0"], None),
        ("cc by 4.0", ["cc-by-4.0"], None),
        ("ODC-By 1.0", ["odc-by"], None),
        ("Apache License 2.0", ["apache-2.0"], None),
        ("Public domain (LibriVox audio); Apache-2.0 (cut lists)", ["apache-2.0", "other"], None),
        ("CC0-1.0 (transcripts); European Parliament recordings", ["cc0-1.0", "other"], "not known here as permissive"),
        ("CC-BY-NC-SA-4.0", ["cc-by-nc-sa-4.0"], "not for commercial use; what is derived from it must keep its terms"),
        ("cc-by-sa-3.0", ["cc-by-sa-3.0"], "must keep its terms"),
        ("CC-BY-ND-4.0", ["cc-by-nd-4.0"], "nothing derived"),
        ("free for Non Commercial use", ["other"], "not for commercial use"),
        ("MIT, research only", ["mit", "other"], "not for commercial use"),
        ("CC-BY-4.0 (not for resale)", ["cc-by-4.0"], "has restrictions"),
        ("MIT-like", ["other"], "not known here as permissive"),
        ("unknown", ["unknown"], "unknown terms"),
        ("", ["unknown"], "unknown terms"),
        (" ; ()", ["unknown"], "unknown terms"),
    ],
)
def test_licences_that_need_attention_get_a_line(licence: str, hub: list[str], heeded: str | None) -> None:
    card = write_card(replace(INFO, provenance=(replace(SOURCE, licence=licence),)))
    assert front(card)["license"] == hub
    section = card.split("## Licences that need attention")[1].split("##")[0]
    assert ("None: each licence" in section) == (heeded is None)
    assert heeded is None or heeded in section


def test_overlap_is_told_plainly_whether_unchecked_kept_or_refused() -> None:
    kept, refused, unchecked = (
        texts(write_card(replace(INFO, **changes)))
        for changes in ({}, {"options": {"refuse_overlap": True}}, {"overlaps": {}})
    )
    at = kept.index("gsm8k")
    assert kept[at + 1 : at + 3] == ["12", "kept"] and refused[at + 1 : at + 3] == ["12", "left out"]
    at = kept.index("test-clean")
    assert kept[at + 1 : at + 3] == refused[at + 1 : at + 3] == ["0", "none found"]
    assert any("These rows are in the data" in text for text in kept)
    assert not any("These rows are in the data" in text for text in refused)
    assert any(text.startswith("Not checked. No evaluation set was given") for text in unchecked)
    assert not any("Not checked" in text for text in kept)


def test_without_speech_rejects_or_tokenizer_the_card_says_so() -> None:
    card = write_card(replace(INFO, codec=None, tokenizer=None, rejects={}, seconds=0.0, provenance=(), options={}))
    assert front(card)["tags"] == ["megatron-most", "text"] and front(card)["license"] == ["unknown"]
    assert "language" not in front(card)
    for words in ("none: no speech here", "every row of the manifests could be used", "| hours of speech | none |"):
        assert words in card
    assert "0 (0.0%)" in write_card(replace(INFO, documents=0, tokens_by_tag={"text": 0, "audio": 0, "wave": 0}))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_neither_the_header_nor_the_shape_of_the_card(name: str) -> None:
    card, plain = write_card(with_names(name)), write_card(with_names("plain name"))
    assert shape(card) == shape(plain)
    assert list(front(card)) == list(front(plain)) and card.count("\n") == plain.count("\n")
    shown = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    assert shown in front(card)["pretty_name"]
    assert shown in texts(card)  # what a reader sees is what was given
    assert "cc-by-4.0" in front(card)["license"]


@settings(max_examples=60, deadline=None)
@given(name=st.text(alphabet=st.one_of(st.sampled_from("\n|`\\-#<>[]()*_:'\"&! ab1."), st.characters()), max_size=20))
def test_no_name_changes_the_shape(name: str) -> None:
    assume(not name.startswith("http"))  # becomes a link
    card = write_card(with_names(name))
    assert shape(card) == shape(write_card(with_names("plain name")))
    assert len(front(card)) >= 5


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("/home/ann/corpora/libri", "…/libri"),
        ("/home/ann/My Corpora/", "…/My Corpora"),
        ("~/corpora/libri", "…/libri"),
        ("file:///home/ann/corpora/libri", "…/libri"),
        ("copied from /home/ann/corpora/libri, twice", "copied from …/libri, twice"),
        ("root=/home/ann/libri", "root=…/libri"),
        ("on ~ann/corpora/libri", "on …/libri"),
        (r"on C:\Users\ann\libri", "on …/libri"),
        ("https://home.org/ann/libri?x=1_2", "https://home.org/ann/libri?x=1_2"),
        ("see https://home.org/ann/a and and/or 24/7", "see https://home.org/ann/a and and/or 24/7"),
        ("corpora/libri", "corpora/libri"),
        ("gated/hub-id at 1.0", "gated/hub-id at 1.0"),
    ],
)
def test_places_of_one_machine_are_left_out_and_others_stay(given_: str, shown: str) -> None:
    card = write_card(with_names(given_))
    assert shown in texts(card)
    if shown.startswith("…"):
        assert "home" not in card and "ann/" not in card and "Users" not in card
    assert shown in front(card)["pretty_name"]


def test_equal_infos_give_equal_cards_whatever_the_order_of_their_tables() -> None:
    again = replace(
        INFO,
        rejects=dict(reversed(INFO.rejects.items())),
        options=dict(reversed(INFO.options.items())),
        files=dict(reversed(INFO.files.items())),
    )
    assert write_card(again) == write_card(INFO) == write_card(replace(INFO))
    assert write_card(INFO).endswith("|\n") and "\n\n\n" not in write_card(INFO)
    assert write_card(replace(INFO, documents=1)) != write_card(INFO)
    sizes = [front(write_card(replace(INFO, documents=count)))["size_categories"] for count in (0, 999, 1000, 10**12)]
    assert sizes == [["n<1K"], ["n<1K"], ["1K<n<10K"], ["n>1T"]]
