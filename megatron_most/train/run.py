"""One phase of training, from its recipe to its last checkpoint; started again, it goes on where it stopped.

Order: the plan and every dataset are checked before anything is built; a checkpoint's weights go into the model before
the engine takes it, its moments after; then the loop: read, step, tell, save. All ranks do all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_most.checkpoint import (
    LocalTensors,
    Record,
    Saver,
    Shelf,
    TensorReader,
    find_pieces,
    read_record,
    verify_files,
)
from megatron_most.config import Plan, RunConfig, dump
from megatron_most.data import Position, Reader, ReaderState, Steps
from megatron_most.engine import Engine, Session, make_engine, open_session
from megatron_most.errors import CheckpointError, ConfigError, MostError
from megatron_most.model import build_model
from megatron_most.runtime import (
    PATIENCE,
    Claim,
    Launch,
    agree,
    claim,
    get_logger,
    set_threads,
    write_atomically,
)
from megatron_most.train.blend import open_reader
from megatron_most.train.data_files import Stamps, prove_changed, stamp
from megatron_most.train.metrics import Metrics
from megatron_most.train.resume import require_same_run
from megatron_most.train.schedule import learning_rate
from megatron_most.train.skips import Dealing, give_up
from megatron_most.train.stop import EXIT_STOPPED, StopRequest
from megatron_most.upstream import find_versions

_log = get_logger(__name__)
_GAINS_FROM_THREADS = 512  # hidden size; most-tiny takes 2.3 times as long on two threads of a busy machine as on one
RECIPE, TOKEN_MAP = "resolved.toml", "token_map.json"


@dataclass
class _State:
    """Where a run is."""

    step: int = 0
    position: Position = Position()
    skipped: int = 0
    files: Stamps = field(default_factory=dict)


def run_training(config: RunConfig, launch: Launch | None = None) -> int:
    """Train; the exit code: 0, or EXIT_STOPPED where it was asked to stop and has saved."""
    folder = Path(config.checkpoint.folder.format(name=config.name))
    stop = StopRequest(folder)  # from the first moment: a signal that nobody awaits would end the process unsaved
    with open_session(config, launch) as session, ExitStack() as stack:
        plan = session.plan
        session.ranks.pulse.at("starting", patience=PATIENCE)
        if session.device.kind == "cpu" and plan.config.model.hidden_size < _GAINS_FROM_THREADS:
            set_threads(1)
        reader = open_reader(plan)
        shelf = Shelf(folder / "checkpoints")
        own = stack.enter_context(_claimed(shelf, session))
        found = shelf.find_newest(lambda path, record: _verify_together(path, record, session))
        model = build_model(plan, session.groups, session.device.torch_device)
        pieces = find_pieces(model, plan.moe.expert_at if plan.moe else ())
        state, tensors = _State(), None
        if found is not None:
            state, tensors = _resume(found, config, reader), LocalTensors(TensorReader(*found), pieces)
            prove_changed(config, found[1].training.get("files", {}), session.ranks.rank, session.ranks.world_size)
        elif config.checkpoint.start_from:
            tensors = LocalTensors(_start_from(Path(config.checkpoint.start_from), plan, session), pieces)
        state.files = stamp(config)
        if tensors is not None:
            tensors.fill(model)
        engine = make_engine(model, plan, session.groups)
        if found is not None and tensors is not None:
            engine.load_state(tensors.read, found[1].training["updates"])
            _log.info("going on after step %d, from %s", state.step, found[0])
        saver = Saver(shelf, pieces, own, keep=config.checkpoint.keep, versions=find_versions())
        if session.ranks.rank == 0:
            write_atomically(folder / RECIPE, dump(config))
        metrics = Metrics(folder, state.step, config.train.steps)
        stack.callback(metrics.close)
        return _loop(session, engine, reader, saver, metrics, state, stop, folder)


def _loop(
    session: Session,
    engine: Engine,
    reader: Reader,
    saver: Saver,
    metrics: Metrics,
    state: _State,
    stop: StopRequest,
    folder: Path,
) -> int:
    plan, groups, at = session.plan, session.groups, session.ranks.pulse.at
    train, keep = plan.config.train, plan.config.checkpoint
    dealt = {"rank": groups.data.rank(), "ranks": groups.data.size(), "micro_batch_size": train.micro_batch_size}
    in_a_row, saved, first = 0, state.step, state.step
    with Steps(reader, state.position, rows=train.global_batch_size, **dealt) as steps:  # type: ignore[arg-type]
        while state.step < train.steps:
            at(f"step {state.step}: data", is_own=True)
            data = next(steps)
            at(f"step {state.step}: engine", patience=PATIENCE if state.step == first else 1.0)
            rate = learning_rate(train, state.step)
            report = engine.step(data.batches, rate)
            tokens = sum(row.filled for row in data.rows)
            metrics.step(state.step, report, tokens, learning_rate=rate, position=data.after.to_dict())
            in_a_row = in_a_row + 1 if report.is_skipped else 0
            if in_a_row > train.max_skipped:
                at(f"step {state.step}: looking for documents", patience=PATIENCE)
                give_up(state.step, in_a_row, data, reader, engine, Dealing(**dealt), folder)
            state.step, state.position, state.skipped = state.step + 1, data.after, state.skipped + report.is_skipped
            is_last = state.step == train.steps
            if train.validate_every and (state.step % train.validate_every == 0 or is_last):
                at(f"step {state.step - 1}: validation", patience=PATIENCE)
                _validate(plan, engine, reader, metrics, state.step, dealt)
            at(f"step {state.step - 1}: saving", patience=PATIENCE)
            is_stopped = not is_last and _any_rank(stop.is_asked(look=session.ranks.rank == 0))
            if is_last or is_stopped or (keep.every and state.step % keep.every == 0):
                _save(plan, engine, reader, saver, state)
                metrics.flush()
                saved = state.step
            if is_stopped:
                saver.wait()
                _log.info("stopped after step %d by %s, all saved", saved, stop.reason or "another rank")
                return EXIT_STOPPED
    saver.wait()
    return 0


def _save(plan: Plan, engine: Engine, reader: Reader, saver: Saver, state: _State) -> None:
    training = {
        "step": state.step,
        "updates": engine.updates,
        "skipped": state.skipped,
        "data": reader.state(state.position).to_dict(),
        "files": state.files,
    }
    texts = {RECIPE: dump(plan.config), TOKEN_MAP: plan.tokens.to_json()}
    saver.write(saver.snapshot(state.step, engine.state(), training, texts))


def _validate(plan: Plan, engine: Engine, reader: Reader, metrics: Metrics, step: int, dealt: dict[str, int]) -> None:
    for task in reader.validation_names:
        terms = engine.evaluate(list(reader.validation_batches(task, **dealt)))
        metrics.validation(step, task, {"loss": float(terms.mean), **{f"loss/{n}": v for n, v in terms.means.items()}})


def _any_rank(asked: bool) -> bool:
    flag = torch.tensor([int(asked)])
    if dist.get_world_size() > 1:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def _claimed(shelf: Shelf, session: Session) -> Iterator[Claim | None]:
    """Rank 0 holds the run's folder; the others wait to hear that it does."""
    with ExitStack() as stack:
        own, wrong = None, None
        if session.ranks.rank == 0:
            try:
                shelf.folder.mkdir(parents=True, exist_ok=True)
                own = stack.enter_context(claim(shelf.folder))
                shelf.clear_drafts()
            except (MostError, OSError) as error:
                wrong = error
        agree(wrong)
        yield own


def _verify_together(path: Path, record: Record, session: Session) -> None:
    """Each rank proves its share of the files; all come to the same end."""
    wrong = None
    try:
        verify_files(path, record, session.ranks.rank, session.ranks.world_size)
    except CheckpointError as error:
        wrong = error
    agree(wrong)


def _resume(found: tuple[Path, Record], config: RunConfig, reader: Reader) -> _State:
    path, record = found
    require_same_run(path / RECIPE, config)
    training = record.training
    position = reader.check_state(ReaderState.from_dict(training["data"]))
    return _State(step=training["step"], position=position, skipped=training["skipped"])


def _start_from(path: Path, plan: Plan, session: Session) -> TensorReader:
    """Weights of another run: one of its checkpoints, or its newest whole one."""
    shelf = Shelf(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    found = shelf.find_newest(lambda at, record: _verify_together(at, record, session))
    if found is None:
        try:
            found = path, read_record(path)
        except CheckpointError as error:
            wrong = f"no checkpoint there ({error})"
            raise ConfigError("checkpoint.start_from", str(path), wrong, "give a run's folder or a step's") from error
        _verify_together(*found, session)
    plan.tokens.require_same(type(plan.tokens).load(found[0] / TOKEN_MAP), str(found[0]))
    _log.info("starting from the weights of %s", found[0])
    return TensorReader(*found)
