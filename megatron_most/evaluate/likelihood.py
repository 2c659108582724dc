"""How likely a model finds speech: log probabilities of units, the marks around them not counted.

The document is that of the task audio-lm: BOS, begin audio, units, end audio, EOS. Each unit is predicted from all
before it, the first one from the marks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_most.data.document import audio_ids
from megatron_most.evaluate.options import Kind
from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import Fault
from megatron_most.generate import Prompt, sequence_logprobs
from megatron_most.speech import UnitSequence


def unit_logprobs(subject: Subject, speech: Sequence[UnitSequence | Fault]) -> list[np.ndarray | Fault]:
    """log p of each unit, in nats; faults are passed on."""
    documents: list[Prompt | Fault] = []
    for units in speech:
        if isinstance(units, Fault):
            documents.append(units)
            continue
        ids = [subject.tokens.bos_id, *audio_ids(units.units, subject.tokens).tolist(), subject.tokens.eos_id]
        most = subject.model.max_positions
        is_long = len(ids) > most
        documents.append(
            Fault("too long for the model", f"{len(ids)} tokens; it has {most} positions")
            if is_long
            else Prompt.of(ids, subject.tokens)
        )
    good = [document for document in documents if isinstance(document, Prompt)]
    found = iter(sequence_logprobs(subject.model, good) if good else ())
    # Entry i is of token i + 1: BOS, begin audio and the first unit are tokens 0, 1 and 2.
    return [next(found)[1:-2] if isinstance(document, Prompt) else document for document in documents]


def reduced(logprobs: np.ndarray, kind: Kind) -> float:
    """One number, higher for the likelier."""
    total = float(np.sum(logprobs, dtype=np.float64))
    return total / len(logprobs) if kind == "mean" else total
