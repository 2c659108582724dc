"""Counts of a blend follow its weights for ever without a state; a task's stream gives each document once an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_most.data.batch import Document
from megatron_most.data.blend import Blend, TaskSpec, TaskStream, open_task
from megatron_most.data.document import DocumentRuns, Run
from megatron_most.errors import ConfigError, DataError
from megatron_most.speech import CodecIdentity
from megatron_most.vocab import tiny_token_map
from tests.datasets import write_dataset


@dataclass
class Lengths:
    """A dataset of which only the lengths are looked at."""

    lengths: np.ndarray
    name: str = "set"
    fingerprint: str = "0"

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> Document:
        raise AssertionError("read, where lengths are enough")

    def document_id(self, index: int) -> str:
        return f"{self.name}-{index}"


def lengths(*numbers: int, name: str = "set") -> Lengths:
    return Lengths(np.array(numbers), name)


def blend_of(*weights: float | int) -> Blend:
    return Blend([TaskSpec(name=f"t{i}", sources=[lengths(5)], weight=weight) for i, weight in enumerate(weights)])


WEIGHTS = st.lists(
    st.integers(1, 1000) | st.floats(1e-6, 1e6) | st.sampled_from([1, 0.4, 0.2, 1e-9]), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**12))
def test_counts_add_up_never_shrink_and_never_drift(weights: list[float], start: int) -> None:
    blend = blend_of(*weights)
    bound = 1 if len(weights) <= 3 else Fraction(17, 10)
    before = blend.counts(start)
    for documents in range(start + 1, start + 60):
        counts = blend.counts(documents)
        assert sum(counts) == documents
        assert sorted(after - was for was, after in zip(before, counts, strict=True)) == [0] * (len(counts) - 1) + [1]
        for count, share in zip(counts, blend.shares, strict=True):
            assert abs(count - documents * share) < bound
        before = counts


def test_the_release_s_weights_are_met_in_every_window() -> None:
    blend = blend_of(0.4, 0.4, 0.2)
    assert blend.shares == (Fraction(2, 5), Fraction(2, 5), Fraction(1, 5))  # not the nearest binary numbers
    for window in range(1000):
        taken = [b - a for a, b in zip(blend.counts(500 * window), blend.counts(500 * (window + 1)), strict=True)]
        assert taken == [200, 200, 100]


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=8), times=st.integers(0, 10**6))
def test_whole_periods_are_met_exactly(weights: list[int], times: int) -> None:
    assert blend_of(*weights).counts(times * sum(weights)) == tuple(times * weight for weight in weights)


def test_a_rare_task_never_gives_a_document_back() -> None:
    """Roundings of cumulative weights would: the middle task, one document in 20, loses its first one again."""
    by_rounding = [[int(n * x) for x in (0.45, 0.5)] for n in range(4)]
    assert [second - first for first, second in by_rounding] == [0, 0, 1, 0]
    counts = [blend_of(0.45, 0.05, 0.5).counts(n)[1] for n in range(200)]
    assert counts == sorted(counts) and counts[-1] == 10


# A task's stream


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 99), epoch=st.integers(0, 10**6))
def test_each_document_comes_once_an_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    spec = TaskSpec(name="asr", sources=[Lengths(np.full(size, 5)) for size in sizes])
    stream = TaskStream(spec, 16, seed)
    n = sum(sizes)
    sources, documents, _ = stream.locate(stream.draw(epoch * n, (epoch + 1) * n))
    found = sorted(zip(sources.tolist(), documents.tolist(), strict=True))
    assert found == [(source, document) for source, size in enumerate(sizes) for document in range(size)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), first=st.integers(0, 500), size=st.integers(0, 200))
def test_any_stretch_of_the_stream_is_its_documents_one_by_one(n: int, first: int, size: int) -> None:
    stream = TaskStream(TaskSpec(name="asr", sources=[Lengths(np.full(n, 5))]), 16, seed=1)
    alone = [int(stream.draw(j, j + 1)[0]) for j in range(first, first + size)]
    assert stream.draw(first, first + size).tolist() == alone


def test_epochs_tasks_and_seeds_have_orders_of_their_own() -> None:
    def order(name: str, seed: int, epoch: int) -> list[int]:
        spec = TaskSpec(name=name, sources=[Lengths(np.full(100, 5))])
        return TaskStream(spec, 16, seed).draw(100 * epoch, 100 * (epoch + 1)).tolist()

    orders = [order("asr", 1, 0), order("asr", 1, 1), order("tts", 1, 0), order("asr", 2, 0)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@settings(max_examples=100, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=12), min_size=1, max_size=4),
    stop=st.integers(0, 100),
)
def test_long_documents_are_left_out_or_kept_and_counted_as_the_policy_says(shards: list[list[int]], stop: int) -> None:
    row_length, sources = 10, [lengths(*shard) for shard in shards]
    everything = [(s, d, n) for s, shard in enumerate(shards) for d, n in enumerate(shard)]
    long = [n for _, _, n in everything if n > 11]
    fits = [entry for entry in everything if entry[2] <= 11]
    lost = {"split": 0, "drop": sum(long), "cut_left": sum(n - 11 for n in long)}
    for policy in ("split", "drop", "cut_left"):
        spec = TaskSpec(name="asr", sources=sources, long_policy=policy)  # type: ignore[arg-type]
        kept = fits if policy == "drop" else everything
        if not kept:
            with pytest.raises(DataError, match="task asr: every document is longer than a row of 10"):
                TaskStream(spec, row_length, 0)
            continue
        stream = TaskStream(spec, row_length, 0)
        columns = stream.locate(np.arange(len(kept)))
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == kept
        summary = stream.summary(0.5)
        assert (summary.documents, summary.long_documents) == (len(kept), len(long))
        assert summary.ids_left_out == lost[policy] and summary.ids == sum(map(sum, shards)) - lost[policy]
        taken = stream.locate(stream.draw(0, stop))[2]
        assert stream.long_before(stop) == int((taken > 11).sum())


def test_default_policies_split_what_has_no_prompt_and_drop_the_rest() -> None:
    names = ("asr", "tts", "text-lm", "audio-lm", "interleaved", "speech-instruct", "text-instruct")
    policies = {name: TaskSpec(name=name, sources=[lengths(5)]).policy for name in names}
    assert {name for name, policy in policies.items() if policy == "split"} == {"text-lm", "audio-lm", "interleaved"}
    assert set(policies.values()) == {"split", "drop"}


# Refusals


@pytest.mark.parametrize("weight", [0, -1, -0.5, float("nan"), float("inf"), "1", True, None])
def test_a_weight_that_is_no_number_above_0_is_refused_by_name(weight: object) -> None:
    with pytest.raises(ConfigError, match="tts.weight = .*: not a number above 0"):
        TaskSpec(name="tts", sources=[lengths(5)], weight=weight)  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="tts.long_policy = 'cut': unknown; use one of split, drop, cut_left, refuse"):
        TaskSpec(name="tts", sources=[lengths(5)], long_policy="cut")  # type: ignore[arg-type]


def test_tasks_without_documents_and_blends_without_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="task tts: no dataset"):
        TaskSpec(name="tts", sources=[])
    with pytest.raises(DataError, match="task tts, dataset 1: holds no document"):
        TaskSpec(name="tts", sources=[lengths(5), lengths()])
    with pytest.raises(DataError, match="task tts, dataset 0: without a fingerprint"):
        TaskSpec(name="tts", sources=[Lengths(np.array([5]), fingerprint="")])
    with pytest.raises(DataError, match="a blend of no tasks"):
        Blend([])
    with pytest.raises(DataError, match="task t: named twice"):
        Blend([TaskSpec(name="t", sources=[lengths(5)])] * 2)


def test_documents_that_cannot_be_used_are_refused_by_id() -> None:
    with pytest.raises(DataError, match="task asr, document b-1: has 1 tokens, at least 2"):
        TaskStream(TaskSpec(name="asr", sources=[lengths(5), lengths(3, 1, name="b")]), 16, 0)
    spec = TaskSpec(name="asr", sources=[lengths(5), lengths(3, 99, 98, name="b")], long_policy="refuse")
    with pytest.raises(DataError, match=r"document b-1: 99 tokens do not fit a row of 16 \(2 such documents\)"):
        TaskStream(spec, 16, 0)
    assert TaskStream(spec, 98, 0).num_documents == 4  # 99 ids take 98 places


# Datasets on disk


def write_task(folder: Path, task: str, num_units: int = 22, codec: str = "a") -> Path:
    runs = [(Run(np.arange(n, dtype=np.int32), 0, False), Run(np.arange(3, dtype=np.int32), 0, True)) for n in (4, 40)]
    documents = [DocumentRuns(f"{task}-{n}", parts) for n, parts in enumerate(runs)]
    identity = CodecIdentity(name="c", hash=codec * 64, num_units=num_units, sample_rate=16000, frame_s=0.02)
    return write_dataset(folder, documents, tokens=tiny_token_map(num_units=num_units), task=task, codec=identity)


def test_datasets_of_one_task_are_opened_as_one_and_split_or_dropped_by_their_task(tmp_path: Path) -> None:
    folders = [write_task(tmp_path / name, "text-lm") for name in "ab"]
    spec = open_task(folders, tiny_token_map(), name="web", weight=0.2)
    assert (spec.name, spec.policy, len(spec.sources), spec.codec) == ("web", "split", 2, "a" * 64)
    stream = TaskStream(spec, 16, 0)
    assert (stream.num_documents, stream.num_long) == (4, 2) and stream.name_of(1, 0) == "task web, document text-lm-0"
    assert spec.sources[0].document(0).is_trained[3:5].tolist() == [False, True]  # type: ignore[attr-defined]
    spec = open_task([write_task(tmp_path / "c", "asr")], tiny_token_map())
    assert (spec.name, spec.policy) == ("asr", "drop")


def test_datasets_of_another_vocabulary_task_or_codec_are_refused_by_folder(tmp_path: Path) -> None:
    asr = write_task(tmp_path / "asr", "asr")
    with pytest.raises(DataError, match="asr: another token map: "):
        open_task([asr], tiny_token_map(num_units=21))
    with pytest.raises(DataError, match="tts: its task is tts, but asr in .*asr; datasets taken as one must agree"):
        open_task([asr, write_task(tmp_path / "tts", "tts")], tiny_token_map())
    other = write_task(tmp_path / "other", "asr", codec="b")
    with pytest.raises(DataError, match="other: its codec is bbb"):
        open_task([asr, other], tiny_token_map())
    with pytest.raises(DataError, match="tasks asr and asr-2: made with different codecs"):
        Blend([open_task([asr], tiny_token_map()), open_task([other], tiny_token_map(), name="asr-2")])
    with pytest.raises(DataError, match="task asr: no dataset"):
        open_task([], tiny_token_map(), name="asr")
