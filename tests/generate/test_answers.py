"""The loop over tokens: when rows end, what they depend on, who hears of them, and what is left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_most.data import Wave
from megatron_most.errors import ConfigError, DataError, MostError
from megatron_most.generate import Answer, Prompt, Settings, generate
from megatron_most.vocab import AUDIO, TEXT
from tests.generate.fakes import FakeModel

TOKENS = FakeModel().tokens
BOS, EOS, BEGIN, END = TOKENS.bos_id, TOKENS.eos_id, TOKENS.begin_audio_id, TOKENS.end_audio_id
PROMPTS = [Prompt.of(ids, TOKENS) for ids in ([BOS, 1, 2], [BOS, BEGIN, 41, 42, END, 3], [BOS], [BOS, 9, 8, 7, 6, 5])]
SAMPLED = Settings(max_new_tokens=30, temperature=1.3, top_k=20, seed=3)


def said(answers: list[Answer]) -> list[tuple[list[int], str]]:
    return [(answer.ids, answer.stopped) for answer in answers]


@pytest.mark.parametrize("settings", [Settings(max_new_tokens=30), SAMPLED], ids=["greedy", "sampled"])
def test_a_row_says_the_same_whatever_else_is_in_the_batch(settings: Settings) -> None:
    model = FakeModel(wish={EOS: 2.0})
    together = generate(model, PROMPTS, settings)
    lengths = [len(answer.ids) for answer in together]
    assert len({*lengths}) > 2
    # Those that have ended have left: a step has as many rows as have not said all by then.
    assert model.batches == [sum(length > done for length in lengths) for done in range(max(lengths))]
    others = [PROMPTS[0], PROMPTS[1], PROMPTS[2], Prompt.of([BOS, 20, 21], TOKENS)]
    again = generate(model, others, settings)
    assert said(again)[:3] == said(together)[:3] and again[3].logprobs != together[3].logprobs
    assert said(generate(model, PROMPTS[:1], settings))[0] == said(together)[0]


def test_rows_with_settings_of_their_own_say_what_they_say_alone() -> None:
    model = FakeModel(wish={EOS: 4.0})
    each = [SAMPLED, Settings(max_new_tokens=5, temperature=1.0, seed=9), Settings(max_new_tokens=3), SAMPLED]
    together = generate(model, PROMPTS, each)
    alone = [generate(model, [prompt], settings)[0] for prompt, settings in zip(PROMPTS, each, strict=True)]
    assert said(together) == said(alone)
    with pytest.raises(MostError, match="2 settings for 4 prompts"):
        generate(model, PROMPTS, each[:2])


def test_seed_row_and_place_decide_a_draw() -> None:
    model = FakeModel(wish={EOS: -50.0})
    first = generate(model, [PROMPTS[0]] * 3, SAMPLED)
    assert said(first) == said(generate(model, [PROMPTS[0]] * 3, SAMPLED))
    assert len({tuple(answer.ids) for answer in first}) == 3  # rows draw apart
    other = Settings(max_new_tokens=30, temperature=1.3, top_k=20, seed=4)
    assert said(generate(model, [PROMPTS[0]], other)) != said(first)[:1]


def test_an_answer_ends_at_eos_at_its_length_and_where_positions_end() -> None:
    [ended] = generate(FakeModel(wish={EOS: 90.0}), [PROMPTS[0]], Settings(max_new_tokens=9))
    assert (ended.ids, ended.stopped) == ([EOS], "eos")
    model = FakeModel(max_positions=10, wish={EOS: -90.0})
    few, full = (generate(model, [PROMPTS[0]], Settings(max_new_tokens=most))[0] for most in (4, 50))
    assert (len(few.ids), few.stopped) == (4, "length")
    assert (len(full.ids), full.stopped) == (10 - 3, "length")
    [exact] = generate(FakeModel(wish={EOS: 90.0}), [PROMPTS[0]], Settings(max_new_tokens=1))
    assert exact.stopped == "eos"


def test_tokens_are_told_as_they_come_with_their_tags_and_log_probabilities() -> None:
    model, told = FakeModel(wish={BEGIN: 5.0, EOS: -2.0}), []
    answers = generate(model, PROMPTS, SAMPLED, lambda row, id, tag: told.append((row, id, tag)))
    for number, answer in enumerate(answers):
        assert [(id, tag) for row, id, tag in told if row == number] == list(zip(answer.ids, answer.tags, strict=True))
        assert answer.tags == [TOKENS.tag_of(id) for id in answer.ids]
        row = list(PROMPTS[number].ids)
        for id, logprob in zip(answer.ids, answer.logprobs, strict=True):
            assert logprob == pytest.approx(float(model.logits(row).log_softmax(-1)[id]), abs=1e-5)
            row.append(id)
        assert answer.seconds > 0
    assert {tag for _, _, tag in told} == {TEXT, AUDIO}
    assert [row for row, _, _ in told[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]  # step by step, not row by row


def test_a_cancelled_row_leaves_and_changes_no_other() -> None:
    model, heard = FakeModel(wish={EOS: -50.0}), [0] * 4
    whole = generate(model, PROMPTS, SAMPLED)

    def count(row: int, id: int, tag: int) -> None:
        heard[row] += 1

    answers = generate(model, PROMPTS, SAMPLED, count, lambda row: row == 1 and heard[1] == 3)
    assert answers[1].stopped == "cancelled" and answers[1].ids == whole[1].ids[:3] and heard[1] == 3
    assert [said(answers)[row] for row in (0, 2, 3)] == [said(whole)[row] for row in (0, 2, 3)]
    assert [answer.ids for answer in generate(model, PROMPTS, SAMPLED, None, lambda row: True)] == [[]] * 4
    assert model.num_open == 0


@pytest.mark.parametrize("where", ["step", "on_token", "is_cancelled"])
def test_an_error_leaves_nothing_open(where: str) -> None:
    model = FakeModel()

    def fail(*_: Any) -> Any:
        raise OSError("gone")

    callbacks = {where: fail} if where != "step" else {}
    if where == "step":
        model.logits = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        generate(model, PROMPTS, SAMPLED, **callbacks)
    assert model.num_open == 0 and torch.is_grad_enabled()


def test_no_prompts_have_no_answers() -> None:
    assert generate(FakeModel(), [], SAMPLED) == []


BAD_PROMPTS = [
    (Prompt([], []), "prompt 1: empty"),
    (Prompt([1, 2], [0]), "2 ids, but 1 tags"),
    (Prompt([BOS, 999], [0, 0]), "token 1: id 999 is outside"),
    (Prompt([BOS, -1], [0, 0]), "token 1: id -1 is outside"),
    (Prompt([TOKENS.vocab_size - 1], [0]), "outside the vocabulary"),
    (Prompt([BOS, BEGIN], [0, 0]), "token 1: id .* has tag 1, not 0"),
    (Prompt([1] * 64, [0] * 64), "64 tokens leave no room .* 64 positions"),
    (Prompt([BOS], [0], Wave(np.array([1]), np.zeros((1, 3)))), "places of frames are not ascending numbers below 1"),
    (Prompt([BOS], [0], Wave(np.array([0]), None)), "1 places of frames, but not as many features"),
    (Prompt([BOS], [0], Wave(np.array([0]), np.zeros((1, 3)), np.zeros(2, bool))), "1 frames, but 2 words on whether"),
    (Prompt([BOS], [0], Wave(np.array([0]), np.full((1, 3), np.nan))), "its frames hold NaN or infinity"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=[message[:20] for _, message in BAD_PROMPTS])
def test_a_bad_prompt_is_refused_before_anything_is_computed(prompt: Prompt, message: str) -> None:
    model = FakeModel()
    with pytest.raises(DataError, match=message):
        generate(model, [PROMPTS[0], prompt], SAMPLED)
    assert model.num_open == 0 and not model.batches


BAD_SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 0}, {"max_new_tokens": 2.5}, {"max_new_tokens": True}, {"temperature": -0.1},
    {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": 1e-40}, {"temperature": 1e300},
    {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"top_k": 1.0}, {"repetition_penalty": 0.0},
    {"repetition_penalty": 1e-40}, {"repetition_penalty": 1e39}, {"seed": -1}, {"seed": 2**63}, {"mode": "speech"},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_refused_by_name(values: dict[str, Any]) -> None:
    [name] = values
    with pytest.raises(ConfigError) as refused:
        Settings(**values)
    assert refused.value.field == name
