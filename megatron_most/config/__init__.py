"""One run as data: recipes (TOML), the command line, and every check before a process group exists. No torch here.

In use:

    config = load_recipe("most-tiny")            # or from_command_line()
    plan = build(config, facts)                  # raises ConfigError; facts come from runtime/ and upstream/
"""

from megatron_most.config.augment import AugmentConfig, SpecAugmentConfig, check_augment
from megatron_most.config.build import build, token_map
from megatron_most.config.data import TaskConfig
from megatron_most.config.expert_load import ExpertLoad
from megatron_most.config.folder import run_folder
from megatron_most.config.load import dump, from_command_line, load_recipe, recipe_names, replace
from megatron_most.config.logits import columns_at_once
from megatron_most.config.meaning import meaning
from megatron_most.config.partition import place
from megatron_most.config.plan import Facts, LayoutPlan, MoEPlan, Plan
from megatron_most.config.reference import reference
from megatron_most.config.resume import begins_new, require_same_meaning, require_same_run
from megatron_most.config.schedule import learning_rate, share_of_peak
from megatron_most.config.schema import (
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    RecomputeConfig,
    RunConfig,
    TelemetryConfig,
    TokensConfig,
    TrainConfig,
)
from megatron_most.config.size import Flops, Size, batch_rows, count_flops, count_parameters

__all__ = [
    "AugmentConfig",
    "EngineConfig",
    "ExpertLoad",
    "Facts",
    "Flops",
    "LayoutConfig",
    "LayoutPlan",
    "MoEConfig",
    "MoEPlan",
    "ModelConfig",
    "Plan",
    "RecomputeConfig",
    "RunConfig",
    "Size",
    "SpecAugmentConfig",
    "TaskConfig",
    "TelemetryConfig",
    "TokensConfig",
    "TrainConfig",
    "batch_rows",
    "begins_new",
    "build",
    "check_augment",
    "columns_at_once",
    "count_flops",
    "count_parameters",
    "dump",
    "from_command_line",
    "learning_rate",
    "load_recipe",
    "meaning",
    "place",
    "recipe_names",
    "reference",
    "replace",
    "require_same_meaning",
    "require_same_run",
    "run_folder",
    "share_of_peak",
    "token_map",
]
