"""Units that one codec computed in fp32 and in bf16 differ here and there: they are told apart and never mixed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_most.data.blend import open_task
from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.commands import run_prepare_data
from megatron_most.data.manifest import open_manifest
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.data.unit_set import open_units
from megatron_most.errors import DataError
from megatron_most.runtime import Device
from megatron_most.speech import CodecIdentity, HubertFeatures, fit_hubert_codec, load_codec, save_codec
from tests.data_files import make_codec, make_corpus, make_tokenizer
from tests.datasets import CODEC, TOKENS, random_documents, write_dataset
from tests.speech_models import random_waves, save_tiny_hubert

CPU = Device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora and a HuBERT codec, fitted in fp32."""
    root = tmp_path_factory.mktemp("made")
    features = HubertFeatures(save_tiny_hubert(root / "model", "group"), 2, device=CPU)
    save_codec(fit_hubert_codec(random_waves(20), features, 16), root / "codec")
    for name, seed in (("one", 0), ("other", 50)):
        make_corpus(root / name, recordings=2, cuts=3, seed=seed)
    return root


def units(made: Path, corpus: str, out: Path, precision: str, *more: str) -> Path:
    words = ["--manifest", str(made / corpus / "manifest"), "--codec", str(made / "codec"), "--out", str(out)]
    run_prepare_data(["units", *words, "--precision", precision, *more])
    return out


def test_the_precision_is_said_at_the_start_and_stands_beside_the_units(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for precision in ("fp32", "bf16"):
        out = units(made, "one", tmp_path / precision, precision)
        printed = caplog.text
        caplog.clear()
        assert f"computed in {precision} (--precision {precision})" in printed
        assert printed.index("computed in") < printed.index("real time")
        assert json.loads((out / "units.json").read_text())["codec"]["precision"] == precision
        assert json.loads((out / "job.json").read_text())["precision"] == precision
    exact, rough = (open_units(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert exact.codec == replace(rough.codec, precision="fp32") and exact.codec.key != rough.codec.key
    assert any(exact.find(row) != rough.find(row) for row in range(6))  # why all this
    assert units(made, "one", tmp_path / "auto", "auto") and open_units(tmp_path / "auto").codec == exact.codec


def test_two_precisions_are_refused_by_name_in_a_job_in_shards_in_a_build_and_in_a_blend(
    made: Path, tmp_path: Path
) -> None:
    units(made, "one", tmp_path / "one", "fp32", "--shard", "0/2")
    with pytest.raises(DataError, match='begun with precision = "fp32", now "bf16"; choose another folder or'):
        units(made, "one", tmp_path / "one", "bf16", "--shard", "0/2")
    units(made, "one", tmp_path / "one", "bf16", "--shard", "1/2")
    told = r"{}: units computed in bf16, but {} has them in fp32, .*; extract both with the same --precision"
    with pytest.raises(DataError, match=told.format("00001-of-00002", ".*00000-of-00002")):
        open_units(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "00001-of-00002")
    units(made, "one", tmp_path / "one", "fp32", "--shard", "1/2")
    units(made, "other", tmp_path / "other", "bf16")
    inputs = BuildInputs(
        manifests=tuple(open_manifest(made / name / "manifest") for name in ("one", "other")),
        units=(open_units(tmp_path / "one"), open_units(tmp_path / "other")),
        tokens=make_tokenizer(tmp_path / "tokenizer"),
        tokenizer=load_tokenizer(tmp_path / "tokenizer"),
        templates=load_templates("chat"),
    )
    with pytest.raises(DataError, match=told.format("other", ".*one")):
        build(inputs, BuildOptions(task="asr"), tmp_path / "asr")
    for name, codec in (("a", CODEC), ("b", replace(CODEC, precision="bf16"))):
        write_dataset(tmp_path / name, random_documents(5), codec=codec)
    with pytest.raises(DataError, match=f"its codec is {'c' * 64}/bf16, but {'c' * 64} in"):
        open_task([tmp_path / "a", tmp_path / "b"], TOKENS)


def test_a_codecs_folder_serves_both_and_mfcc_only_fp32(made: Path, tmp_path: Path) -> None:
    exact, rough = (load_codec(made / "codec", device=CPU, precision=p) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert (exact.identity.precision, rough.identity.precision) == ("fp32", "bf16")
    assert exact.identity.hash == rough.identity.hash
    assert "precision" not in (made / "codec" / "codec.json").read_text()
    make_codec(tmp_path / "mfcc")
    assert load_codec(tmp_path / "mfcc", precision="fp32").identity.precision == "fp32"
    with pytest.raises(DataError, match="mfcc: this codec computes in fp32 only; leave --precision bf16 out"):
        load_codec(tmp_path / "mfcc", precision="bf16")
    with pytest.raises(DataError, match="codec identity: precision: missing"):
        CodecIdentity.from_dict({k: v for k, v in CODEC.to_dict().items() if k != "precision"})
