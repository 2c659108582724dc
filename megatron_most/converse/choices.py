"""What can be chosen of a conversation: where and in which numbers a model is computed, and what it is asked to do.

Apart from the files that do it, for a command line names these without an import of torch.
"""

from __future__ import annotations

from typing import Literal

from megatron_most.generate import Mode

Where = Literal["auto", "cpu", "gpu"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of a transformers model; auto: as it is stored."""
Task = Literal["asr", "tts", "chat", "plain"]
TASKS: dict[Task, Mode] = {"asr": "text-only", "tts": "audio-only", "chat": "free", "plain": "free"}
"""Each with the mode of its answers. plain: go on with the text, as a base model does."""
