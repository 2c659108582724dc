"""Free-running answers to a batch of prompts: what came before is what the model itself has said, never a reference.

Each item has draws of its own, by a hash of its id, so that neither its neighbours in a batch nor the rank it falls to
change what it is answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from megatron_most.evaluate.subject import Subject
from megatron_most.evaluate.task import Fault
from megatron_most.generate import Answer, Prompt, Settings, generate


def answers_of(
    subject: Subject, ids: Sequence[str], prompts: Sequence[Prompt | Fault], settings: Settings
) -> list[Answer | Fault]:
    """An answer to each prompt, faults passed on."""
    good = [(id, prompt) for id, prompt in zip(ids, prompts, strict=True) if isinstance(prompt, Prompt)]
    each = [replace(settings, seed=seed_of(settings.seed, id)) for id, _ in good]
    answers = iter(generate(subject.model, [prompt for _, prompt in good], each) if good else ())
    return [next(answers) if isinstance(prompt, Prompt) else prompt for prompt in prompts]


def seed_of(seed: int, id: str) -> int:
    """An item's own, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{id}".encode(), digest_size=8).digest(), "big") >> 1
