"""A checkpoint by the path that users give: a run's folder, the folder of its checkpoints, or one step's."""

from __future__ import annotations

from pathlib import Path

from megatron_most.checkpoint.load import verify_files
from megatron_most.checkpoint.record import Record
from megatron_most.checkpoint.shelf import Shelf, read_together
from megatron_most.errors import CheckpointError, ConfigError
from megatron_most.runtime import agree

RECIPE, TOKEN_MAP, MADE_WITH, EXPERT_LOAD = "resolved.toml", "token_map.json", "made_with.json", "expert_load.json"
"""Files beside the tensors: the run's whole config, its vocabulary, and what made its data (see data/made_with.py)."""


def find_checkpoint(path: Path | str, field: str) -> tuple[Path, Record]:
    """The step named, or the newest whole one of a run; proven by its hashes. All ranks call it and get the same, or
    raise the same: ConfigError where nothing is there, CheckpointError where something is not whole. `field` gave it.
    """
    path = Path(path)
    found = Shelf(path / "checkpoints" if (path / "checkpoints").is_dir() else path).find_newest(verify_together)
    if found is not None:
        return found
    try:
        record = read_together(path)
    except CheckpointError as error:
        wrong = f"no checkpoint there ({error})"
        raise ConfigError(field, str(path), wrong, "give a run's folder or a step's") from error
    verify_together(path, record)
    return path, record


def verify_together(folder: Path, record: Record) -> None:
    """Each rank proves its share of the files; all come to the same end."""
    import torch.distributed as dist

    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wrong = None
    try:
        verify_files(folder, record, rank, ranks)
    except CheckpointError as error:
        wrong = error
    agree(wrong)
