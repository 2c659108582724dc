"""Which token id is text, unit or special: `TokenMap`, the tags of modalities, and the maps of known backbones.

Every other room asks a `TokenMap` instead of knowing ids. The map is plain data, stored beside data sets and
checkpoints.
"""

from megatron_most.vocab.backbones import deepseek_token_map, grow, llama_token_map, tiny_token_map
from megatron_most.vocab.tags import AUDIO, OUTSIDE, TAG_NAMES, TEXT, WAVE, tag_id
from megatron_most.vocab.token_map import TokenMap

__all__ = [
    "AUDIO",
    "OUTSIDE",
    "TAG_NAMES",
    "TEXT",
    "WAVE",
    "TokenMap",
    "deepseek_token_map",
    "grow",
    "llama_token_map",
    "tag_id",
    "tiny_token_map",
]
