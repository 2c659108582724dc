"""Codecs, tokenizers and token maps of one's own: made whole or not at all, by one process, once; refused by option."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_most.data import commands, fit, fit_vocabulary
from megatron_most.data.commands import run_prepare_data
from megatron_most.data.manifest import Manifest
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.errors import DataError
from megatron_most.speech import load_codec
from megatron_most.vocab import TokenMap
from tests.data_files import content, make_corpus, make_tokenizer

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_corpus(tmp_path_factory.mktemp("corpus"), recordings=2, cuts=10)


def fit_codec(corpus: Manifest, out: Path, *more: str) -> None:
    run_prepare_data(
        ["fit-codec", "--manifest", str(corpus.folder), "--num-units", "8", "--out", str(out), "--hours", "1", *more]
    )


def fit_words(corpus: Manifest, out: Path, *more: str) -> None:
    words = ["--vocab-size", "300", "--num-units", "8", *more]
    run_prepare_data(["fit-tokenizer", "--manifest", str(corpus.folder), "--out", str(out), *words])


Fit = Callable[..., None]
STEPS: dict[str, tuple[Fit, set[str]]] = {
    "codec": (fit_codec, {"codec.json", "centroids.safetensors", "job.json"}),
    "words": (fit_words, {"tokenizer.json", "tokenizer_config.json", "token_map.json", "job.json"}),
}


@pytest.mark.parametrize(("step", "files"), STEPS.values(), ids=STEPS)
def test_what_is_fitted_is_not_fitted_again_and_other_settings_are_refused(
    corpus: Manifest, tmp_path: Path, step: Fit, files: set[str]
) -> None:
    step(corpus, tmp_path / "out")
    before = content(tmp_path / "out")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert set(before) == files and [path.name for path in tmp_path.iterdir()] == ["out"]
    step(corpus, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    with pytest.raises(DataError, match="out: begun with num_units = 8, now 9"):
        step(corpus, tmp_path / "out", "--num-units", "9")
    assert content(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="mine.*not the folder of such a job"):
        step(corpus, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_is_fitted_can_be_used(corpus: Manifest, tmp_path: Path) -> None:
    fit_codec(corpus, tmp_path / "codec")
    fit_words(corpus, tmp_path / "words")
    assert load_codec(tmp_path / "codec").identity.num_units == 8
    tokens = TokenMap.load(tmp_path / "words" / "token_map.json")
    assert tokens.first_unit_id == load_tokenizer(tmp_path / "words").identity.vocab_size and tokens.num_units == 8


STUCK = {"codec": (fit, "fit_mfcc_codec"), "words": (fit_vocabulary, "fit_tokenizer")}


@pytest.mark.parametrize("name", STEPS)
def test_two_processes_never_fit_into_one_folder(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    step = STEPS[name][0]

    def body() -> None:
        setattr(*STUCK[name], lambda *anything, **more: time.sleep(60))
        step(corpus, tmp_path / "out")

    process = FORK.Process(target=body)
    process.start()
    try:
        while not list(tmp_path.glob("out.part/.claim-0*")):
            time.sleep(0.01)
        with pytest.raises(DataError, match=f"process {process.pid} on .* is writing here"):
            step(corpus, tmp_path / "out")
    finally:
        process.kill()
        process.join()
    step(corpus, tmp_path / "out")  # the other is dead
    assert set(content(tmp_path / "out")) == STEPS[name][1]


def fit_with_limit(step: Fit, corpus: Manifest, out: Path, size: int, pipe: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        step(corpus, out)
    except DataError as error:
        pipe.send(str(error))


@pytest.mark.parametrize("name", STEPS)
def test_a_full_disk_leaves_no_half_folder_and_room_lets_it_be_made(
    corpus: Manifest, tmp_path: Path, name: str
) -> None:
    step, files = STEPS[name]
    ours, theirs = FORK.Pipe(duplex=False)
    child = FORK.Process(target=fit_with_limit, args=(step, corpus, tmp_path / "out", 900, theirs))
    child.start()
    assert ours.poll(60)
    message = ours.recv()
    child.join()
    assert "cannot be written: File too large; make room" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    step(corpus, tmp_path / "out")
    assert set(content(tmp_path / "out")) == files and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_codec_killed_while_it_is_saved_is_saved_anew(
    corpus: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = fit.save_codec

    def killed(codec: Any, folder: Path) -> None:
        save(codec, folder)
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "save_codec", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_codec(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fit_codec(corpus, tmp_path / "out")
    assert set(content(tmp_path / "out")) == STEPS["codec"][1]


def test_sizes_that_cannot_be_are_refused_before_any_folder(corpus: Manifest, tmp_path: Path) -> None:
    for words, said in ((("--vocab-size", "100"), "--vocab-size 100: .* 259"), (("--num-units", "0"), "--num-units 0")):
        with pytest.raises(DataError, match=said):
            fit_words(corpus, tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())


# Token maps of other tokenizers.


def token_map(tokenizer: Path, out: Path, *more: str) -> TokenMap:
    run_prepare_data(["token-map", "--tokenizer", str(tokenizer), "--out", str(out), *more])
    return TokenMap.load(out)


def test_a_tokenizer_json_gets_a_map_by_strings_and_by_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").unlink()
    names = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|pad|>"}
    given: list[str] = []
    for role, name in names.items():
        with pytest.raises(DataError, match=f"names no {role} token; make its map with `token-map --{role} TOKEN`"):
            token_map(tmp_path / "t", tmp_path / "m.json", *given)
        given += [f"--{role}", name]
    said: list[str] = []
    monkeypatch.setattr(commands, "say", lambda text, *values: said.append(text % values))
    tokens = token_map(tmp_path / "t", tmp_path / "new" / "m.json", *given, "--num-units", "30", "--multiple", "100")
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id, tokens.num_units) == (0, 1, 2, 30)
    assert tokens.vocab_size == 400
    assert "300 text tokens, 30 units" in said[0] and "bos 0 (<|begin_of_text|>), eos 1 (<|end_of_text|>)" in said[0]
    ids = ["--bos", "0", "--eos", "1", "--pad", "1"]
    assert token_map(tmp_path / "t", tmp_path / "ids.json", *ids).pad_id == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eos", "<|eot_id|>"), r"no token '<\|eot_id\|>' for eos.*`token-map --eos`.*or its id"),
        (("--pad", "300"), "no token of id 300 for --pad; its ids end at 299"),
        (("--pad", "9" * 30), "no token of id 9{30} for --pad"),
        (("--backbone", "llama", "--eos", "1"), "llama's has 128000; .*token-map --backbone own"),
    ],
)
def test_a_token_that_the_tokenizer_lacks_is_refused_by_its_option(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    make_tokenizer(tmp_path / "t")
    with pytest.raises(DataError, match=said):
        token_map(tmp_path / "t", tmp_path / "m.json", *words)
    assert not (tmp_path / "m.json").exists()


def test_a_sentencepiece_model_gets_a_map(tmp_path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 50), model_writer=model,
        minloglevel=2, vocab_size=32, control_symbols=["<end>"],
    )  # fmt: skip
    (tmp_path / "t.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match="names no pad token; .*`token-map --pad TOKEN`, the EOS token where there is"):
        token_map(tmp_path / "t.model", tmp_path / "m.json")
    tokens = token_map(tmp_path / "t.model", tmp_path / "m.json", "--eos", "<end>", "--pad", "0")
    assert (tokens.bos_id, tokens.eos_id, tokens.pad_id, tokens.first_unit_id) == (1, 3, 0, 32)
    with pytest.raises(DataError, match="no token of id 32 for --eos"):
        token_map(tmp_path / "t.model", tmp_path / "n.json", "--eos", "32", "--pad", "0")


def test_a_llama_map_ends_documents_as_the_instruct_models_do(tmp_path: Path) -> None:
    special = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128009: "<|eot_id|>"}
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": n, "content": special.get(n, f"<|reserved_{n}|>"), **plain} for n in range(128000, 128256)]
    model = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(128000)}, "unk_token": "w0"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
    words = ["--backbone", "llama", "--eos", "<|eot_id|>"]
    tokens = token_map(tmp_path, tmp_path / "token_map.json", *words)
    assert (tokens.backbone, tokens.bos_id, tokens.eos_id, tokens.pad_id) == ("llama", 128000, 128009, 128004)
    assert tokens.first_unit_id == 128256
    assert token_map(tmp_path, tmp_path / "base.json", "--backbone", "llama").eos_id == 128001


def test_a_map_that_is_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "t")
    out = tmp_path / "m.json"
    tokens = token_map(tmp_path / "t", out)
    assert token_map(tmp_path / "t", out) == tokens
    with pytest.raises(DataError, match="m.json: holds another token map"):
        token_map(tmp_path / "t", out, "--num-units", "7")
    assert TokenMap.load(out) == tokens
    for name in (tmp_path / "t", tmp_path / "m.txt"):
        with pytest.raises(DataError, match="give --out a file name that ends in .json"):
            token_map(tmp_path / "t", name)
