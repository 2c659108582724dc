"""A checkpoint of ours and the Hugging Face folder it was made from are one subject, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_most.checkpoint import MADE_WITH
from megatron_most.config import LayoutConfig
from megatron_most.evaluate import Data, Options
from megatron_most.evaluate.decoding import Decoding
from tests.convert.folders import into_ours
from tests.spoken_models import Spoken, make_model, ran, read_records, refused


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("subjects") / "spoken", utterances=5)


@pytest.fixture(scope="module")
def folders(spoken) -> tuple[Path, Path]:
    hf = make_model(spoken, spoken.root / "hf")
    return hf, into_ours(hf, spoken.root / "ours")


def asked(spoken: Spoken, model: Path, out: Path, **changes: Any) -> Options:
    data = Data(manifest=(spoken.root / "manifest",), units=(spoken.root / "units",))
    given: dict[str, Any] = dict(
        tasks=("asr",), model=model, out=out, data=data, decoding=Decoding(max_new_tokens=8), batch_size=2,
        dtype="float32",
    )  # fmt: skip
    return Options(**{**given, **changes})


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(1, LayoutConfig()), (2, LayoutConfig()), (2, LayoutConfig(tensor=2))],
    ids=["one process", "a model a rank", "a model on two ranks"],
)
def test_a_checkpoint_says_what_its_source_says(spoken, folders, tmp_path, ranks, layout):
    hf, ours = folders
    assert (ours / MADE_WITH).is_file() or next(ours.rglob(MADE_WITH))
    ran(asked(spoken, hf, tmp_path / "hf"))
    own = {"tokenizer": spoken.root / "tokenizer", "layout": layout}
    [result] = ran(asked(spoken, ours, tmp_path / "ours", **own), ranks=ranks)
    first, second = (
        [record["hypothesis"] for record in read_records(tmp_path / name / "asr-test-test")] for name in ("hf", "ours")
    )
    assert first == second and any(first)
    assert result.model["kind"] == "checkpoint" and result.ranks == (1 if layout.tensor == 2 else ranks)


def test_a_checkpoint_needs_the_tokenizer_of_its_data(spoken, folders, tmp_path):
    _, ours = folders
    assert "give that of its data with --tokenizer" in refused(asked(spoken, ours, tmp_path / "out"))


def test_templates_other_than_those_it_has_learnt_are_refused(spoken, folders, tmp_path):
    told = refused(asked(spoken, folders[0], tmp_path / "out", templates="release"))
    assert "are not as the model has learnt them (chat (" in told


def test_a_folder_without_a_token_map_is_for_text_only(spoken, tmp_path):
    folder = make_model(spoken, tmp_path / "plain")
    (folder / "token_map.json").unlink()
    assert "has no token_map.json" in refused(asked(spoken, folder, tmp_path / "out"))
