"""What the pages assume to be there, in small: corpora as their publishers lay them out, tokenizers, HuBERT models.

Everything stands under the name that docs/ gives it, so that the pages' commands run as they are written.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile

from tests.audio_files import write_compressed
from tests.data_files import RATE, cut, make_tokenizer, sound, text
from tests.oracles import unit_hifigan
from tests.speech_models import save_tiny_hubert

LIBRISPEECH = {
    "test-clean": "61", "test-other": "367", "dev-clean": "84", "dev-other": "116", "train-clean-100": "103",
    "train-clean-360": "14", "train-other-500": "20",
}  # fmt: skip
"""Parts of it, each with a reader of its own."""
DEEPSEEK = {100000: "<｜begin▁of▁sentence｜>", 100001: "<｜end▁of▁sentence｜>"}
LLAMA = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128009: "<|eot_id|>"}


def make_downloads(root: Path) -> Path:
    """corpora/, models/ and tokenizers/ of docs/data.md below `root`."""
    corpora = root / "corpora"
    _librispeech(corpora)
    _libriheavy(corpora)
    for language in ("en", "de"):
        _common_voice(corpora / "cv-corpus-17.0-2024-03-15" / language, language)
    _voxpopuli(corpora / "voxpopuli")
    _texts(corpora)
    save_tiny_hubert(root / "models" / "mhubert-base-25hz", "25hz", num_layers=11)
    save_tiny_hubert(root / "models" / "hubert-base-ls960", "group", num_layers=9)
    make_tokenizer(root / "tokenizers" / "mine")
    (root / "tokenizers" / "mine" / "token_map.json").unlink()  # a command of the page makes it
    make_named_tokenizer(root / "tokenizers" / "deepseek", DEEPSEEK)
    make_named_tokenizer(root / "tokenizers" / "llama-instruct", LLAMA)
    return root


def make_named_tokenizer(folder: Path, special: dict[int, str]) -> Path:
    """Of few tokens, whose special ones have the ids that a backbone's own have."""
    make_tokenizer(folder)
    (folder / "token_map.json").unlink()
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    given, vocab = content["added_tokens"], content["model"]["vocab"]
    for token in given:
        del vocab[token["content"]]
    vocab.update({token: id for id, token in special.items()})
    content["added_tokens"] = [{**given[0], "id": id, "content": token} for id, token in special.items()]
    file.write_text(json.dumps(content))
    (folder / "tokenizer_config.json").unlink()
    return folder


def make_centroids(file: Path) -> None:
    """500 of the tiny mHuBERT's features, as a pickle of what has been fitted: as they are published."""
    import joblib

    centres = np.random.default_rng(0).normal(size=(500, 32))
    joblib.dump(SimpleNamespace(cluster_centers_=centres), file)


def make_public_vocoder(weights: Path, settings: Path) -> None:
    """A HiFi-GAN of 500 units as its publishers have it, but for its size."""
    import torch

    config = {**unit_hifigan.CONFIG, "num_embeddings": 500}
    torch.save({"generator": unit_hifigan.random_checkpoint(config)}, weights)
    settings.write_text(json.dumps(config))


def _librispeech(corpora: Path) -> None:
    for part, reader in LIBRISPEECH.items():
        chapter = Path(part) / reader / "121123"
        folder, times = corpora / "LibriSpeech" / chapter, corpora / "LibriSpeech-Alignments" / chapter
        folder.mkdir(parents=True)
        times.mkdir(parents=True)
        said, aligned = [], []
        for number in range(8):
            name, words = f"{reader}-121123-{number:04d}", text(int(reader) + number).upper().strip(".").split()
            soundfile.write(folder / f"{name}.flac", sound(0.5 * len(words), int(reader) + number), RATE)
            ends = ",".join(f"{0.5 * (place + 1):.3f}" for place in range(len(words)))
            said.append(f"{name} {' '.join(words)}\n")
            aligned.append(f'{name} ",{",".join(words)}," "0.01,{ends}"\n'.replace('"0.01,', '"0.010,'))
        (folder / f"{reader}-121123.trans.txt").write_text("".join(said))
        (times / f"{reader}-121123.alignment.txt").write_text("".join(aligned))


def _libriheavy(corpora: Path) -> None:
    """One book for each list, of eight cuts."""
    lists = corpora / "libriheavy"
    lists.mkdir()
    for seed, size in enumerate(("small", "medium", "large", "dev")):
        book = f"{'large' if size == 'dev' else size}/{seed}00/a_book_64kb_mp3/01_a_book_64kb"
        audio = corpora / "librilight" / f"{book}.flac"
        audio.parent.mkdir(parents=True)
        soundfile.write(audio, sound(16.0, seed), RATE)
        rows = []
        for number in range(8):
            given = text(100 * seed + number)
            row = cut(f"{book}_{number}", f"download/librilight/{book}.flac", 2.0 * number, 1.9, 16.0,
                      language="English", speaker=f"{seed}00")  # fmt: skip
            row["supervisions"][0]["custom"] = {"texts": [given, given.upper()], "pre_texts": ["", ""]}
            row["recording"]["id"] = row["supervisions"][0]["recording_id"] = book
            rows.append(row)
        _lines(lists / f"libriheavy_cuts_{size}.jsonl.gz", rows)


def _common_voice(folder: Path, language: str) -> None:
    (folder / "clips").mkdir(parents=True)
    columns = (
        "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale"
    )
    for place, split in enumerate(("train", "dev", "test")):
        rows = ["\t".join([*columns.split(), "segment"])]
        for number in range(3):
            clip = f"common_voice_{language}_{10 * place + number}.mp3"
            write_compressed(
                folder / "clips" / clip, sound(1.2, 10 * place + number, 48000), 48000, "libmp3lame", "mp3"
            )
            said = [f"reader-{split}", clip, "d0a1", text(number), "", "2", "0", "", "", "", "", language, ""]
            rows.append("\t".join(said))
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")


def _voxpopuli(root: Path) -> None:
    columns = (
        "session_id|id_|original_text|normed_text|speaker_id|split|gender|start_time|end_time|vad|is_gold_transcript"
    )
    session, lines = "20180206-0900-PLENARY-15", [columns]
    for number, split in enumerate(("train", "train", "dev", "dev", "test")):
        said = text(number).strip(".")
        lines.append(f"{session}|en_20180206-16:10:06_{number}|{said.title()}.|{said}|12{number}|{split}|female|"
                     f'{1.5 * number}|{1.5 * number + 1.4}|"[(0.1, 0.2)]"|True')  # fmt: skip
    audio = root / "raw_audios" / "original" / "2018" / f"{session}_original.ogg"
    audio.parent.mkdir(parents=True)
    soundfile.write(audio, sound(8.0, 5), RATE)
    (root / "transcribed_data" / "en").mkdir(parents=True)
    (root / "transcribed_data" / "en" / "asr_en.tsv.gz").write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def _texts(corpora: Path) -> None:
    _parquet(corpora / "falcon-refinedweb" / "data" / "train-00000-of-05534-b8fc5348cbe605a5.parquet",
             content=[f"{text(number)} {text(number + 1)}" for number in range(200)])  # fmt: skip
    chats = [_chat(text(number), text(number + 1)) for number in range(30)]
    for name in ("all/train-00000-of-00009", "everyday-conversations/train-00000-of-00001"):
        _parquet(corpora / "smoltalk" / "data" / f"{name}.parquet", messages=chats)
    heard = [{"speech": "librispeech-103-121123-0000"}, {"speech": "libriheavy-dev"}]
    _lines(corpora / "own" / "talk_train.jsonl", [{"messages": _chat([heard[0]], [{"units": [7, 90, 7]}])}])
    samples = [
        {"id": f"s{n}", "instruction": "Transcribe.", "input": f"[Hu{n}][Hu90]", "output": text(n)} for n in range(5)
    ]
    (corpora / "most").mkdir()
    (corpora / "most" / "instruct_train.json").write_text(json.dumps(samples))
    _lines(corpora / "eval" / "gsm8k_test.jsonl", [{"question": text(900), "answer": "#### 7"}])


def _chat(asked: Any, answered: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _parquet(path: Path, **columns: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
