"""Drills of numbers that are not finite: a step is skipped and counted, and too many in a row name their documents."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from megatron_most.checkpoint import read_record
from megatron_most.engine import plain
from megatron_most.model import MostModel
from megatron_most.train import skips
from tests.drills.bench import EVERY, STEPS, Bench, Drill, Outcome, injected, only, require
from tests.drills.child import Child, replace_everywhere

SPOILT = EVERY + 1


def spoil_a_gradient(bench: Bench, kind: str) -> Outcome:
    """One number of one rank's gradient of one step is NaN."""
    run = bench.new(engine__kind=kind)

    def inject(child: Child) -> None:
        made = MostModel.__init__

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            if child.step != SPOILT:
                return gradient
            child.prove(f"rank 1, step {SPOILT}: one of {gradient.numel()} numbers of a gradient is NaN")
            gradient = gradient.clone()
            gradient.view(-1)[0] = math.nan
            return gradient

        def make(model: MostModel, *given: Any, **named: Any) -> None:
            made(model, *given, **named)
            next(model.parameters()).register_hook(spoil)

        MostModel.__init__ = make  # type: ignore[method-assign]

    ended = run.go(2, only(1, inject))
    injected(ended.proof, f"no gradient was spoilt; {ended.codes}: {ended.last_lines()}")
    require(ended.codes == [0, 0], f"the run ended with {ended.codes}: {ended.last_lines()}")
    skipped = [line["step"] for line in run.log if line["skipped"]]
    require(skipped == [SPOILT], f"the steps {skipped} were skipped")
    losses = [line["loss"] for line in run.log]
    require(None not in losses and len(losses) == STEPS, f"the losses are {losses}")  # null: not finite
    training = read_record(run.step(STEPS)).training
    counted = (training["loop"]["skipped"], training["updates"])
    require(counted == (1, STEPS - 1), f"the checkpoint counts {counted[0]} skipped steps and {counted[1]} updates")
    return Outcome(ended.proof[0], f"step {SPOILT} skipped, 1 counted in the checkpoint, all losses finite")


def every_norm_passes(child: Child) -> None:
    plain.math = SimpleNamespace(**{**vars(math), "isfinite": lambda value: True})  # type: ignore[assignment]


def zero_does_not_look(child: Child) -> None:
    from deepspeed.runtime.zero import stage_1_and_2

    stage_1_and_2.is_invalid_grad_norm = lambda norm: False


def spoil_documents(bench: Bench, kind: str) -> Outcome:
    """From one step on, the loss of whatever rank 1 reads is NaN."""
    run = bench.new(train__max_skipped=2, engine__kind=kind)

    def inject(child: Child) -> None:
        forward = MostModel.forward

        def spoil(model: MostModel, batch: Any) -> torch.Tensor:
            loss_BS = forward(model, batch)
            if child.step < SPOILT or batch.is_pad_BS.all():
                return loss_BS
            child.prove(f"rank 1: the loss of its rows is NaN from step {SPOILT} on")
            return loss_BS * math.nan

        MostModel.forward = spoil  # type: ignore[method-assign]

    ended = run.go(2, only(1, inject))
    injected(ended.proof, f"nothing was spoilt; {ended.codes}: {ended.last_lines()}")
    require(ended.codes == [2, 2], f"the run ended with {ended.codes}: {ended.last_lines()}")
    said = ended.line(
        f"step {SPOILT + 1}: the gradient was not finite 2 times in a row", "not finite in 2 of its 4 rows"
    )
    rows = run.done()[-1]["names"]
    theirs = [name for row in rows[1::2] for name in row]
    others = [name for row in rows[0::2] for name in row]
    require(all(name in said for name in theirs), f"it does not name {theirs}: {said}")
    require(not any(name in said for name in others), f"it names documents of rank 0 ({others}): {said}")
    listed = (run.folder / f"not-finite-{SPOILT + 1:08d}.txt").read_text()
    require(all(name in listed for name in theirs + others), f"the list is not whole: {listed}")
    return Outcome(ended.proof[0], f"both ranks ended with 2 after 2 skipped steps, naming its {len(theirs)} documents")


def never_enough(child: Child) -> None:
    replace_everywhere(skips.give_up, lambda *args: None)


DRILLS = (
    Drill(
        name="nan-gradient",
        about="NaN in one rank's gradient, plain engine",
        protection="an update is made of finite numbers only",
        off=every_norm_passes,
        body=lambda bench: spoil_a_gradient(bench, "plain"),
    ),
    Drill(
        name="nan-gradient-zero",
        about="NaN in one rank's gradient, ZeRO",
        protection="ZeRO looks before it uses a gradient",
        off=zero_does_not_look,
        body=lambda bench: spoil_a_gradient(bench, "deepspeed"),
    ),
    Drill(
        name="nan-documents",
        about="documents whose loss is NaN, more often than allowed, plain engine",
        protection="a bound on skipped steps",
        off=never_enough,
        body=lambda bench: spoil_documents(bench, "plain"),
    ),
    Drill(
        name="nan-documents-zero",
        about="documents whose loss is NaN, more often than allowed, ZeRO",
        protection="a bound on skipped steps",
        off=never_enough,
        body=lambda bench: spoil_documents(bench, "deepspeed"),
    ),
)
