"""The guides from corpora to a voice are gone through, in one folder where small things stand under their names.

docs/data.md makes datasets of corpora as they are downloaded; docs/synthesis.md, docs/augmentation.md, docs/most_c.md
and docs/vocoder.md go on with what it has made, as their readers do. Words are the pages' own (doc_words.py), sizes
those that doc_lines.py declares. Each page is one forked process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from megatron_most.checkpoint import find_checkpoint
from megatron_most.config import load_recipe
from megatron_most.data.dataset import load_info
from megatron_most.data.unit_set import open_units
from megatron_most.speech import load_codec, load_vocoder
from tests.chat_server import chat_server
from tests.data_files import RATE, sound
from tests.doc_corpora import make_centroids, make_downloads, make_public_vocoder
from tests.doc_lines import ROOT, page_text
from tests.doc_words import PYTHON, Command, commands_by, go_through
from tests.speech_waves import NEEDS_FLITE

HERE = "test_doc_pages.py::"
PHASE_1 = (
    "tools/train.py --config stage1-vanilla-moe-tiny --name stage1-vanilla-moe --train.steps 1 --train.warmup-steps 0 "
    "--train.sequence-length 256 --train.global-batch-size 2 --train.micro-batch-size 1 --model.num-layers 2 "
    "--tokens.backbone deepseek --tokens.num-units 500 --data.asr.train data/sets/asr/libriheavy "
    "--data.tts.train data/sets/tts/libriheavy --data.text-lm.train data/sets/text-lm/refinedweb-train "
    "--telemetry.no-tensorboard"
)
"""What the command of docs/augmentation.md begins with."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was downloaded; the centroids are converted by the lines that docs/data.md has for it."""
    for name in ("lhotse", "matplotlib.backends.backend_agg", "matplotlib.pyplot"):  # once for all that are forked
        importlib.import_module(name)
    root = make_downloads(tmp_path_factory.mktemp("pages"))
    (root / "examples").symlink_to(ROOT / "examples")
    [lines] = re.findall(r"python - <<'END'\n(.*?)^END$", page_text("data.md"), re.S | re.M)
    [pickle] = re.findall(r'joblib.load\("(.*?)"\)', lines)
    make_centroids(root / pickle)
    with contextlib.chdir(root):
        exec(compile(lines, "data.md", "exec"), {})
    return root


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """After docs/data.md, in its order, but that own codecs are fitted when manifests are there, as it says."""
    commands = commands_by(HERE + "test_corpora_become_datasets_by_every_command_of_the_guide", place)
    ours = [command for command in commands if command.words[0] != "python"]
    go_through(sorted(ours, key=lambda command: "fit-codec" in command.words), place)
    return place


def test_corpora_become_datasets_by_every_command_of_the_guide(data: Path) -> None:
    sets = {path.parent.relative_to(data / "data/sets").as_posix(): load_info(path.parent)
            for path in (data / "data/sets").glob("*/*/dataset.json")}  # fmt: skip
    assert {name.partition("/")[0] for name in sets} == {info.task for info in sets.values()}
    assert len(sets) == 2 * 10 + 2 + 1 + 2 + 2 + 1 and all(info.documents for info in sets.values())
    counts = {"asr/libriheavy": 24, "tts/libriheavy-dev": 8, "asr/librispeech": 24, "asr/commonvoice-de-train": 3,
              "tts/voxpopuli-en-dev": 2, "text-instruct/smoltalk": 30, "audio-lm/libriheavy": 24}  # fmt: skip
    assert {name: sets[name].documents for name in counts} == counts
    codecs = {info.codec.name for info in sets.values() if info.codec is not None}
    assert codecs == {"mhubert-25hz-500"} and load_codec(data / "data/codecs/mfcc").identity.num_units == 500
    assert sets["asr/librispeech"].overlaps.keys() == {"librispeech-test", "gsm8k"}
    assert (data / "data/stats.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def dialogues(data: Path) -> Iterator[Path]:
    """After docs/synthesis.md; a server of the test's own answers as vllm would."""
    commands = commands_by(HERE + "test_dialogues_are_written_spoken_and_compared", data)
    shutil.copy(ROOT / "examples" / "synthesis" / "seeds.toml", data / "seeds.toml")
    [(name, key)] = re.findall(r"(?m)^export (\w+_KEY)=(\S+)$", page_text("synthesis.md"))
    with chat_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, key)
        go_through(commands, data, {"http://localhost:8000/v1": server.url})
        assert server.keys == {f"Bearer {key}"} and server.requests >= 5
    return data


@NEEDS_FLITE
def test_dialogues_are_written_spoken_and_compared(dialogues: Path) -> None:
    for folder, least in {
        "runs/synthesis/dialogues": 20,
        "data/dialogues/qwen": 5,
        "data/dialogues/everyday": 1,
    }.items():
        assert len((dialogues / folder / "dialogues.jsonl").read_text().splitlines()) >= least
    spoken = load_info(dialogues / "runs/synthesis/sets/talk")
    assert spoken.documents and spoken.codec == open_units(dialogues / "data/units/librispeech").codec
    bias = json.loads((dialogues / "runs/synthesis/bias-speech.json").read_text())
    assert "unit pairs" in json.dumps(bias) and (dialogues / "runs/synthesis/bias.html").exists()


@NEEDS_FLITE
def test_speech_is_augmented_and_becomes_units_again(dialogues: Path) -> None:
    augment, units, build, train = commands_by(HERE + "test_speech_is_augmented_and_becomes_units_again", dialogues)
    phase_1 = Command("", (PYTHON, *shlex.split(PHASE_1)))
    go_through([augment, units, build, phase_1, train], dialogues)
    sets = dialogues / "runs/synthesis/sets"
    assert load_info(sets / "talk-aug2").documents == load_info(sets / "talk").documents
    config = load_recipe(find_checkpoint(dialogues / "runs/stage2-vanilla-moe-tiny", "")[0] / "resolved.toml")
    assert str(config.checkpoint.start_from) == "runs/stage1-vanilla-moe"
    assert config.data.speech_instruct.train == ("runs/synthesis/sets/talk-aug2",)


def test_a_model_learns_to_hear_frames_and_is_asked(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soundfile.write(data / "question.wav", sound(1.0, 7), RATE)
    go_through(commands_by(HERE + "test_a_model_learns_to_hear_frames_and_is_asked", data), data)
    runs = {name: load_recipe(find_checkpoint(data / "runs" / name, "")[0] / "resolved.toml")
            for name in ("most-c", "most-c-layers")}  # fmt: skip
    assert [runs[name].model.wave_layers for name in runs] == [(), (10, 11)]
    assert runs["most-c"].data.frames and not runs["most-c-layers"].data.frames
    assert "4 tokens, stopped by" in capfd.readouterr().err


def test_voices_are_fitted_trained_and_imported(data: Path) -> None:
    for name in ("real_speech", "ls"):  # as examples/real_speech and docs/data.md make them
        (data / "runs" / name).mkdir(parents=True)
        for kind in ("manifest", "units"):
            (data / "runs" / name / kind).symlink_to(data / "data" / f"{kind.rstrip('s')}s" / "librispeech")
    commands = commands_by(HERE + "test_voices_are_fitted_trained_and_imported", data)
    [convert] = [command.words for command in commands if "convert" in command.words]
    make_public_vocoder(*(data / convert[convert.index(option) + 1] for option in ("--weights", "--config")))
    go_through(commands, data)
    kinds = {name: load_vocoder(data / "runs" / name) for name in ("voice", "hifigan", "tiny", "twist")}
    assert len({vocoder.codec_hash for vocoder in kinds.values()}) == 1
    assert soundfile.info(data / "hello.wav").frames >= 4 * 640
    assert len(json.loads((data / "runs/heard.json").read_text())["heard"]) == 4
