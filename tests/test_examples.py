"""The examples that show how the product is widened: each does in small what its page says."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import soundfile

from megatron_most.checkpoint import find_checkpoint
from megatron_most.config import Facts, build, load_recipe
from megatron_most.evaluate import read_result
from tests.data_files import RATE, WORDS, sound
from tests.doc_words import commands_by
from tests.programs import run_program
from tests.talkable import make_talkable

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def test_three_groups_learn_and_stay_apart(tmp_path: Path) -> None:
    [command] = commands_by("test_examples.py::test_three_groups_learn_and_stay_apart", tmp_path)
    _, music, *words = command.words
    both = [ROOT / music, (ROOT / music).with_suffix(".toml")]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in both) < 60
    done = run_program(ROOT / music, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    names = [float(loss) for loss in re.findall(r"names (\S+)", done.stdout)]
    assert names[-1] < 0.3 < 1.0 < names[0]
    rows = re.findall(r"^layer \d: (\d+) (\w+) tokens, (\d+) visits to experts", done.stdout, re.M)
    assert {name for _, name, _ in rows} == {"text", "audio", "wave"} and len(rows) == 9
    assert all(int(visits) == 2 * int(tokens) > 0 for tokens, _, visits in rows)


def test_a_family_that_is_added_goes_there_and_back(tmp_path: Path) -> None:
    tried, imported = commands_by("test_examples.py::test_a_family_that_is_added_goes_there_and_back", tmp_path)
    done = run_program(ROOT / tried.words[1], *tried.words[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("logits gate passed") == 3
    place, tmp_path = tmp_path, tmp_path / tried.words[-1]
    (place / "models").mkdir()
    (place / "models" / "Qwen3-0.6B").symlink_to(tmp_path / "hf")
    (place / "token_map.json").symlink_to(tmp_path / "token_map.json")
    done = run_program(ROOT / imported.words[1], *imported.words[2:], cwd=place)
    assert done.returncode == 0 and "logits gate passed" in done.stderr, done.stderr[-3000:]
    assert load_recipe(place / "checkpoints" / "qwen3" / "resolved.toml").moe.num_experts == 8
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    config = load_recipe(tmp_path / "most" / "resolved.toml")
    assert config.model.qk_norm and config.moe.groups == ("text: 0-3", "audio: 4-7")
    build(config, Facts(world_size=1, device="cpu", core_version=(0, 16)))
    words = ["import", "--source", tmp_path / "hf", "--out", tmp_path / "unknown"]
    refused = run_program(ROOT / "tools" / "convert_ckpt.py", *words, cwd=ROOT)
    assert refused.returncode == 2 and "no family that can be converted" in refused.stderr


@pytest.fixture(scope="module")
def talkable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talkable(tmp_path_factory.mktemp("talkable"))


def test_a_folder_of_recordings_changes_a_model(talkable: Path, tmp_path: Path) -> None:
    own = tmp_path / "my_recordings"
    (own / "monday").mkdir(parents=True)
    for number in range(12):
        soundfile.write(own / "monday" / f"{number:02d}.wav", sound(1.0, number), RATE)
        (own / "monday" / f"{number:02d}.txt").write_text(f"{WORDS[number % 5]} {WORDS[3 + number % 4]}\n")
    (tmp_path / "runs" / "quickstart" / "runs").mkdir(parents=True)
    links = {"runs/phase2": "run", "codec": "data/codec", "tokenizer": "data/tokenizer"}
    for name, target in links.items():
        (tmp_path / "runs" / "quickstart" / name).symlink_to(talkable / target)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    [command] = commands_by("test_examples.py::test_a_folder_of_recordings_changes_a_model", tmp_path)
    _, program, *words = command.smaller
    done = run_program(ROOT / program, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    made = tmp_path / words[words.index("--out") + 1]
    config = load_recipe(find_checkpoint(made / "run", "")[0] / "resolved.toml")
    assert config.train.steps == 3 and config.data.asr.weight == 0.5 and not config.data.text_lm.train
    found = [read_result(path.parent) for at in ("before", "after") for path in (made / at).rglob("result.json")]
    assert [result.items for result in found] == [2, 2]  # the first and the eleventh were held out
    assert (made / "export" / "config.json").exists()
    again = run_program(ROOT / program, *words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    own = tmp_path / words[words.index("--audio") + 1]
    shutil.copy(next(own.rglob("*.wav")), own / "one more.wav")
    (own / "one more.txt").write_text("one more")
    more = run_program(ROOT / program, *words, cwd=tmp_path)
    assert more.returncode == 2 and "not the recordings and words that" in more.stderr, more.stderr[-3000:]


def test_a_recording_without_words_is_named(tmp_path: Path) -> None:
    sys.path.insert(0, str(EXAMPLES / "finetune"))
    from finetune import listed

    from megatron_most.errors import DataError

    with pytest.raises(DataError, match="0 recordings .* give at least two"):
        listed(tmp_path)
    soundfile.write(tmp_path / "a.wav", sound(0.5, 1), RATE)
    with pytest.raises(DataError, match=r"a.wav: no a.txt beside it"):
        listed(tmp_path)
