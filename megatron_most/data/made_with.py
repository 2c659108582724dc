"""What the data of a run was made with: its codec, tokenizer and templates. A checkpoint keeps it beside its weights.

Units of another codec are other ids for the same sounds, and nothing in a model's numbers would say so. Whoever brings
speech or text to a model, or takes speech from it, proves by this that the ids mean what the model has learnt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_most.data.dataset import load_info
from megatron_most.data.encoders import TokenizerIdentity
from megatron_most.errors import DataError
from megatron_most.speech import CodecIdentity, FrameIdentity

_NAMES = {"codec", "tokenizer", "templates"}
_LATER = {"frames", "wordings"}  # which older files do not have


@dataclass(frozen=True)
class MadeWith:
    """None: the data had no speech, or no text."""

    codec: CodecIdentity | None = None
    tokenizer: TokenizerIdentity | None = None
    templates: tuple[tuple[str, str], ...] = ()
    """Name and hash of each."""
    frames: FrameIdentity | None = None
    """None: no continuous frames; then the file has no such key, as those that are older than frames."""
    wordings: tuple[tuple[str, str], ...] = ()
    """Hash and content of templates, so that they need not be given again; data older than this did not record them."""

    def to_json(self) -> str:
        """The file's content."""
        values = {
            "codec": self.codec.to_dict() if self.codec else None,
            "tokenizer": self.tokenizer.to_dict() if self.tokenizer else None,
            "templates": [list(of) for of in self.templates],
            **({"frames": self.frames.to_dict()} if self.frames else {}),
            **({"wordings": dict(self.wordings)} if self.wordings else {}),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> MadeWith:
        """The inverse of `to_json`, read strictly."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if set(values) - _LATER != _NAMES:
                raise ValueError(f"holds {sorted(values)}, not {sorted(_NAMES)}")
            codec, tokenizer, wordings = values["codec"], values["tokenizer"], values.get("wordings", {})
            for digest, wording in wordings.items():
                if hashlib.sha256(wording.encode()).hexdigest() != digest:
                    raise ValueError(f"the wording of templates {digest[:12]} is not theirs")
            return cls(
                CodecIdentity.from_dict(codec) if codec is not None else None,
                TokenizerIdentity.from_dict(tokenizer) if tokenizer is not None else None,
                tuple((str(name), str(digest)) for name, digest in values["templates"]),
                FrameIdentity.from_dict(values["frames"]) if "frames" in values else None,
                tuple(wordings.items()),
            )
        except (OSError, ValueError, TypeError, AttributeError, DataError) as error:
            remedy = "copy the checkpoint here again"
            raise DataError(f"{path}: cannot be read as what data was made with ({error}); {remedy}") from error

    def then(self, later: MadeWith, where: str) -> MadeWith:
        """Of a model that has learnt from both. DataError where `later`, of the data at `where`, has other units or
        other text ids.
        """
        for what, before, now in zip(("codec", "tokenizer", "source of frames"), self._keys, later._keys, strict=True):
            if before is not None and now is not None and before != now:
                raise DataError(
                    f"{where}: made with another {what} than what the weights have learnt from ({now[:12]}, not "
                    f"{before[:12]}): the same input would mean other things; make the data with that {what}"
                )
        templates = tuple(dict.fromkeys([*self.templates, *later.templates]))
        wordings = tuple(dict([*self.wordings, *later.wordings]).items())
        frames = later.frames or self.frames
        return MadeWith(later.codec or self.codec, later.tokenizer or self.tokenizer, templates, frames, wordings)

    @property
    def _keys(self) -> tuple[str | None, ...]:
        """What decides whose ids these are, of units and of text, and whose frames."""
        tokenizer = self.tokenizer.sha256 if self.tokenizer else None
        return self.codec.key if self.codec else None, tokenizer, self.frames.key if self.frames else None

    def require_codec(self, hash: str, name: str, where: str) -> None:
        """DataError unless speech of that codec is what the model at `where` has learnt."""
        if self == MadeWith():
            raise DataError(
                f"{where}: does not say which codec made the units it has learnt from, so those of {name} may be "
                "others; where you know that they are the same, give --trust-codec"
            )
        if self.codec is None:
            raise DataError(f"{where}: has learnt from no units of speech, so it takes none; use text")
        if self.codec.hash != hash:
            raise DataError(
                f"{name}: codec {hash[:12]}, but the model at {where} has learnt units of {self.codec.name} "
                f"({self.codec.hash[:12]}): the same units would be other sounds; give that codec, and a vocoder of it"
            )

    def trusting(self, codec: CodecIdentity) -> MadeWith:
        """As said, or, where nothing is said at all, of that codec."""
        return replace(self, codec=codec) if self == MadeWith() else self

    def require_tokenizer(self, identity: TokenizerIdentity, name: str, where: str) -> None:
        """DataError unless that tokenizer made the text that the model at `where` has learnt."""
        if self.tokenizer is not None and self.tokenizer.sha256 != identity.sha256:
            raise DataError(
                f"{name}: tokenizer {identity.sha256[:12]}, but the model at {where} has learnt text of "
                f"{self.tokenizer.sha256[:12]}; give that one's file"
            )


def makers_of(folders: Iterable[Path | str]) -> MadeWith:
    """Of datasets, which the blend has compared with each other."""
    found = MadeWith()
    for folder in folders:
        info = load_info(folder)
        wordings = ((info.templates[1], info.wording),) if info.wording is not None else ()
        made = MadeWith(info.codec, info.tokenizer, (info.templates,), info.frames, wordings)
        found = found.then(made, str(folder))
    return found
