"""The model under evaluation: one of our checkpoints or a Hugging Face folder, told by what lies there, and its facts.

Both are the same to the tasks: what the room converse/ opens and talks to. Its hash names the weights, so that a result
says of what it is, and work on another model is never continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_most.config import LayoutConfig
from megatron_most.converse import Dtype, Opened, Talker, is_hf, open_any, opened_hf
from megatron_most.data import MadeWith, TextTokenizer
from megatron_most.data.templates import Templates
from megatron_most.errors import DataError
from megatron_most.evaluate.job import Share
from megatron_most.generate import CoreModel, LanguageModel
from megatron_most.runtime import Ranks, progress, read_file, sha256_file
from megatron_most.speech import CodecIdentity
from megatron_most.vocab import TokenMap

_PRECISIONS: dict[Dtype, Literal["fp32", "bf16"] | None] = {"auto": None, "float32": "fp32", "bfloat16": "bf16"}
CONFIG_FILE = "config.json"
_HASHED = ("*.safetensors", "*.json", "*.model", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that has been opened, and what goes with it."""

    talker: Talker
    facts: dict[str, Any] = field(default_factory=dict)
    """For records: "kind", "folder", "hash", and what else is known."""
    share: Share = field(default_factory=Share)
    may_differ: bool = False
    """Whether units of a codec that cannot be compared with the model's are taken, on the user's word."""

    @property
    def opened(self) -> Opened:
        return self.talker.opened

    @property
    def model(self) -> LanguageModel[Any]:
        return self.opened.model

    @property
    def made_with(self) -> MadeWith:
        return self.opened.made_with

    @property
    def tokens(self) -> TokenMap:
        return self.model.tokens

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.talker.tokenizer

    @property
    def templates(self) -> Templates:
        return self.talker.context.templates

    def require_codec(self, codec: CodecIdentity, where: str) -> None:
        """DataError where units of `codec` are not what the model has learnt, or nobody can tell."""
        known = self.made_with.codec
        if known is None and not self.may_differ:
            raise DataError(
                f"{self.facts['folder']}: does not say which codec made the units it was trained on, so {where} "
                f"({codec}) may be of another; where you know that they are the same, give --trust-codec"
            )
        if known is not None and known.key != codec.key:
            raise DataError(
                f"{where}: units of codec {codec}, but {self.facts['folder']} was trained on those of codec "
                f"{known}; use the codec that made its training data"
            )
        if codec.num_units > self.tokens.num_units:
            raise DataError(
                f"{where}: a codec of {codec.num_units} units, the model's token map has {self.tokens.num_units}; "
                "use the codec that made its training data"
            )


@contextlib.contextmanager
def open_subject(
    folder: Path, ranks: Ranks, *, templates: str | None, tokenizer: Path | None, layout: LayoutConfig, dtype: Dtype,
    may_differ: bool, trust_templates: bool = False, hf: Any = None,
) -> Iterator[Subject]:  # fmt: skip
    """All ranks call it. `hf`: transformers' model of the folder, where it is one's; each rank has its own."""
    told: dict[str, Any] = {"tokenizer": tokenizer, "templates": templates, "trust_templates": trust_templates}
    if is_hf(folder):
        talker = Talker(opened_hf(folder, hf), **told)
        yield Subject(talker=talker, facts=hf_facts(folder, hf), may_differ=may_differ, share=a_model_each(ranks))
        return
    if dtype not in _PRECISIONS:
        raise DataError(f"--dtype {dtype}: for Hugging Face folders only; a checkpoint of ours takes float32, bfloat16")
    if tokenizer is None:
        raise DataError(f"{folder}: a checkpoint of ours holds no tokenizer; give that of its data with --tokenizer")
    with open_any(folder, layout=layout, precision=_PRECISIONS[dtype], ranks=ranks) as opened:
        assert isinstance(opened.model, CoreModel), "no folder of transformers' is one of ours"
        yield Subject(
            talker=Talker(opened, **told),
            facts=_core_facts(folder, opened.folder, opened.model), may_differ=may_differ,
            share=_share_of(opened.model, ranks),
        )  # fmt: skip


def hf_facts(folder: Path, model: Any) -> dict[str, Any]:
    """Of a Hugging Face folder. Its hash is of all files that decide the numbers."""
    names = sorted({path for pattern in _HASHED for path in folder.glob(pattern)})
    hashes = {path.name: sha256_file(path) for path in progress(names, "hash the model", "file")}
    if not any(name.endswith(".safetensors") for name in hashes):
        raise DataError(f"{folder}: holds no safetensors file; give the folder of a whole model")
    said = "\n".join(f"{name} {digest}" for name, digest in hashes.items())
    config = _config(folder)
    return {
        "kind": "huggingface",
        "folder": str(folder),
        "hash": hashlib.sha256(said.encode()).hexdigest(),
        "precision": str(model.dtype).removeprefix("torch."),
        "architecture": (config.get("architectures") or [None])[0],
    }


def _config(folder: Path) -> dict[str, Any]:
    data = read_file(folder / CONFIG_FILE, remedy="give the folder of a whole model")
    try:
        return dict(json.loads(data))
    except ValueError as error:
        raise DataError(f"{folder / CONFIG_FILE}: not readable as JSON ({error}); fetch it again") from error


def _core_facts(folder: Path, step: Path, core: CoreModel) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "folder": str(folder),
        "hash": sha256_file(step / "manifest.json"),  # which has the hash of every file of it
        "precision": str(next(core.model.parameters()).dtype).removeprefix("torch."),
        "step": step.name,
        "name": core.plan.config.name,
        "layout": str(core.plan.layout),
    }


def a_model_each(ranks: Ranks) -> Share:
    """Every rank holds a whole model, and has a share of its own."""
    return Share(index=ranks.rank, count=ranks.world_size, rank=ranks.rank, ranks=ranks.world_size)


def _share_of(core: CoreModel, ranks: Ranks) -> Share:
    """Ranks that hold experts together generate the same rows; without, each data-parallel rank has its own."""
    groups = core.model.groups
    one, of = (groups.tokens, None) if core.plan.layout.expert > 1 else (groups.tensor, groups.data)
    index, count = (ranks.rank // one.size(), ranks.world_size // one.size()) if of is None else (of.rank(), of.size())
    return Share(index=index, count=count, writes=one.rank() == 0, rank=ranks.rank, ranks=ranks.world_size)
