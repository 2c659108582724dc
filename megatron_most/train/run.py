"""One phase of training, from its recipe to its last checkpoint; started again, it goes on where it stopped.

Order: the plan and every dataset are checked before anything is built; a checkpoint's weights go into the model before
the engine takes it, its moments after; then phase.py's loop. A spike of the loss ends that loop, and all is opened anew
from the last checkpoint, or from the first weights where there is none. All ranks do all of it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_most.checkpoint import (
    MADE_WITH,
    RECIPE,
    TOKEN_MAP,
    LocalTensors,
    Piece,
    Record,
    Saver,
    Shelf,
    TensorReader,
    find_checkpoint,
    find_pieces,
    verify_together,
)
from megatron_most.config import (
    Plan,
    RunConfig,
    begins_new,
    dump,
    load_recipe,
    require_same_meaning,
    require_same_run,
    run_folder,
)
from megatron_most.data import MadeWith, Reader, ReaderState
from megatron_most.engine import Session, make_engine, open_session, spare_threads
from megatron_most.errors import CheckpointError, ConfigError, MostError
from megatron_most.model import MostModel, build_model
from megatron_most.parallel import seed_generators
from megatron_most.runtime import (
    PATIENCE,
    Claim,
    Launch,
    agree,
    get_logger,
    seed_everything,
    write_atomically,
    writing,
)
from megatron_most.train.blend import open_reader
from megatron_most.train.board import require_boards
from megatron_most.train.data_files import made_of, prove_changed, stamp
from megatron_most.train.folder import claimed
from megatron_most.train.forecast import describe
from megatron_most.train.freeze import freeze
from megatron_most.train.metrics import Metrics
from megatron_most.train.phase import Phase, SpikeError
from megatron_most.train.state import RunState, is_base, is_count, is_scaler
from megatron_most.train.stop import StopRequest
from megatron_most.train.validation import Validation
from megatron_most.train.wave_start import begin_wave_layers
from megatron_most.upstream import find_versions

_log = get_logger(__name__)


def run_training(config: RunConfig, launch: Launch | None = None) -> int:
    """Train; the exit code: 0, or EXIT_STOPPED where it was asked to stop and has saved."""
    began, folder = time.time(), run_folder(config)
    stop = StopRequest(folder)  # from the first moment: a signal that nobody awaits would end the process unsaved
    with open_session(config, launch) as session, ExitStack() as stack:
        spare_threads(session.plan, session.device)
        session.ranks.pulse.at("opening the data", patience=PATIENCE)
        require_boards(config.telemetry)
        reader = _open_data(session)
        shelf = Shelf(folder / "checkpoints")
        own = stack.enter_context(claimed(shelf, session.ranks.rank))
        after: RunState | None = None
        while True:
            phase = _open_phase(session, reader, shelf, own, folder, began, after)
            if session.ranks.rank == 0:
                with writing(folder):
                    write_atomically(folder / RECIPE, dump(config))
                for line in describe(session, reader, phase.state.step):
                    _log.info("%s", line)
            try:
                return phase.run(stop)
            except SpikeError as spike:
                began, after = time.time(), spike.state
                _log.warning("%s", spike)
            finally:
                phase.close()
            del phase
            gc.collect()  # the engine's memory, before the next one asks for as much


def _open_data(session: Session) -> Reader:
    """All ranks come to the same end: only some need the features of continuous speech, and what those come from."""
    reader, wrong = None, None
    try:
        is_first = session.groups.is_first_stage
        reader = open_reader(session.plan, device=session.device, needs_features=is_first)
    except MostError as error:
        wrong = error
    agree(wrong)
    assert reader is not None, "agreed"
    return reader


def _open_phase(
    session: Session, reader: Reader, shelf: Shelf, own: Claim | None, folder: Path, began: float,
    after: RunState | None,
) -> Phase:  # fmt: skip
    """Model, engine and state as the newest whole checkpoint has them, or as a first step finds them. `after`: a spike,
    whose data is left out.
    """
    plan, config = session.plan, session.plan.config
    session.ranks.pulse.at("starting", patience=PATIENCE)
    _require_own(own)
    found = shelf.find_newest(verify_together)
    seed_everything(config.train.seed)  # the random streams have moved on where this is not the first time
    seed_generators(config.train.seed)
    model = build_model(plan, session.groups, session.device.torch_device)
    pieces = find_pieces(model, plan.moe)
    state, source, moments_of, new = RunState(), found, found, dict[str, str]()
    if found is not None:
        state = _resume(found, config, reader)
        prove_changed(config, state.files, session.ranks.rank, session.ranks.world_size)
    elif config.checkpoint.start_from:
        source = _start_from(Path(config.checkpoint.start_from), plan)
        moments_of = source if config.checkpoint.keep_optimizer else None
        if moments_of is not None and "exp_avg" not in source[1].tensors:
            wrong, remedy = f"{source[0]} holds no optimizer state", "leave it out: the moments begin at zero"
            raise ConfigError("checkpoint.keep_optimizer", True, wrong, remedy)
        state.base = _base_of(source[1].training)
    learnt_from = MadeWith()
    if source is not None and MADE_WITH in source[1].files:
        learnt_from = MadeWith.load(source[0] / MADE_WITH)
    learnt_from = learnt_from.then(made_of(config), "the datasets of this run")
    state.files = stamp(config) if session.ranks.rank == 0 else {}  # who writes the checkpoint's manifest
    tensors = LocalTensors(TensorReader(*source), pieces) if source is not None else None
    if source is not None and tensors is not None:
        new = begins_new(load_recipe(source[0] / RECIPE), config) if found is None else {}
        tensors.fill(model, tuple(new.values()))
    if found is None and (source is None or "model.wave_layers" in new):
        begin_wave_layers(model, config, learnt_from.frames)
    if frozen := freeze(model, pieces, plan, session.groups):
        _log.info("train.freeze keeps %s numbers of this rank as they are", f"{frozen:,}")
    engine = make_engine(model, plan, session.groups)
    if moments_of is not None and tensors is not None:
        training = _training(*moments_of)
        updates = training["updates"]
        if found is not None and updates:
            _require_moments(*found, model, pieces)
        engine.load_state(tensors.read, updates, training.get("scaler", {}))
    if after is not None:
        state.position, state.rollbacks = after.position, after.rollbacks
    if found is not None:
        _log.info("going on after step %d, from %s", state.step, found[0])
    saver = Saver(shelf, pieces, own, keep=config.checkpoint.keep, versions=find_versions())
    metrics = Metrics(session, engine, reader.task_names, folder, state.step, began)
    validation = Validation(folder, plan, session.groups, engine, reader)
    return Phase(session, engine, reader, saver, metrics, validation, state, folder, learnt_from)


def _require_own(own: Claim | None) -> None:
    """All ranks end where a newer attempt has taken the run over: what is next would change files of its."""
    wrong = None
    if own is not None:
        try:
            own.check()
        except MostError as error:
            wrong = error
    agree(wrong)


def _resume(found: tuple[Path, Record], config: RunConfig, reader: Reader) -> RunState:
    path, record = found
    require_same_run(path / RECIPE, config, record.step)
    training = _training(path, record)
    try:
        place = reader.check_state(ReaderState.from_dict(training.get("data")))
        state = RunState.from_dict(training.get("loop"), place)
    except MostError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if state.step != record.step:
        raise CheckpointError(f"{path}: its training state is of step {state.step}, its manifest of {record.step}")
    return state


def _base_of(training: object) -> dict[str, Any] | None:
    """The gate's first loss of another run; None where it kept none, as an imported model."""
    loop = training.get("loop") if isinstance(training, dict) else None
    base = loop.get("base") if isinstance(loop, dict) else None
    return base if is_base(base) else None


def _training(path: Path, record: Record) -> dict[str, Any]:
    """What the loop has kept, with a count of updates."""
    updates = record.training.get("updates") if isinstance(record.training, dict) else None
    if not is_count(updates):
        raise CheckpointError(f"{path}: its training state holds no number of updates ({updates!r}); it is damaged")
    if not is_scaler(scaler := record.training.get("scaler", {})):
        raise CheckpointError(f"{path}: its training state has {scaler!r:.80} for a loss scale; it is damaged")
    return record.training


def _require_moments(path: Path, record: Record, model: MostModel, pieces: Mapping[str, Sequence[Piece]]) -> None:
    """All ranks end where a weight that has learnt in this run has no moments: it would not be the same run."""
    wrong = None
    for local, weight in model.named_parameters():
        for kind in ("exp_avg", "exp_avg_sq") if weight.requires_grad else ():
            gone = [piece.name for piece in pieces[local] if piece.name not in record.tensors.get(kind, {})]
            if gone and wrong is None:
                wrong = CheckpointError(f"{path}: no {kind} of {gone[0]}; it is damaged: remove it to go on before it")
    agree(wrong)


def _start_from(path: Path, plan: Plan) -> tuple[Path, Record]:
    """Weights of another run: one of its checkpoints, or its newest whole one."""
    found = find_checkpoint(path, "checkpoint.start_from")
    require_same_meaning(found[0] / RECIPE, plan.config)
    plan.tokens.require_same(type(plan.tokens).load(found[0] / TOKEN_MAP), str(found[0]))
    _log.info("starting from the weights of %s", found[0])
    return found
