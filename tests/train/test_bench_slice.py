"""A whole model's speed from two slices of it, as a GPU that holds no whole one measures it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from megatron_most.config import load_recipe, replace
from megatron_most.engine import make_plan
from megatron_most.errors import ConfigError, DataError
from megatron_most.runtime import find_device
from tests.doc_words import commands_by
from tests.programs import run_program

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import slice as bench_slice  # noqa: E402  (a folder of scripts)


def test_a_layer_costs_the_difference_and_the_rest_is_counted_once() -> None:
    once, layer = 0.7, 0.25
    seconds, slope = bench_slice.line(27, (3, once + 3 * layer), (5, once + 5 * layer))
    assert (seconds, slope) == (pytest.approx(once + 27 * layer), pytest.approx(layer))
    with pytest.raises(ConfigError, match="give fewer, then more"):
        bench_slice.line(27, (5, 1.0), (3, 2.0))


def test_slices_that_were_not_measured_well_tell_nothing() -> None:
    with pytest.raises(DataError, match="5 layers took no longer than 3"):
        bench_slice.line(27, (3, 1.0), (5, 0.9))
    with pytest.raises(DataError, match="2 layers took less than 2 times what one more costs"):
        bench_slice.line(27, (2, 0.4), (4, 1.8))


def test_two_slices_tell_of_all_layers_with_and_without_the_all_to_all() -> None:
    changes = {"train.sequence_length": 64, "train.global_batch_size": 2, "train.micro_batch_size": 1}
    config = replace(load_recipe("most-tiny"), {**changes, "engine.kind": "plain", "layout.expert": 1})
    fewer, more = {"layers": 2, "seconds": 0.5}, {"layers": 3, "seconds": 0.6}
    told = bench_slice.whole(config, fewer, more, 2, "h100-80", 1)
    assert (told["layers"], told["seconds_per_layer"], told["seconds_once"]) == (4, 0.1, 0.3)
    assert told["tokens_per_second"] == pytest.approx(128 / 0.7, rel=1e-3)
    assert 0 < told["all_to_all_seconds"] < 0.01 and told["mfu"] is None  # nobody says what this CPU could do
    assert told["tokens_per_second_with_all_to_all"] <= told["tokens_per_second"]


def test_a_slice_holds_a_ranks_experts_and_all_choices_of_its_tokens() -> None:
    whole = load_recipe("most-16b")
    share = bench_slice.share_of(whole, 8)
    assert (share.moe.num_experts, share.moe.top_k, whole.moe.num_experts) == (8, whole.moe.top_k, 64)
    assert share.moe.groups == ("text+audio: 0-7",) and share.moe.shared_only_tags == ("wave",)
    assert bench_slice.share_of(whole, 1) == whole
    for ranks in (7, 16):
        with pytest.raises(ConfigError, match=f"--ranks = {ranks}: a rank must hold"):
            bench_slice.share_of(whole, ranks)


def test_a_row_of_several_documents_is_packed() -> None:
    plan = make_plan(replace(load_recipe("most-tiny"), {"train.sequence_length": 64}), 1, find_device("cpu"))
    for documents, is_packed in ((1, False), (4, True)):
        batches = bench_slice.packed_steps(plan, documents)(1)
        assert len(batches) == plan.config.train.global_batch_size and batches[0].is_packed == is_packed
        assert int(batches[0].documents_BS.max()) + 1 == documents and not batches[0].is_pad_BS.any()


def test_a_slice_is_measured(tmp_path: Path) -> None:
    """Both of docs/performance.md; that the deeper one takes longer a machine at other work may not see."""
    [command] = commands_by("train/test_bench_slice.py::test_a_slice_is_measured", tmp_path)
    _, program, *words = command.smaller
    picture = tmp_path / "step.png"
    done = run_program(BENCH.parent / program, *words, "--picture", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    slices = [json.loads(line) for line in done.stdout.splitlines()][:2]
    assert [told["layers"] for told in slices] == [2, 4], done.stderr[-3000:]
    for told in slices:
        assert told["tokens_per_second"] == pytest.approx(128 / told["seconds"], rel=0.01)
    noisy = "layers took (no longer|less) than"
    assert done.returncode == 0 or re.search(noisy, done.stderr), done.stderr[-3000:]
