"""Which speaker the options name, opened with what it needs: a model's session, a ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.synthesize.ledger import open_ledger
from megatron_most.synthesize.voice_endpoint import EndpointSpeaker, VoiceBudget
from megatron_most.synthesize.voices import CommandSpeaker, Speaker, VoiceOptions


@contextlib.contextmanager
def open_speaker(options: VoiceOptions, budget: VoiceBudget, ledger: Path | None, default: Path) -> Iterator[Speaker]:
    """`ledger`: the folder of what was paid for, else `default`; refused where nothing is paid for."""
    options.check()
    if not options.url and (ledger is not None or budget != VoiceBudget()):
        raise DataError("--budget and --ledger are for --voice.url, where speech may cost something: leave them out")
    with contextlib.ExitStack() as stack:
        if options.url:
            held = stack.enter_context(open_ledger(ledger or default, budget.budget(), "characters"))
            yield EndpointSpeaker(options, held)
        elif options.run:  # imported here: the other voices need no torch
            from megatron_most.converse import open_any
            from megatron_most.synthesize.voice_models import RunSpeaker

            yield RunSpeaker(options, stack.enter_context(open_any(options.run, device=options.device)))
        elif options.transformers:
            from megatron_most.synthesize.voice_models import TransformersSpeaker

            yield TransformersSpeaker(options)
        else:
            yield CommandSpeaker(options)
