"""Whether a tool would take these words, before a queue is waited for: `check_words.py TOOL WORDS`; launch/*.sh ask.

    .venv/bin/python tools/check_words.py evaluate asr --model runs/phase1 --manifest m --units u --out runs/e

TOOL is evaluate, prepare_data or convert_ckpt. Says nothing and leaves with 0, or says what that tool would refuse of
the words by themselves; folders and files are not looked at, for a job before this one may make them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from megatron_most.errors import ConfigError
from megatron_most.runtime import run_command


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--help"]:
        print(f"usage: check_words.py TOOL WORDS\n\n{__doc__}")
        return
    tool = words[0] if words else ""
    if tool not in _TOOLS:
        raise ConfigError("TOOL", tool, "no such tool", f"use one of {', '.join(_TOOLS)}")
    _TOOLS[tool](words[1:])


def _evaluate(words: Sequence[str]) -> None:
    from megatron_most.evaluate import Options, check_options, read_evaluate

    if isinstance(options := read_evaluate(words), Options):
        check_options(options)


def _prepare_data(words: Sequence[str]) -> None:
    from megatron_most.data import read_prepare_data

    read_prepare_data(words)


def _convert_ckpt(words: Sequence[str]) -> None:
    from megatron_most.convert import read_convert_ckpt

    read_convert_ckpt(words)


_TOOLS: dict[str, Callable[[Sequence[str]], Any]] = {
    "evaluate": _evaluate, "prepare_data": _prepare_data, "convert_ckpt": _convert_ckpt,
}  # fmt: skip

if __name__ == "__main__":
    run_command(main)
