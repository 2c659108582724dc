"""The reference gate's collapse, and the cure: the same tiny model trained with both gates and their auxiliary losses.

    .venv/bin/python bench/gate_collapse.py [--steps 300] [--coefficient 0.01]          # or: make bench

`reference` is the MoST release's gate and sequence auxiliary loss: q' is not renormalised inside the group, so moving
probability out of the group lowers the loss. `masked_softmax` with the group loss has nothing to gain by that.
Printed as Markdown: mean in-group mass and load max/mean per group over the MoE layers, at the start, half way and at
the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_most.config import RunConfig, load_recipe, replace
from megatron_most.engine import PlainEngine, StepReport, open_session
from megatron_most.model import build_model
from megatron_most.moe import LayerTelemetry, collect, routers
from megatron_most.runtime import progress, run_command, set_threads
from megatron_most.train import synthetic_steps

GATES = {"reference": "reference", "masked_softmax": "group"}  # gate: its auxiliary loss
WINDOW = 5  # steps a row is counted over


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps for each gate")
    parser.add_argument("--coefficient", type=float, default=0.01, help="weight of the auxiliary loss")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    chosen = parser.parse_args()
    print(
        "| gate | step | loss | group | in-group mass | load max/mean | dead experts |\n|---|---|---|---|---|---|---|"
    )
    for gate, aux_loss in GATES.items():
        changes = {
            "moe.gate": gate,
            "moe.aux_loss": aux_loss,
            "moe.aux_coefficient": chosen.coefficient,
            "train.steps": chosen.steps,
        }
        run(replace(load_recipe("most-tiny"), changes), chosen.learning_rate)


def run(config: RunConfig, learning_rate: float) -> None:
    """Train with one gate; print a row per group at the start, half way and at the end."""
    steps = config.train.steps
    marks = {WINDOW - 1, steps // 2, steps - 1}
    with open_session(config) as session:
        set_threads(1)  # a model this small gains nothing from more
        model = build_model(session.plan, session.groups, session.device.torch_device)
        engine = PlainEngine(model, session.plan, session.groups)
        batches_of = synthetic_steps(session.plan, session.groups)
        for step in progress(range(steps), config.moe.gate, "step"):
            report = engine.step(batches_of(step), learning_rate)
            if step + WINDOW in {mark + 1 for mark in marks}:
                collect(routers(model), session.groups.tokens, session.groups.stages)  # start a window
            if step in marks:
                show(
                    config.moe.gate, step, report, collect(routers(model), session.groups.tokens, session.groups.stages)
                )


def show(gate: str, step: int, report: StepReport, layers: Sequence[LayerTelemetry]) -> None:
    for index, name in enumerate(group.name for group in layers[0].groups):
        groups = [layer.groups[index] for layer in layers]
        mass = sum(group.in_group_mass for group in groups) / len(groups)
        load = sum(group.load_max_over_mean for group in groups) / len(groups)
        dead = sum(len(group.dead_experts) for group in groups)
        print(f"| {gate} | {step + 1} | {report.loss:.3f} | {name} | {mass:.4f} | {load:.2f} | {dead} |", flush=True)


if __name__ == "__main__":
    run_command(main)
