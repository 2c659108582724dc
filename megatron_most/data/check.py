"""The last look at a batch before it is learnt from: every wrong token is named by row and position.

Run on the host, where the batch was made; all ranks then agree on the outcome, so that none waits for one that raised.
"""

# B rows, S sequence, F width of continuous features

from __future__ import annotations

import torch

from megatron_most.config import Plan
from megatron_most.data.batch import PackedBatch
from megatron_most.errors import DataError
from megatron_most.vocab import TAG_NAMES

_NAMES = ("tags_BS", "labels_BS", "label_tags_BS", "loss_weights_BS", "documents_BS", "is_pad_BS")


def check_batch(batch: PackedBatch, plan: Plan) -> None:
    """Raise a DataError for the first wrong thing."""
    if batch.token_map is not plan.tokens:
        plan.tokens.require_same(batch.token_map, "batch")
    shape = batch.tokens_BS.shape
    if len(shape) != 2:
        raise DataError(f"tokens_BS: shape {tuple(shape)} is not [rows, positions]")
    for name in _NAMES:
        if getattr(batch, name).shape != shape:
            raise DataError(
                f"{name}: shape {tuple(getattr(batch, name).shape)} differs from that of the tokens, {tuple(shape)}"
            )
    is_wave = _check_wave(batch, plan)
    known_V = torch.tensor(plan.tokens.tag_table()) >= 0
    for name, ids, matters in (
        ("token", batch.tokens_BS, ~is_wave),
        ("label", batch.labels_BS, batch.loss_weights_BS != 0),
    ):
        inside = (ids >= 0) & (ids < len(known_V))
        _refuse(
            ~inside & (matters | (name == "token")),
            f"{name} id {{}} is outside the vocabulary of {len(known_V)} rows",
            ids,
        )
        unknown = ~known_V[ids.clamp(0, len(known_V) - 1)]
        _refuse(unknown & matters, f"{name} id {{}} is outside the vocabulary (a row that no token uses)", ids)
    for name, tags in (("tag", batch.tags_BS), ("label tag", batch.label_tags_BS)):
        _refuse(tags < 0, f"without {name} ({{}}); tags are {_tags()}", tags)
        _refuse(tags >= len(TAG_NAMES), f"{name} {{}} owns no expert group; tags are {_tags()}", tags)
    if plan.moe is not None:
        for tag, group in enumerate(plan.moe.group_of_tag):
            if group is None and tag not in plan.moe.shared_only:
                _refuse(
                    batch.tags_BS == tag,
                    "tag {} owns no expert group and is not in moe.shared_only_tags",
                    batch.tags_BS,
                )
    weights = batch.loss_weights_BS
    _refuse(~torch.isfinite(weights) | (weights < 0), "loss weight {} is not a number >= 0", weights)
    _refuse(batch.is_pad_BS & (weights != 0), "a pad has loss weight {}", weights)


def _check_wave(batch: PackedBatch, plan: Plan) -> torch.Tensor:
    """Where continuous features stand, after looking at them."""
    if (batch.wave_BSF is None) != (batch.is_wave_BS is None):
        raise DataError("wave_BSF and is_wave_BS belong together: give both or neither")
    if batch.wave_BSF is None or batch.is_wave_BS is None:
        return torch.zeros_like(batch.is_pad_BS)
    wanted = (*batch.tokens_BS.shape, plan.config.model.wave_size)
    if tuple(batch.wave_BSF.shape) != wanted:
        raise DataError(f"wave_BSF: shape {tuple(batch.wave_BSF.shape)}, but model.wave_size asks for {wanted}")
    is_bad = ~torch.isfinite(batch.wave_BSF).all(-1) & batch.is_wave_BS
    _refuse(is_bad, "continuous features hold NaN or infinity", batch.tokens_BS)
    return batch.is_wave_BS


def _refuse(is_wrong: torch.Tensor, message: str, values: torch.Tensor) -> None:
    if is_wrong.any():
        row, position = (int(i) for i in is_wrong.nonzero()[0])
        raise DataError(f"row {row}, token {position}: {message.format(values[row, position].item())}")


def _tags() -> str:
    return ", ".join(f"{tag} {name}" for tag, name in enumerate(TAG_NAMES))
