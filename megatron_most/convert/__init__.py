"""Hugging Face folders in and out of our checkpoints, tensor by tensor; files cut anew; what lies in a folder, and
whether it is whole.

families/ has a table for each kind of model (tables.py says how to read one); hf_folder.py reads Hugging Face's files,
writing.py writes files that appear as a whole. The commands are in commands.py.
Names are loaded when they are first asked for: usage lines cost no import of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_most.runtime import lazy_names

if TYPE_CHECKING:
    from megatron_most.convert.commands import read_convert_ckpt, run_convert_ckpt
    from megatron_most.convert.exporter import prepare_export, run_export
    from megatron_most.convert.families import Family, add_family, fields, rows
    from megatron_most.convert.importer import prepare_import, run_import
    from megatron_most.convert.look import inspect, verify
    from megatron_most.convert.options import ExportOptions, ImportOptions, Layout
    from megatron_most.convert.ours import Ours, open_ours
    from megatron_most.convert.reshard import prepare_reshard, run_reshard
    from megatron_most.convert.settings import Settings
    from megatron_most.convert.tables import Row
    from megatron_most.convert.upcycling import Upcycling

_HOMES = {
    "commands": ("read_convert_ckpt", "run_convert_ckpt"),
    "exporter": ("prepare_export", "run_export"),
    "families": ("Family", "add_family", "fields", "rows"),
    "importer": ("prepare_import", "run_import"),
    "look": ("inspect", "verify"),
    "options": ("ExportOptions", "ImportOptions", "Layout"),
    "ours": ("Ours", "open_ours"),
    "reshard": ("prepare_reshard", "run_reshard"),
    "settings": ("Settings",),
    "tables": ("Row",),
    "upcycling": ("Upcycling",),
}

__all__ = [
    "ExportOptions", "Family", "ImportOptions", "Layout", "Ours", "Row", "Settings", "Upcycling", "add_family",
    "fields", "inspect", "open_ours", "prepare_export", "prepare_import", "prepare_reshard",
    "read_convert_ckpt", "rows", "run_convert_ckpt", "run_export", "run_import", "run_reshard", "verify",
]  # fmt: skip

__getattr__ = lazy_names(__name__, _HOMES)
