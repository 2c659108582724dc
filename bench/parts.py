"""Where a training step's time goes: every part's own, forward and backward, as a share of the step.

    .venv/bin/python bench/parts.py
    .venv/bin/torchrun --nproc-per-node 2 bench/parts.py --expert 2      # what is sent between ranks counts as well

A part's time is what passes inside its modules and not inside a part of theirs: the dispatcher's is that of a layer
with experts less its router, its experts and its shared experts, and has the all-to-all in it. Shares of one step add
up to 1. One process on a CPU counts CPU time, as other work on the machine moves it little; elsewhere the clock on the
wall is read, as waiting for another rank or for the device is a part of the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from race import HEAD, Row

from megatron_most.config import load_recipe, replace
from megatron_most.engine import Session, open_session
from megatron_most.engine.gradients import clip_gradients, reduce_gradients
from megatron_most.engine.schedule import run_micro_batches
from megatron_most.model import build_model
from megatron_most.moe import measure_closely, routers
from megatron_most.runtime import progress, run_command, set_threads
from megatron_most.train import synthetic_steps

WARM_UP = 2
RATE = 1e-4
PARTS = {  # the end of a module's name -> part; the first that fits
    "embedding": "embedding", "self_attention": "attention", "mlp.router": "router", "mlp.experts": "experts",
    "mlp.shared_experts": "shared experts", "layernorm": "norms", "output_layer": "head",
}  # fmt: skip
ORDER = [
    "embedding", "norms", "attention", "dense mlp", "router", "dispatch", "experts", "shared experts", "head",
    "loss and the rest", "gradient exchange", "clipping", "optimizer",
]  # fmt: skip
WAYS = ("forward", "backward", "after")


class Watch:
    """Whose time it is: the part that was entered last and has not been left."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.begin()

    def begin(self) -> None:
        """A step: nothing has been entered but the whole."""
        self._open, self._since, self.way = ["loss and the rest"], self._now(), "forward"
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def enter(self, part: str) -> None:
        self._take()
        self._open.append(part)

    def leave(self, part: str) -> None:
        """What a part left open within it, as a backward pass whose end nobody is told of, ends with it."""
        self._take()
        if part in self._open[1:]:
            while self._open.pop() != part:
                pass

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        self.enter(part)
        yield
        self.leave(part)

    def _take(self) -> None:
        at = self._now()
        self.seconds[self._open[-1], self.way] += at - self._since
        self._since = at


def watch_modules(model: torch.nn.Module, watch: Watch) -> None:
    """Hooks at the doors of every part's modules, both ways."""
    for name, module in model.named_modules():
        if (part := part_of(name, module)) is None:
            continue

        def enter(*_: Any, part: str = part) -> None:
            watch.enter(part)

        def leave(*_: Any, part: str = part) -> None:
            watch.leave(part)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
        if part == "head":  # its output is changed in place by the loss, which hooks of a module do not bear
            module.register_forward_pre_hook(lambda _, inputs, leave=leave: inputs[0].register_hook(leave) and None)
            module.register_forward_hook(lambda *io, enter=enter: io[-1][0].register_hook(enter) and None)
            continue
        module.register_full_backward_pre_hook(enter)
        if part != "embedding":  # nothing is asked of ids, so nobody tells the end
            module.register_full_backward_hook(leave)


def part_of(name: str, module: torch.nn.Module) -> str | None:
    """None: a piece of a part, or of nothing that is told apart."""
    if name.endswith(".mlp"):
        return "dispatch" if hasattr(module, "router") else "dense mlp"
    return next((part for end, part in PARTS.items() if name.endswith(end) and "self_attention." not in name), None)


def rows_of(session: Session, steps: int) -> Iterator[Row]:
    device, groups = session.device, session.groups
    model = build_model(session.plan, groups, device.torch_device).train()
    measure_closely(routers(model), False)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, fused=True)
    batches_of = synthetic_steps(session.plan, groups)

    clock = time.process_time if device.kind == "cpu" and session.ranks.world_size == 1 else time.perf_counter

    def now() -> float:
        device.synchronize()
        return clock()

    watch, kept = Watch(now), []
    watch_modules(model, watch)
    for step in progress(range(WARM_UP + steps), "steps", "step"):
        batches = batches_of(step)
        for weight in weights:
            weight.grad = None
        watch.begin()
        with turning(watch):
            run_micro_batches(model, batches, groups)
        watch.way = "after"
        with watch.within("gradient exchange"):
            reduce_gradients(weights, groups)
        with watch.within("clipping"):
            clip_gradients(weights, float(torch.nn.utils.get_total_norm([w.grad for w in weights])), 1.0)
        with watch.within("optimizer"):
            optimizer.step()
        if step >= WARM_UP:
            kept.append(dict(watch.seconds))
    whole = statistics.median(sum(seconds.values()) for seconds in kept)
    for part in [name for name in ORDER if any(name == key for seconds in kept for key, _ in seconds)]:
        ways = {way: statistics.median(seconds.get((part, way), 0.0) for seconds in kept) for way in WAYS}
        own = [sum(seconds.get((part, way), 0.0) for way in WAYS) for seconds in kept]
        told = ", ".join(f"{way} {1e3 * taken:.3g} ms" for way, taken in ways.items() if taken)
        share = statistics.median(mine / sum(seconds.values()) for mine, seconds in zip(own, kept, strict=True))
        yield Row(part=f"share of a step: {part}", ours=told, peer=f"{whole:.3g} s", ratio=share, seconds={"own": own})


@contextmanager
def turning(watch: Watch) -> Iterator[None]:
    """Core's schedule goes backward in the middle of a call: from there on it is."""
    real = torch.autograd.backward

    def backward(*args: Any, **words: Any) -> None:
        watch.enter("loss and the rest")
        watch.way = "backward"
        real(*args, **words)
        watch.leave("loss and the rest")
        watch.way = "forward"

    torch.autograd.backward = backward  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.backward = real


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--recipe", default="most-mini")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--expert", type=int, default=1, help="ranks that share the experts; start as many")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layers", type=int, help="the first ones of the recipe; default: all")
    parser.add_argument("--length", type=int, help="tokens in a row; default: the recipe's")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    chosen = parser.parse_args()
    changes: dict[str, Any] = {"engine.kind": "plain", "engine.precision": chosen.precision}
    changes |= {"layout.expert": chosen.expert, "train.micro_batch_size": 4}
    changes |= {"train.global_batch_size": 4 * chosen.expert}
    changes |= {"model.num_layers": chosen.layers} if chosen.layers else {}
    changes |= {"train.sequence_length": chosen.length} if chosen.length else {}
    with open_session(replace(load_recipe(chosen.recipe), changes)) as session:
        if session.device.kind == "cpu":
            set_threads(1)
        rows = list(rows_of(session, chosen.steps))
        if session.ranks.rank == 0:
            if not chosen.json:
                print(HEAD)
            print("\n".join(json.dumps(vars(row)) if chosen.json else row.to_markdown() for row in rows))
    return 0


if __name__ == "__main__":
    run_command(main)
