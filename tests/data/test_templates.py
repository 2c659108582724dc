"""Template files are data, strictly read; which phrasing a document gets depends on its id alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from megatron_most.data.document import Piece
from megatron_most.data.templates import INSTRUCTED, Slot, draw, fill, join, load_templates, template_names
from megatron_most.errors import DataError
from megatron_most.vocab import AUDIO, TEXT, tiny_token_map

GOOD = """
[format]
begin = "{bos}"
system = "{text}|"
prompt = "Q: {input} A:"
response = " {output}{eos}"
[instructions]
asr = ["write"]
tts = ["speak", "say"]
"""
TOKENS = tiny_token_map()
AUDIO_IDS = np.array([40, 41], np.int32)


def test_the_shipped_templates_open_and_begin_with_the_releases_sentences() -> None:
    assert set(template_names()) == {"chat", "release", "varied"}
    for name in template_names():
        templates = load_templates(name)
        assert templates.name == name and set(templates.instructions) == set(INSTRUCTED)
        assert templates.instructions["asr"][0] == "Transcribe the following speech into text."
        assert templates.instructions["tts"][0] == "Convert the following text into speech."
    release, chat = load_templates("release"), load_templates("chat")
    assert all(len(listed) == 1 for listed in release.instructions.values())
    assert all(len(listed) > 4 for listed in chat.instructions.values())
    varied = load_templates("varied")
    assert (varied.begin, varied.system, varied.prompt) == (chat.begin, chat.system, chat.prompt)
    assert varied.response == chat.response
    for task, listed in varied.instructions.items():
        assert len(listed) >= 3 * len(chat.instructions[task]) and set(chat.instructions[task]) < set(listed)
    bos, eos = Slot("bos"), Slot("eos")
    assert (release.begin, release.system) == ((), None)
    assert release.prompt == (bos, Slot("input"), eos, "\n\nOutput: ")
    assert release.response == (bos, Slot("output"), eos)
    assert (chat.begin, chat.system) == ((bos,), (Slot("text"), "\n\n"))
    assert chat.prompt == ("User: ", Slot("input"), "\n\nAssistant:")
    assert chat.response == (" ", Slot("output"), eos)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[format]", "[form]", "format: missing"),
        ("[format]", "more = 1\n[format]", "more: unknown"),
        ('begin = "{bos}"', "", "format.begin: missing"),
        ('begin = "{bos}"', 'start = "{bos}"\nbegin = "{bos}"', "format.start: unknown"),
        ('begin = "{bos}"', 'begin = "{input}"', "format.begin: unknown placeholder {input}"),
        ('begin = "{bos}"', "begin = 1", "format.begin: not a string"),
        ("Q: {input}", "Q: {inptu}", "format.prompt: unknown placeholder {inptu}"),
        ("Q: {input}", "Q: {", "format.prompt: a brace without its partner"),
        ("Q: {input}", "Q: ", "format.prompt: {input} stands 0 times"),
        ("Q: {input}", "Q: {input}{input}", "format.prompt: {input} stands 2 times"),
        ("{text}|", "{input}|", "format.system: unknown placeholder {input}"),
        ("{output}{eos}", "{output}", "format.response: no {eos} after {output}"),
        ("{output}{eos}", "{eos}{output}", "format.response: no {eos} after {output}"),
        ('asr = ["write"]', "", "instructions.asr: missing"),
        ('asr = ["write"]', 'asr = ["write"]\nast = ["x"]', "instructions.ast: unknown"),
        ('asr = ["write"]', "asr = []", "instructions.asr: not a list of sentences, or empty"),
        ('asr = ["write"]', 'asr = "write"', "instructions.asr: not a list of sentences, or empty"),
        ('asr = ["write"]', 'asr = ["write", " "]', "instructions.asr: ' ' is no sentence"),
        ('asr = ["write"]', 'asr = ["in {language}"]', "instructions.asr: a placeholder in"),
        ('asr = ["write"]', 'asr = ["write", "write"]', "instructions.asr: holds a sentence twice"),
        ("[instructions]", "[instructions", "not readable as TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused_by_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    load_templates(path)
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_templates(path)
    assert str(caught.value).startswith(f"{path}: {says}") and ";" in str(caught.value)


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(DataError, match="caht: cannot be read: No such file or directory; use one of chat, release"):
        load_templates("caht")


def test_the_hash_follows_the_content_not_its_writing(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return load_templates(str(path)).hash

    moved = GOOD.replace('asr = ["write"]\n', "") + '# a comment\nasr = ["write"]\n'
    assert hash_of(GOOD) == hash_of(moved) != hash_of(GOOD.replace("speak", "talk"))
    assert hash_of(GOOD) != hash_of(GOOD.replace('"speak", "say"', '"say", "speak"'))


DRAWN = [3, 7, 2, 1, 3, 7, 5, 5, 0, 1]


def test_draws_are_the_same_in_every_process_and_version() -> None:
    """python's hash() would not be: it is salted anew in each process."""
    assert [draw(8, "chat", "asr", f"asr/{i}") for i in range(10)] == DRAWN


def test_every_phrasing_is_used_about_equally() -> None:
    templates = load_templates("chat")
    for task in INSTRUCTED:
        found = [templates.instruction(task, f"{task}/corpus/{i}") for i in range(4000)]
        shares = [found.count(sentence) / 4000 for sentence in templates.instructions[task]]
        expected = 1 / len(shares)
        assert min(shares) > 0.8 * expected and max(shares) < 1.2 * expected
    assert templates.instruction("asr", "a") == templates.instruction("asr", "a")


def test_keys_that_run_together_are_told_apart() -> None:
    assert [draw(1 << 60, "ab", "c")] != [draw(1 << 60, "a", "bc")]


def contents(parts: list[Piece]) -> list[object]:
    return [part.content if isinstance(part.content, str) else part.content.tolist() for part in parts]


def test_neighbouring_texts_are_one_piece() -> None:
    chat = load_templates("chat")
    parts = join(fill(chat.prompt, ("Say it.\n\n", "word"), TOKENS, False), False)
    assert contents(parts) == ["User: Say it.\n\nword\n\nAssistant:"]
    parts = join(fill(chat.prompt, ("Write.\n\n", AUDIO_IDS, "?"), TOKENS, False), False)
    assert contents(parts) == ["User: Write.\n\n", [40, 41], "?\n\nAssistant:"]
    assert [(part.tag, part.is_trained) for part in parts] == [(TEXT, False), (AUDIO, False), (TEXT, False)]


def test_blanks_before_an_audio_output_are_dropped_and_other_blanks_stay() -> None:
    chat, release = load_templates("chat"), load_templates("release")
    assert contents(join(fill(chat.response, (AUDIO_IDS,), TOKENS, True), True)) == [[40, 41], [TOKENS.eos_id]]
    assert contents(join(fill(chat.response, ("a", AUDIO_IDS), TOKENS, True), True))[0] == " a"
    parts = join(fill(release.prompt, (AUDIO_IDS,), TOKENS, False), False)
    assert contents(parts) == [[TOKENS.bos_id], [40, 41], [TOKENS.eos_id], "\n\nOutput: "]


def test_another_seed_words_the_same_documents_otherwise_and_the_first_as_ever() -> None:
    varied = load_templates("varied")
    ids = [f"asr/{n}" for n in range(400)]
    first = [varied.instruction("asr", id) for id in ids]
    assert first == [varied.instructions["asr"][draw(24, "varied", "asr", id)] for id in ids]
    second = [dataclasses.replace(varied, seed=1).instruction("asr", id) for id in ids]
    assert set(first) == set(second) == set(varied.instructions["asr"])
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 40  # one in 24 by chance
