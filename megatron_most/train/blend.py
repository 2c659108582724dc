"""The reader that a plan's [data] tables ask for."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from typing import Literal

from megatron_most.config import Plan, TaskConfig
from megatron_most.data import Blend, FrameAugment, FrameOpener, Reader, TaskSpec, load_info, open_task
from megatron_most.data.tasks import TASKS
from megatron_most.errors import ConfigError
from megatron_most.runtime import Device
from megatron_most.train.frames import require_frames_fit

FORGETTING = "forgetting"
"""The validation set of the gate of that name."""
REAL = "-real"
"""What the stream of a task's real speech is called after the task."""


def open_reader(plan: Plan, *, device: Device | None = None, needs_features: bool = True) -> Reader:
    """Open every dataset; those of another vocabulary or codec are refused by name. `needs_features`: False on ranks
    of later pipeline stages, which only have to know where continuous features stand. `device` computes them.
    """
    data, train = plan.config.data, plan.config.train
    named = {field.name: getattr(data, field.name) for field in fields(data)}
    tasks = {name.replace("_", "-"): task for name, task in named.items() if isinstance(task, TaskConfig)}
    require_frames_fit(plan.config, {name: (*task.train, *task.real, *task.valid) for name, task in tasks.items()})
    opener = FrameOpener(
        kept=data.frames, audio_roots=data.audio_roots, model=data.frames_model, device=device,
        needs_features=needs_features,
    )  # fmt: skip
    augment = FrameAugment(data.augment, data.spec_augment)
    weighed = {name: task for name, task in tasks.items() if task.weight}
    blend = [spec for name, task in weighed.items() for spec in _streams(plan, name, task, opener, augment)]
    if not blend:
        raise ConfigError(
            "data", {}, "no task has a weight", "give one, as --data.asr.weight 1 --data.asr.train FOLDER"
        )
    validation = [_open(plan, name, "valid", task, opener) for name, task in tasks.items() if task.valid]
    if folders := plan.config.forgetting.valid:
        _require_task("forgetting.valid", folders, ("text-lm", "text-instruct"))
        validation.append(open_task(folders, plan.tokens, name=FORGETTING, weight=1.0, long_policy="split"))
    opener.require_all_used()
    return Reader(
        Blend(blend),
        row_length=train.sequence_length,
        seed=train.seed,
        token_map=plan.tokens,
        window=train.global_batch_size if train.batch_counts == "documents" else data.window,
        validation=validation,
        validation_documents=data.validation_documents,
        threads=data.frames_threads,
    )


def _require_task(field: str, folders: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """A dataset knows its task: another's would be learnt and reported under a false name. Tasks of a user's own, which
    no name here stands for, may be given anywhere.
    """
    for folder in folders:
        task = load_info(folder).task
        if task in TASKS and task not in wanted:
            remedy = f"name datasets of {' or '.join(wanted)}"
            raise ConfigError(field, folder, f"its dataset.json says that it is of the task {task}", remedy)


def _streams(plan: Plan, name: str, task: TaskConfig, opener: FrameOpener, augment: FrameAugment) -> list[TaskSpec]:
    """Of a task: one, or one of its synthetic data and one of its real speech."""
    weight, real = Fraction(str(task.weight)), Fraction(str(task.real_share))  # 0.4 as 2/5
    synthetic = _open(plan, name, "train", task, opener, augment)
    if not real:
        return [synthetic]
    replayed = _open(plan, name, "real", task, opener, augment)
    return [
        replace(synthetic, weight=weight * (1 - real)),
        replace(replayed, weight=weight * real, name=name + REAL),
    ]


def _open(
    plan: Plan,
    name: str,
    part: Literal["train", "real", "valid"],
    task: TaskConfig,
    opener: FrameOpener,
    augment: FrameAugment | None = None,
) -> TaskSpec:
    folders = getattr(task, part)
    _require_task(f"data.{name.replace('-', '_')}.{part}", folders, (name,))
    return open_task(
        folders,
        plan.tokens,
        name=name,
        weight=task.weight if part != "valid" else 1.0,
        long_policy=None if task.long == "default" else task.long,
        features_of=opener,
        augment=augment if augment is not None and augment.is_on else None,
    )
