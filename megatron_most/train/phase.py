"""The loop of a phase: read, step, tell, look, save; until the last step, a request to stop, or a spike of the loss."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_most.checkpoint import EXPERT_LOAD, MADE_WITH, RECIPE, TOKEN_MAP, Saver
from megatron_most.config import batch_rows, dump, learning_rate
from megatron_most.data import MadeWith, Reader, Step, Steps
from megatron_most.engine import Engine, Session, StepReport
from megatron_most.errors import MostError
from megatron_most.runtime import EXIT_STOPPED, PATIENCE, agree, get_logger
from megatron_most.train.metrics import Metrics
from megatron_most.train.skips import Dealing, give_up
from megatron_most.train.state import RunState
from megatron_most.train.stop import StopRequest
from megatron_most.train.validation import Validation

_log = get_logger(__name__)


class SpikeError(MostError):
    """The loss has spiked; `state` says where the data goes on and which spikes there have been."""

    def __init__(self, message: str, state: RunState) -> None:
        super().__init__(message)
        self.state = state


class Phase:
    """All that the loop works with; see run.py for how it comes together."""

    def __init__(
        self, session: Session, engine: Engine, reader: Reader, saver: Saver, metrics: Metrics, validation: Validation,
        state: RunState, folder: Path, made_with: MadeWith,
    ) -> None:  # fmt: skip
        self.session, self.engine, self.reader, self.saver = session, engine, reader, saver
        self.metrics, self.validation, self.state = metrics, validation, state
        self._made_with = made_with
        self._folder, self._first, self._is_saved = folder, state.step, state.step > 0
        self._spike_at = state.position

    def run(self, stop: StopRequest) -> int:
        """To the end; the exit code. SpikeError where the run should go back to its last checkpoint."""
        config, groups, state = self.session.plan.config, self.session.groups, self.state
        train, keep, at = config.train, config.checkpoint, self.session.ranks.pulse.at
        self.validation.begin(state, self.metrics)
        self.metrics.lap("validation")
        rows = None
        if train.batch_counts == "rows":
            rows = (batch_rows(train, step) for step in itertools.count(state.step))
        steps = Steps(
            self.reader,
            state.position,
            rows=rows,
            rank=groups.data.rank(),
            ranks=groups.data.size(),
            micro_batch_size=train.micro_batch_size,
        )
        with steps:
            while state.step < train.steps:
                at(f"step {state.step}: data", is_own=True)
                data = self._next(steps) if self.session.plan.config.model.wave_size else next(steps)
                self.metrics.lap("data")
                self._step(data)
                is_last, alarm = state.step == train.steps, None
                if train.validate_every and (state.step % train.validate_every == 0 or is_last):
                    at(f"step {state.step - 1}: validation", patience=PATIENCE)
                    alarm = self.validation.run(state, self.metrics)
                    self.metrics.lap("validation")
                at(f"step {state.step - 1}: saving", patience=PATIENCE)
                is_asked = stop.is_asked(look=self.session.ranks.rank == 0)
                asked, failed = _any_rank(is_asked, self.saver.has_failed)
                if failed:
                    self._await_saves()  # raises it: what is taken from here on would be taken again
                if is_last or asked or alarm or (keep.every and state.step % keep.every == 0):
                    self._save()
                    self.metrics.lap("checkpoint")
                if alarm is not None:
                    self._await_saves()
                    raise alarm
                if asked and not is_last:
                    self._await_saves()
                    _log.info("stopped after step %d by %s, all saved", state.step, stop.reason or "another rank")
                    return EXIT_STOPPED
        self._await_saves()
        return 0

    def _next(self, steps: Steps) -> Step:
        """All ranks have theirs, or end together: only some hear the sound that may be gone."""
        data, wrong = None, None
        try:
            data = next(steps)
        except MostError as error:
            wrong = error
        self.session.ranks.pulse.at(f"step {self.state.step}: data of all")
        agree(wrong)
        assert data is not None, "agreed"
        return data

    def close(self) -> None:
        """What was told is on disk."""
        self.metrics.close()

    def _step(self, data: Step) -> None:
        train, state = self.session.plan.config.train, self.state
        at = self.session.ranks.pulse.at
        at(f"step {state.step}: engine", patience=PATIENCE if state.step == self._first else 1.0)
        rate = learning_rate(train, state.step)
        look = self.metrics.looks_at(state.step)
        report = self.engine.step(data.batches, rate, lap=self.metrics.lap, look=look)
        self.metrics.step(state.step, report, data, rate)
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if report.is_skipped else 0
        if state.skipped_in_a_row >= train.max_skipped:
            at(f"step {state.step}: looking for documents", patience=PATIENCE)
            groups = self.session.groups
            dealing = Dealing(
                rank=groups.data.rank(), ranks=groups.data.size(), micro_batch_size=train.micro_batch_size
            )
            give_up(state.step, state.skipped_in_a_row, data, self.reader, self.engine, dealing, self._folder)
        self._watch_loss(report, data)
        state.step, state.position, state.skipped = state.step + 1, data.after, state.skipped + report.is_skipped

    def _watch_loss(self, report: StepReport, data: Step) -> None:
        """Raise SpikeError at a spike's end, with the state to go on from; its first step's data is where it began."""
        train, state = self.session.plan.config.train, self.state
        if report.is_skipped:
            return
        is_spike = state.note_loss(report.loss, train)
        if state.high == 1:
            self._spike_at = state.position
        if not is_spike:
            return
        names = self.reader.names(data.rows[:2])
        told = f"steps {state.step + 1 - train.spike_steps} to {state.step}: the loss rose to {report.loss:.3f}"
        if len(state.rollbacks) >= train.max_rollbacks:
            remedy = "lower train.learning_rate, or look at these documents"
            raise MostError(f"{told} after {len(state.rollbacks)} rollbacks; the last rows held {names}; {remedy}")
        self._await_saves()
        left_out = {"step": state.step, "from": self._spike_at.to_dict(), "to": data.after.to_dict()}
        rolled = replace(state, position=data.after, rollbacks=[*state.rollbacks, left_out])
        where = "last checkpoint" if self._is_saved else "first weights"
        told += f": going back to the {where}, and on with the data that comes after"
        raise SpikeError(told, rolled)

    def _await_saves(self) -> None:
        self.saver.wait()
        self.metrics.lap("checkpoint")

    def _save(self) -> None:
        plan, state = self.session.plan, self.state
        training = {
            "updates": self.engine.updates,
            "scaler": self.engine.scaler,
            "loop": state.to_dict(),
            "data": self.reader.state(state.position).to_dict(),
        }
        texts = {RECIPE: dump(plan.config), TOKEN_MAP: plan.tokens.to_json(), MADE_WITH: self._made_with.to_json()}
        if (load := self.metrics.expert_load()) is not None:
            texts[EXPERT_LOAD] = load.to_json()
        self._is_saved = True
        self.saver.write(self.saver.snapshot(state.step, self.engine.state(), training, texts))
        self.metrics.flush()


def _any_rank(*flags: bool) -> list[bool]:
    """Each of them, where it is so on one of the ranks at least."""
    found = torch.tensor(flags, dtype=torch.int64)
    if dist.get_world_size() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found]
