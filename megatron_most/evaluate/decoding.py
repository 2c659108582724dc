"""How answers are decoded: what a run is told of it, and the settings that each task's mode makes of that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_most.generate import Mode, Settings


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen; the task says which may come."""

    max_new_tokens: int | None = None
    """Not set = 256 for answers in text, 1024 in speech."""
    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def settings(self, mode: Mode, seed: int) -> Settings:
        values = asdict(self)
        if values["max_new_tokens"] is None:
            values["max_new_tokens"] = 1024 if mode == "audio-only" else 256
        return Settings(**values, mode=mode, seed=seed)

    def facts(self, mode: Mode) -> dict[str, Any]:
        """For records, seeds apart."""
        return {name: value for name, value in asdict(self.settings(mode, 0)).items() if name != "seed"}
