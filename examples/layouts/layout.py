"""Try a layout: a tiny modality-aware MoE learns made-up text and made-up speech units, side by side, on a CPU.

    .venv/bin/python examples/layouts/layout.py
    .venv/bin/torchrun --nproc-per-node 2 examples/layouts/layout.py --layout.expert 2   # the same, expert-parallel

Any setting of the recipe can be given: see --help.
"""

from __future__ import annotations

import time

from megatron_most.config import from_command_line
from megatron_most.engine import StepReport, make_engine, open_session
from megatron_most.errors import MostError
from megatron_most.model import build_model
from megatron_most.moe import LayerTelemetry, collect, routers
from megatron_most.runtime import get_logger, run_command, set_threads
from megatron_most.train import synthetic_steps, train

EVERY = 10  # steps between lines
say = get_logger("demo").info


def main() -> None:
    config = from_command_line(default="most-tiny", prog="layout.py")
    started = time.monotonic()
    reports: list[StepReport] = []

    def note(step: int, report: StepReport) -> None:
        reports.append(report)
        if step % EVERY == 0 or step == config.train.steps - 1:
            losses = "   ".join(f"{name} {loss:6.3f}" for name, loss in report.losses.items())
            say(f"step {step:3d}   loss by modality: {losses}   gradient norm {report.gradient_norm:.2f}")

    with open_session(config) as session:
        set_threads(1)  # a model this small gains nothing from more, and loses much when the machine is busy
        model = build_model(session.plan, session.groups, session.device.torch_device)
        size = sum(weight.numel() for weight in model.parameters())
        say(f"{config.name}: {size:,} parameters on this rank, {session.plan.layout}")
        engine = make_engine(model, session.plan, session.groups)
        train(
            engine, synthetic_steps(session.plan, session.groups), config.train.steps, config.train.learning_rate, note
        )
        for layer in collect(routers(model), session.groups.tokens, session.groups.stages):
            say(describe(layer))
    fell = {
        name: (reports[0].losses[name], loss) for name, loss in reports[-1].losses.items() if name in reports[0].losses
    }
    say("   ".join(f"{name} {first:.3f} -> {last:.3f}" for name, (first, last) in fell.items()))
    say(f"{config.train.steps} steps in {time.monotonic() - started:.0f} s")
    if not all(fell[name][1] < 0.7 * fell[name][0] for name in ("text", "audio")):
        raise MostError(
            "a loss did not fall: the demo did not learn; try the recipe's own learning rate and batch size"
        )


def describe(layer: LayerTelemetry) -> str:
    """One line a layer: which tokens went where, and how evenly."""
    tokens = ", ".join(f"{count} {name}" for name, count in layer.tokens_per_tag.items())
    groups = "; ".join(f"{group.name} experts: load max/mean {group.load_max_over_mean:.2f}" for group in layer.groups)
    return f"layer {layer.layer}: {tokens} tokens; {groups}"


if __name__ == "__main__":
    run_command(main)
