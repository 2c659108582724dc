"""MostForCausalLM: MoST models for transformers, in files that also travel inside every exported folder.

`register()` makes AutoConfig, AutoModel and AutoModelForCausalLM know model_type "MoST" from this package, so our own
tools never run code out of a model folder. Others may: `copy_code` puts the files there, and AUTO_MAP in config.json
makes transformers find them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from megatron_most.convert.most_hf.configuration_most import MostConfig
from megatron_most.convert.most_hf.modeling_most import MostForCausalLM, MostModel

AUTO_MAP = {
    "AutoConfig": "configuration_most.MostConfig",
    "AutoModel": "modeling_most.MostModel",
    "AutoModelForCausalLM": "modeling_most.MostForCausalLM",
}

CODE_FILES = ("configuration_most.py", "modeling_most.py", "attention_most.py", "encoder_most.py", "experts_most.py")

__all__ = ["AUTO_MAP", "CODE_FILES", "MostConfig", "MostForCausalLM", "MostModel", "copy_code", "register"]


def register() -> None:
    """Teach transformers' Auto classes our model; `save_pretrained` then writes the code and its auto_map as well.

    May be called again.
    """
    AutoConfig.register(MostConfig.model_type, MostConfig, exist_ok=True)
    AutoModel.register(MostConfig, MostModel, exist_ok=True)
    AutoModelForCausalLM.register(MostConfig, MostForCausalLM, exist_ok=True)
    MostConfig.register_for_auto_class()
    MostModel.register_for_auto_class("AutoModel")
    MostForCausalLM.register_for_auto_class("AutoModelForCausalLM")


def copy_code(folder: Path) -> None:
    """CODE_FILES, as they are, into an exported folder."""
    for name in CODE_FILES:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
