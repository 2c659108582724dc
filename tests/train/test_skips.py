"""When too many steps are skipped, the end says whether documents, the gradient alone or the weights are to blame."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron_most.model import MostModel
from tests.drills.bench import Bench
from tests.drills.child import Child
from tests.harness import warm

SPOILT = 2


def spoil_gradients(child: Child, model: MostModel) -> None:
    weight = next(model.parameters())
    weight.register_hook(lambda gradient: gradient * math.nan if child.step >= SPOILT else gradient)


def spoil_all_gradients(child: Child, model: MostModel) -> None:
    next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)


def spoil_weights(child: Child, model: MostModel) -> None:
    with torch.no_grad():
        child.on("step", SPOILT, lambda: next(model.parameters()).data.fill_(math.nan))


def with_model(spoil: Callable[[Child, MostModel], None]) -> Callable[[Child], None]:
    def inject(child: Child) -> None:
        made = MostModel.__init__

        def make(model: MostModel, *given: object, **named: object) -> None:
            made(model, *given, **named)  # type: ignore[arg-type]
            spoil(child, model)

        MostModel.__init__ = make  # type: ignore[method-assign]

    return inject


@pytest.mark.parametrize(
    ("spoil", "blame"),
    [
        (spoil_gradients, "though the loss of each of its 4 rows is: lower train.learning_rate"),
        (spoil_weights, "so the weights themselves may be spoilt: go back to a checkpoint"),
    ],
    ids=["gradient", "weights"],
)
def test_the_end_says_what_is_to_blame(tmp_path: Path, spoil: Callable[[Child, MostModel], None], blame: str) -> None:
    warm()
    run = Bench(tmp_path).new(train__max_skipped=2)
    ended = run.go(1, with_model(spoil))
    assert ended.codes == [2], ended.all_said
    assert blame in ended.line(f"step {SPOILT + 1}: the gradient was not finite 2 times in a row")
    listed = (run.folder / f"not-finite-{SPOILT + 1:08d}.txt").read_text().splitlines()
    names = [name for row in run.done()[-1]["names"] for name in row]
    assert len(listed) == 4 and all(any(name in line for line in listed) for name in names)
    is_finite = {line.split()[0] for line in listed} == {"finite"}
    assert is_finite is (spoil is spoil_gradients)


def test_a_run_that_is_started_again_counts_on(tmp_path: Path) -> None:
    warm()
    run = Bench(tmp_path).new(train__max_skipped=3, checkpoint__every=1)
    for spoil in (spoil_gradients, spoil_all_gradients):  # saved after two of them, it takes the third alone
        ended = run.go(1, with_model(spoil))
        assert ended.codes == [2], ended.all_said
        assert ended.line(f"step {SPOILT + 2}: the gradient was not finite 3 times in a row")
