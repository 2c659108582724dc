"""The templates of a model's data are found without their file: recorded when the data is built, kept by models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_most.converse import Opened
from megatron_most.converse.models import templates_of
from megatron_most.data import MadeWith, load_info, makers_of
from megatron_most.data.templates import PROMPTS, Templates, load_templates
from megatron_most.errors import DataError
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech


def opened(made_with: MadeWith) -> Opened:
    model: Any = SimpleNamespace()
    return Opened(Path("run"), model, made_with)


def written(folder: Path, name: str, ask: str) -> Templates:
    folder.mkdir(exist_ok=True)
    text = (PROMPTS / "chat.toml").read_text(encoding="utf-8")
    (folder / f"{name}.toml").write_text(text.replace("Transcribe the following speech into text.", ask))
    return load_templates(folder / f"{name}.toml")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Templates, MadeWith]:
    """Templates that do not ship, whose file is gone, and what a model of their data knows."""
    root = tmp_path_factory.mktemp("templates")
    make_tokenizer(root / "tokenizer")
    speech = make_speech(root / "corpus", recordings=1, cuts=2, longest=2)
    templates = written(root, "my.own", "Écris ce que tu entends.")
    inputs = replace(frame_inputs(speech, root / "tokenizer"), templates=templates)
    build_frames(inputs, root / "asr")
    (root / "my.own.toml").unlink()
    assert load_info(root / "asr").templates == (templates.name, templates.hash)
    file = root / "made_with.json"  # as a checkpoint keeps it
    file.write_text(makers_of([root / "asr"]).to_json())
    return templates, MadeWith.load(file)


def test_they_are_found_without_their_file(mine: tuple[Templates, MadeWith]) -> None:
    templates, made_with = mine
    assert templates.instructions["asr"][0] == "Écris ce que tu entends."
    assert templates_of(opened(made_with), None) == templates == templates_of(opened(made_with), "my.own")


def test_a_model_of_two_is_told_which(mine: tuple[Templates, MadeWith], tmp_path: Path) -> None:
    templates, made_with = mine
    other, namesake = written(tmp_path, "other", "Write it down."), written(tmp_path / "x", "my.own", "Write it.")
    for second, by in ((other, "name"), (namesake, "file")):
        both = opened(made_with.then(MadeWith(
            templates=((second.name, second.hash),), wordings=((second.hash, second.wording),)
        ), "phase 2"))  # fmt: skip
        with pytest.raises(DataError, match=f"my.own .*choose one by {by} with --templates"):
            templates_of(both, None)
        if by == "name":
            assert templates_of(both, "other") == second and templates_of(both, "my.own") == templates
        else:
            with pytest.raises(DataError, match="choose one by file"):
                templates_of(both, "my.own")
            assert templates_of(both, str(tmp_path / "x" / "my.own.toml")) == second


def test_others_are_refused_unless_asked_for(mine: tuple[Templates, MadeWith], tmp_path: Path) -> None:
    templates, made_with = mine
    other = written(tmp_path, "other", "Write it down.")
    file = str(tmp_path / "other.toml")
    with pytest.raises(DataError, match="are not as the model has learnt them .my.own"):
        templates_of(opened(made_with), file)
    assert templates_of(opened(made_with), file, may_differ=True) == other
    older = opened(replace(made_with, wordings=()))
    with pytest.raises(DataError, match="neither ship nor were recorded with its data; give their file"):
        templates_of(older, None)
    again = written(tmp_path, "again", "Écris ce que tu entends.")
    assert again.hash == templates.hash and templates_of(older, str(tmp_path / "again.toml")) == again
    assert templates_of(opened(MadeWith()), None) == load_templates("chat")
