"""Generation: prompts in, answers out; cached, batched, constrained to legal tokens, the same in every layout.

settings.py says what is asked and answered, legal.py which tokens may come, sampling.py how one is chosen, answers.py
goes from token to token. Models: core_model.py is ours (opening.py takes it from a checkpoint), hf_model.py one of
transformers', engine_model.py one in training that has no cache. scoring.py gives the log probabilities of documents.
Names are loaded when they are first asked for: a command line knows the settings without an import of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.generate.answers import IsCancelled, OnToken, generate
    from megatron_most.generate.core_model import CoreModel, unsupported
    from megatron_most.generate.engine_model import EngineModel
    from megatron_most.generate.hf_model import HfModel
    from megatron_most.generate.interface import LanguageModel
    from megatron_most.generate.opening import open_model
    from megatron_most.generate.scoring import sequence_logprobs
    from megatron_most.generate.settings import Answer, Mode, Prompt, Settings, check_prompt, is_finite

_HOMES = {
    "answers": ("IsCancelled", "OnToken", "generate"),
    "core_model": ("CoreModel", "unsupported"),
    "engine_model": ("EngineModel",),
    "hf_model": ("HfModel",),
    "interface": ("LanguageModel",),
    "opening": ("open_model",),
    "scoring": ("sequence_logprobs",),
    "settings": ("Answer", "Mode", "Prompt", "Settings", "check_prompt", "is_finite"),
}

__all__ = [
    "Answer", "CoreModel", "EngineModel", "HfModel", "IsCancelled", "LanguageModel", "Mode", "OnToken", "Prompt",
    "Settings", "check_prompt", "generate", "is_finite", "open_model", "sequence_logprobs", "unsupported",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
