"""Utterances learnt by heart (sixteen, or fifty where there is time) are transcribed by free-running generation, and
nothing of the reference helps.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_most.evaluate import Data, Options, Tools
from tests.data_files import cut, write_manifest
from tests.spoken_models import Spoken, make_model, ran, read_records, teach


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp("asr") / "spoken", utterances=16)


@pytest.fixture(scope="module")
def learnt(spoken) -> Path:
    folder = make_model(spoken, spoken.root / "learnt")
    losses = teach(folder, spoken.documents("asr"), 100, 6e-3)
    assert losses[-1] < 0.05 < 3 < losses[0]
    return folder


@pytest.mark.slow
def test_fifty_utterances_learnt_by_heart_have_a_wer_below_5_percent(tmp_path):
    fifty = Spoken(tmp_path / "spoken", utterances=50)
    taught = make_model(fifty, tmp_path / "taught")
    losses = teach(taught, fifty.documents("asr"), 110, 6e-3)
    assert losses[-1] < 0.05
    data = Data(manifest=(fifty.root / "manifest",), units=(fifty.root / "units",))
    [found] = ran(Options(tasks=("asr",), model=taught, out=tmp_path / "out", data=data, batch_size=8))
    assert found.items == 50 and found.scores["wer"].value < 0.05 and found.scores["cer"].value < 0.05


def test_sixteen_utterances_learnt_by_heart_have_a_wer_below_5_percent(spoken, learnt, tmp_path):
    data = Data(manifest=(spoken.root / "manifest",), units=(spoken.root / "units",))
    untaught = make_model(spoken, tmp_path / "untaught")
    [before], [after] = (
        ran(Options(tasks=("asr",), model=model, out=tmp_path / model.name, data=data, batch_size=8))
        for model in (untaught, learnt)
    )
    print("WER before and after:", before.scores["wer"].value, after.scores["wer"].value)
    assert after.items == 16 and after.notes["answers_cut_off"] == 0
    assert after.scores["wer"].value < 0.05 and after.scores["cer"].value < 0.05
    assert before.scores["wer"].value > 0.9


def test_a_false_reference_changes_the_score_and_not_what_is_heard(spoken, learnt, tmp_path):
    """Teacher forcing would repeat the reference it is given."""
    rows = [
        cut(row.id, row.audio, 0, row.duration, row.duration, text="purple monkey dishwasher", language="en")
        for row in spoken.manifest.rows()
    ]
    write_manifest(tmp_path / "false", rows[:6], spoken.root / "audio", split="test", language="en")
    data, tools = Data(manifest=(tmp_path / "false",)), Tools(codec=str(spoken.root / "codec"))
    [found] = ran(Options(tasks=("asr",), model=learnt, out=tmp_path / "out", data=data, tools=tools))
    records = read_records(tmp_path / "out" / "asr-test-test")
    assert [record["hypothesis"] for record in records] == spoken.sentences[:6]
    assert found.scores["wer"].value >= 1
