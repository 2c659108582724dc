"""A tokenizer's files for an exported model: as they are, with the token map's units and marks added.

New tokens need their exact ids, also where they do not follow on the tokenizer's last one, so they go into the model's
vocabulary as well as into the list of added tokens; no merge leads to them, so text is tokenized as before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_most.errors import CheckpointError
from megatron_most.vocab import TokenMap

Files = dict[str, str]
MAIN = "tokenizer.json"
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def read(path: Path, tokens: TokenMap) -> Files:
    """name -> text of each file. CheckpointError where it cannot hold the new tokens at their ids."""
    folder = path if path.is_dir() else path.parent
    main = folder / MAIN if path.is_dir() else path
    try:
        definition = json.loads(main.read_text(encoding="utf-8"))
        files = {name: (folder / name).read_text(encoding="utf-8") for name in _BESIDE if (folder / name).exists()}
        definition = _extended(definition, tokens)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{main}: cannot be read as a tokenizer: {type(error).__name__}: {error}") from error
    text = json.dumps(definition, ensure_ascii=False)
    _prove(main, text, tokens)
    return {MAIN: text + "\n", **files}


def _extended(definition: dict[str, Any], tokens: TokenMap) -> dict[str, Any]:
    vocab, added = definition["model"]["vocab"], definition.setdefault("added_tokens", [])
    there = {token["content"] for token in added}
    for id, content in tokens.new_tokens():
        if isinstance(vocab, dict):
            vocab.setdefault(content, id)
        if content not in there:
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            added.append({"id": id, "content": content, **flags, "special": id not in tokens.unit_ids})
    added.sort(key=lambda token: token["id"])
    return definition


def _prove(path: Path, text: str, tokens: TokenMap) -> None:
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(f"{path}: not readable as a tokenizer: {error}") from error
    for id, content in tokens.new_tokens():
        if made.encode(content, add_special_tokens=False).ids != [id]:
            remedy = "give the tokenizer that the token map was made for"
            raise CheckpointError(f"{path}: {content} would not be id {id} with it; {remedy}")
