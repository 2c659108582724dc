"""One draw against plain torch and against transformers' logits processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron_most.errors import MostError
from megatron_most.generate.sampling import choose, draw, penalised, probabilities, uniform
from megatron_most.generate.settings import Settings

V = 40
ALL = torch.ones(V, dtype=torch.bool)
SEEN = [3, 3, 7, 30, 11]
CASES = [
    Settings(temperature=1.0), Settings(temperature=0.4), Settings(temperature=2.5, top_k=5),
    Settings(temperature=1.0, top_p=0.6), Settings(temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.7),
    Settings(temperature=1.0, top_p=0.01), Settings(temperature=1.0, top_k=1), Settings(temperature=1.0, top_k=999),
    Settings(temperature=1.0, repetition_penalty=0.6),
]  # fmt: skip


def logits(seed: int) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


def of_transformers(scores: torch.Tensor, asked: Settings) -> torch.Tensor:
    steps = LogitsProcessorList([TemperatureLogitsWarper(asked.temperature)])
    if asked.repetition_penalty != 1:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(asked.repetition_penalty))
    if asked.top_k:
        steps.append(TopKLogitsWarper(asked.top_k))
    if asked.top_p < 1:
        steps.append(TopPLogitsWarper(asked.top_p))
    return steps(torch.tensor([SEEN]), scores[None].clone())[0].double().softmax(-1)


@pytest.mark.parametrize("asked", CASES, ids=str)
def test_the_distribution_is_that_of_transformers(asked: Settings) -> None:
    for seed in range(20):
        found = probabilities(penalised(logits(seed), SEEN, asked.repetition_penalty), asked)
        wanted = of_transformers(logits(seed), asked)
        assert torch.equal(found > 0, wanted > 0)
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)  # float32 division before


def by_hand(scores: torch.Tensor, asked: Settings) -> list[float]:
    """In python's numbers, token by token; no tensor's sort, no library's rule."""
    found = [float(score) for score in scores]
    for id in set(SEEN):
        found[id] = found[id] * asked.repetition_penalty if found[id] < 0 else found[id] / asked.repetition_penalty
    found = [score / asked.temperature for score in found]
    order = sorted(range(V), key=lambda id: -found[id])[: asked.top_k or V]
    shares = {id: math.exp(found[id] - found[order[0]]) for id in order}
    total, kept, held = sum(shares.values()), {}, 0.0
    for id in order:
        if held < asked.top_p * total:
            kept[id] = shares[id]
        held += shares[id]
    return [kept.get(id, 0.0) / sum(kept.values()) for id in range(V)]


@pytest.mark.parametrize("asked", CASES, ids=str)
def test_the_distribution_is_the_one_of_the_definitions(asked: Settings) -> None:
    for seed in range(20):
        found = probabilities(penalised(logits(seed), SEEN, asked.repetition_penalty), asked)
        assert found.tolist() == pytest.approx(by_hand(logits(seed), asked), abs=1e-6)  # float32 against float64


@pytest.mark.parametrize("asked", CASES[:5], ids=str)
def test_draws_come_as_often_as_the_distribution_says(asked: Settings) -> None:
    """Chi-square over 4000 places of a row: 99.9 % of right samplers stay below the bound."""
    scores, count = logits(1), 4000
    legal = ALL.clone()
    legal[20:] = False
    wanted = of_transformers(scores.masked_fill(~legal, float("-inf")), asked).numpy()
    drawn = [choose(scores, legal, SEEN, asked, 2, place) for place in range(count)]
    found = np.bincount(drawn, minlength=V)
    assert not found[wanted == 0].any()
    common = wanted * count >= 5
    found = np.append(found[common], found[~common].sum())
    expected = np.append(wanted[common], wanted[~common].sum()) * count
    found, expected = found[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    bound = degrees + 3.3 * np.sqrt(2 * degrees) + 4
    assert ((found - expected) ** 2 / expected).sum() < bound


def test_greedy_is_the_likeliest_legal_token_after_the_penalty() -> None:
    scores, legal = torch.full((V,), -1.0), ALL.clone()
    scores[[5, 6, 7]] = torch.tensor([9.0, 8.0, 7.0])
    legal[5] = False
    assert choose(scores, legal, [], Settings(), 0, 0) == 6
    assert choose(scores, legal, [6], Settings(repetition_penalty=2.0), 0, 0) == 7
    assert choose(scores, legal, [6, 6], Settings(repetition_penalty=1.1), 0, 0) == 6  # once, however often seen


@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1.0, 1e5])
@pytest.mark.parametrize("penalty", [1e-5, 1.0, 1e5])
def test_the_most_that_may_be_asked_for_still_chooses_a_legal_token(temperature: float, penalty: float) -> None:
    """What overflows float32 has no likeliest token, and a draw from it would be beyond the vocabulary."""
    asked = Settings(temperature=temperature, repetition_penalty=penalty)
    for seed in range(20):
        legal = torch.zeros(V, dtype=torch.bool)
        legal[torch.arange(1, 1 + seed % 3 + 1) * 3] = True
        assert legal[choose(logits(seed) * 100, legal, range(V), asked, seed, 5)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_choose_nothing(bad: float) -> None:
    scores, legal = logits(0), ALL.clone()
    scores[5], legal[6] = bad, False
    for asked in (Settings(), Settings(temperature=1.0)):
        with pytest.raises(MostError, match="row 3, token 9: the model's logits are not finite"):
            choose(scores, legal, [], asked, 3, 9)
    with pytest.raises(MostError, match="are not finite"):
        choose(torch.full((V,), float("-inf")), legal, [], Settings(), 0, 0)
    scores[6], scores[5] = bad, 0.0
    assert choose(scores, legal, [], Settings(), 3, 9) == int(scores.masked_fill(~legal, -99).argmax())  # not asked


def test_numbers_depend_on_seed_row_and_place_alone() -> None:
    numbers = [uniform(seed, row, place) for seed in range(3) for row in range(10) for place in range(100)]
    assert numbers == [uniform(seed, row, place) for seed in range(3) for row in range(10) for place in range(100)]
    assert len(set(numbers)) == 3000 and 0 <= min(numbers) and max(numbers) < 1
    assert abs(np.mean(numbers) - 0.5) < 0.02 and abs(np.var(numbers) - 1 / 12) < 0.005
    assert uniform(2**63 - 1, 0, 5) != uniform(0, 0, 5)


def test_a_draw_never_gives_a_token_of_no_probability() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    assert [draw(probs, number) for number in (0.0, 0.2499, 0.25, 1 - 1e-16)] == [1, 1, 3, 3]
