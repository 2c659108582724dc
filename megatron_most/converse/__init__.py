"""Talking to a model: a checkpoint of ours or an exported folder, text or speech in, text or speech out.

models.py opens the model and what belongs to it, ears.py is how it hears, talker.py turns what is said into prompts and
answers into text and units, command.py is the command line, whose choices are in choices.py.
Names are loaded when they are first asked for: usage lines cost no import of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.converse.choices import TASKS, Dtype
    from megatron_most.converse.command import run_generate
    from megatron_most.converse.ears import Ears, FrameEars, Heard, UnitEars, frame_ears, hears_frames, open_ears
    from megatron_most.converse.models import Opened, is_hf, open_any, open_hf, opened_hf
    from megatron_most.converse.talker import Said, Talker, laid_out, with_frames

_HOMES = {
    "choices": ("TASKS", "Dtype"),
    "command": ("run_generate",),
    "ears": ("Ears", "FrameEars", "Heard", "UnitEars", "frame_ears", "hears_frames", "open_ears"),
    "models": ("Opened", "is_hf", "open_any", "open_hf", "opened_hf"),
    "talker": ("Said", "Talker", "laid_out", "with_frames"),
}

__all__ = [
    "Dtype", "Ears", "FrameEars", "Heard", "Opened", "Said", "TASKS", "Talker", "UnitEars", "frame_ears",
    "hears_frames", "is_hf", "laid_out", "open_any", "open_ears", "open_hf", "opened_hf", "run_generate", "with_frames",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
