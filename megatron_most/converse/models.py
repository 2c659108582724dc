"""Any model that can be talked to, and what its data was made with, from the folder it is kept in.

A folder with a config.json is transformers' and is read by the classes of this package, so nothing in it is run; any
other is a run of ours, or a step of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megatron_most.checkpoint import MADE_WITH, TOKEN_MAP
from megatron_most.config import LayoutConfig
from megatron_most.converse.choices import Dtype, Where
from megatron_most.data import MadeWith, TextTokenizer, load_tokenizer
from megatron_most.data.templates import Templates, load_templates, recorded_templates, template_names
from megatron_most.errors import CheckpointError, DataError
from megatron_most.generate import HfModel, LanguageModel, open_model
from megatron_most.runtime import Device, Launch, Ranks, find_device, find_launch
from megatron_most.speech import SpeechCodec, Vocoder
from megatron_most.vocab import TokenMap

CONFIG = "config.json"


@dataclass(frozen=True)
class Opened:
    """A model, ready to generate."""

    folder: Path
    model: LanguageModel[Any]
    made_with: MadeWith = field(default_factory=MadeWith)
    """Empty where the folder does not say."""
    tokenizer: Path | None = None
    """The folder's own."""
    leads: bool = True
    """Whether this process speaks for all that hold the model."""

    def trusting(self, codec: SpeechCodec | None, vocoder: Vocoder | None) -> Opened:
        """Where its folder does not say whose units it has learnt: those of this codec, or of the vocoder's."""
        identity = codec.identity if codec is not None else vocoder.codec if vocoder is not None else None
        return self if identity is None else replace(self, made_with=self.made_with.trusting(identity))


@contextmanager
def open_any(
    folder: Path | str,
    *,
    layout: LayoutConfig | None = None,
    device: Where = "auto",
    precision: Literal["fp32", "bf16"] | None = None,
    launch: Launch | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Opened]:
    """All ranks of the job call it. transformers' models are computed by one process.

    `ranks`: have met already; else they meet here, and part when the model is closed.
    """
    folder = Path(folder)
    if is_hf(folder):
        launch = launch or find_launch()
        if launch.world_size > 1:
            raise CheckpointError(f"{folder}: a transformers model is computed by one process, not {launch.world_size}")
        tokens_of(folder)  # before the weights are read
        on = find_device(device, launch.local_rank)
        yield opened_hf(folder, open_hf(folder, "bfloat16" if precision == "bf16" else "float32", on))
        return
    with open_model(folder, layout=layout, device=device, precision=precision, launch=launch, ranks=ranks) as model:
        assert model.folder is not None, "open_model says where it found it"
        leads = (ranks.rank if ranks else (launch or find_launch()).rank) == 0
        yield Opened(model.folder, model, made_with_of(model.folder), leads=leads)


def is_hf(folder: Path) -> bool:
    """Which of the two a folder is."""
    return (folder / CONFIG).is_file()


def open_hf(folder: Path, dtype: Dtype, device: Device) -> Any:
    """transformers' model of a folder, ours among them; nothing from the folder is run, nothing is fetched."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from megatron_most.convert.most_hf import register

    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto" if dtype == "auto" else getattr(torch, dtype), local_files_only=True,
            use_safetensors=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot be opened by transformers: {error}; give the folder of a whole model"
        ) from error
    return model.eval().requires_grad_(False).to(device.torch_device)


def opened_hf(folder: Path, model: Any) -> Opened:
    """What belongs to transformers' model of the folder."""
    own = next((path for name in ("tokenizer.json", "tokenizer.model") if (path := folder / name).is_file()), None)
    return Opened(folder, HfModel(model, tokens_of(folder)), made_with_of(folder), own)


def tokens_of(folder: Path) -> TokenMap:
    """Of transformers' model in the folder."""
    if not (folder / TOKEN_MAP).is_file():
        raise CheckpointError(
            f"{folder}: has no {TOKEN_MAP}, so nothing says which of its tokens are speech; give an exported folder "
            "(tools/convert_ckpt.py export), or import it and give the checkpoint"
        )
    return TokenMap.load(folder / TOKEN_MAP)


def made_with_of(folder: Path) -> MadeWith:
    """Empty where the folder does not say."""
    return MadeWith.load(folder / MADE_WITH) if (folder / MADE_WITH).is_file() else MadeWith()


def tokenizer_of(opened: Opened, asked: Path | str | None) -> TextTokenizer:
    """That asked for, proven to be the data's; or the folder's own, which has units added to it and so another hash."""
    path = asked or opened.tokenizer
    if path is None:
        raise DataError(f"{opened.folder}: holds no tokenizer; give that of its data with --tokenizer")
    loaded = load_tokenizer(path)
    if asked is not None and Path(asked) not in (opened.tokenizer, opened.folder):
        opened.made_with.require_tokenizer(loaded.identity, str(path), str(opened.folder))
    return loaded


def templates_of(opened: Opened, asked: str | None, *, may_differ: bool = False) -> Templates:
    """The only ones that the model has learnt, as they were recorded with its data, or the ones asked for by name or
    file, which must be among them; `may_differ`: on the user's word, any.
    """
    made_with, where = opened.made_with, opened.folder
    known = ", ".join(f"{name} ({digest[:12]})" for name, digest in made_with.templates)
    chosen = {digest: name for name, digest in made_with.templates if asked in (None, name)}
    if len(chosen) > 1:
        by = "name" if len(set(chosen.values())) == len(chosen) else "file"
        raise DataError(f"{where}: has learnt templates {known}; choose one by {by} with --templates")
    for digest, name in chosen.items():
        if (wording := dict(made_with.wordings).get(digest)) is not None:
            return recorded_templates(name, wording)
        if asked is None and name not in template_names():
            raise DataError(
                f"{where}: has learnt templates {name}, which neither ship nor were recorded with its data; give their "
                "file with --templates"
            )
    name = asked or next(iter(chosen.values()), "chat")
    found = load_templates(name)
    if made_with.templates and found.hash not in dict(made_with.templates).values() and not may_differ:
        raise DataError(
            f"{where}: templates {name} ({found.hash[:12]}) are not as the model has learnt them ({known}); leave "
            "--templates out, or give --trust-templates to ask in other words than it has learnt"
        )
    return found
