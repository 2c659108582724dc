"""The last look at a batch before it is learnt from: every wrong token is named by row and position.

Run on the host, where the batch was made; all ranks then agree on the outcome, so that none waits for one that raised.
"""

# B rows, S sequence, F width of continuous features

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from megatron_most.config import Plan
from megatron_most.data.batch import MAX_TASKS, PackedBatch
from megatron_most.errors import DataError
from megatron_most.vocab import TAG_NAMES, TokenMap, tag_id

_IDS = ("tokens_BS", "tags_BS", "labels_BS", "label_tags_BS", "documents_BS", "tasks_BS")
_KINDS = {**dict.fromkeys(_IDS, "whole numbers"), "loss_weights_BS": "real numbers", "is_pad_BS": "booleans"}


def check_batch(batch: PackedBatch, plan: Plan, *, is_first_stage: bool = True) -> None:
    """Raise a DataError for the first wrong thing. Only the first pipeline stage needs continuous features."""
    if not isinstance(batch, PackedBatch):
        raise DataError(f"a micro-batch is a {type(batch).__name__}, not a PackedBatch; use pack_rows")
    for name, kind in _KINDS.items():
        _check_kind(name, getattr(batch, name), kind)
    if not isinstance(batch.token_map, TokenMap):
        raise DataError(f"token_map: a {type(batch.token_map).__name__}, not a TokenMap")
    if batch.token_map is not plan.tokens:
        plan.tokens.require_same(batch.token_map, "batch")
    shape = batch.tokens_BS.shape
    if len(shape) != 2 or not all(shape):
        raise DataError(f"tokens_BS: shape {tuple(shape)} is not [rows, positions], with some of each")
    for name in _KINDS:
        if getattr(batch, name).shape != shape:
            raise DataError(
                f"{name}: shape {tuple(getattr(batch, name).shape)} differs from that of the tokens, {tuple(shape)}"
            )
    is_wave = _check_wave(batch, plan, is_first_stage)
    known_V = _known_rows(plan.tokens)
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
    _refuse(batch.tasks_BS >= MAX_TASKS, f"task {{}}, but losses are kept for tasks 0..{MAX_TASKS - 1}", batch.tasks_BS)
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
    _check_bounds(batch, plan)


@functools.cache
def _known_rows(tokens: TokenMap) -> torch.Tensor:
    """Which rows of the embedding a token uses; 37 ms for DeepSeek's vocabulary, so once."""
    return torch.tensor(tokens.tag_table()) >= 0


def _check_kind(name: str, tensor: object, kind: str) -> None:
    if not torch.is_tensor(tensor):
        raise DataError(f"{name}: a {type(tensor).__name__}, not a tensor")
    is_bool = tensor.dtype == torch.bool
    fits = {
        "booleans": is_bool,
        "whole numbers": not (is_bool or tensor.is_floating_point() or tensor.is_complex()),
        "real numbers": not tensor.is_complex(),
    }
    if not fits[kind] or tensor.is_meta:
        raise DataError(f"{name}: {tensor.dtype} on {tensor.device.type}, where {kind} are wanted")


def _check_bounds(batch: PackedBatch, plan: Plan) -> None:
    """Several documents in a row must be announced, or attention would run across their bounds."""
    documents, is_pad = batch.documents_BS, batch.is_pad_BS
    first = documents.masked_fill(is_pad, torch.iinfo(documents.dtype).max).amin(-1, keepdim=True)
    if not batch.is_packed:
        _refuse(
            (documents != first) & ~is_pad, "of document {}, the second in its row, but is_packed is False", documents
        )
    if plan.moe is not None and plan.moe.aux_counts_everything and is_pad.all(-1).any():
        raise DataError("a row of pads only would count in the auxiliary loss; leave moe.aux_counts_everything off")


def _check_wave(batch: PackedBatch, plan: Plan, is_first_stage: bool) -> torch.Tensor:
    """Where continuous features stand, after looking at them."""
    if batch.is_wave_BS is None:
        if batch.wave_BSF is not None:
            raise DataError("wave_BSF and is_wave_BS belong together: features without their places")
        return torch.zeros_like(batch.is_pad_BS)
    _check_kind("is_wave_BS", batch.is_wave_BS, "booleans")
    if batch.is_wave_BS.shape != batch.tokens_BS.shape:
        raise DataError(f"is_wave_BS: shape {tuple(batch.is_wave_BS.shape)} differs from that of the tokens")
    if not plan.config.model.wave_size:
        _refuse(batch.is_wave_BS, "continuous features (id {}), but model.wave_size is 0", batch.tokens_BS)
    name = plan.config.model.wave_tag
    is_other_BS = batch.tags_BS != tag_id(name)
    _refuse(batch.is_wave_BS & is_other_BS, f"continuous features under tag {{}}, not {name}", batch.tags_BS)
    if batch.wave_starts_BS is not None:
        _check_kind("wave_starts_BS", batch.wave_starts_BS, "booleans")
        if batch.wave_starts_BS.shape != batch.tokens_BS.shape:
            raise DataError(
                f"wave_starts_BS: shape {tuple(batch.wave_starts_BS.shape)} differs from that of the tokens"
            )
        is_new_BS = batch.is_wave_BS & ~F.pad(batch.is_wave_BS, (1, -1)) & ~batch.wave_starts_BS
        _refuse(is_new_BS, "continuous features (id {}) that begin in the middle of an utterance", batch.tokens_BS)
    if batch.wave_BSF is None:
        if is_first_stage:
            _refuse(batch.is_wave_BS, "continuous features (id {}) are missing: wave_BSF is not set", batch.tokens_BS)
        return batch.is_wave_BS
    wanted = (*batch.tokens_BS.shape, plan.config.model.wave_size)
    if tuple(batch.wave_BSF.shape) != wanted:
        raise DataError(f"wave_BSF: shape {tuple(batch.wave_BSF.shape)}, but model.wave_size asks for {wanted}")
    _check_kind("wave_BSF", batch.wave_BSF, "real numbers")
    is_bad = ~torch.isfinite(batch.wave_BSF.float()).all(-1) & batch.is_wave_BS
    _refuse(is_bad, "continuous features hold NaN or infinity", batch.tokens_BS)
    return batch.is_wave_BS


def _refuse(is_wrong: torch.Tensor, message: str, values: torch.Tensor) -> None:
    if is_wrong.any():
        row, position = (int(i) for i in is_wrong.nonzero()[0])
        raise DataError(f"row {row}, token {position}: {message.format(values[row, position].item())}")


def _tags() -> str:
    return ", ".join(f"{tag} {name}" for tag, name in enumerate(TAG_NAMES))
