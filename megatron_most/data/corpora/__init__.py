"""Corpora as downloaded, read into manifests: one frozen dataclass of options for each kind, listed in CORPORA.

`write_manifest(LibriHeavy(cuts=…, audio_root=…, out=…))` writes one; each class is a subcommand of the tool.
"""

from megatron_most.data.corpora.chat import Chat
from megatron_most.data.corpora.common import Corpus, Reject, UnreadableFile, write_manifest
from megatron_most.data.corpora.commonvoice import CommonVoice
from megatron_most.data.corpora.cuts import Cuts
from megatron_most.data.corpora.folder import Folder
from megatron_most.data.corpora.jsonl import JsonLines
from megatron_most.data.corpora.kaldi import Kaldi
from megatron_most.data.corpora.libriheavy import LibriHeavy
from megatron_most.data.corpora.librispeech import LibriSpeech
from megatron_most.data.corpora.release import Release
from megatron_most.data.corpora.text import Text
from megatron_most.data.corpora.voxpopuli import VoxPopuli

CORPORA: dict[str, type[Corpus]] = {
    "libriheavy": LibriHeavy,
    "librispeech": LibriSpeech,
    "commonvoice": CommonVoice,
    "voxpopuli": VoxPopuli,
    "cuts": Cuts,
    "jsonl": JsonLines,
    "kaldi": Kaldi,
    "folder": Folder,
    "text": Text,
    "chat": Chat,
    "release": Release,
}

__all__ = [
    "CORPORA", "Chat", "CommonVoice", "Corpus", "Cuts", "Folder", "JsonLines", "Kaldi", "LibriHeavy", "LibriSpeech",
    "Reject", "Release", "Text", "UnreadableFile", "VoxPopuli", "write_manifest",
]  # fmt: skip
