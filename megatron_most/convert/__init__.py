"""Hugging Face folders in and out of our checkpoints, tensor by tensor; files cut anew; what lies in a folder, and
whether it is whole.

families/ has a table for each kind of model (tables.py says how to read one); hf_folder.py reads Hugging Face's files,
writing.py writes files that appear as a whole. The commands are in commands.py.
"""

from megatron_most.convert.commands import run_convert_ckpt
from megatron_most.convert.exporter import ExportOptions, prepare_export, run_export
from megatron_most.convert.importer import ImportOptions, Layout, prepare_import, run_import
from megatron_most.convert.look import inspect, verify
from megatron_most.convert.ours import Ours, open_ours
from megatron_most.convert.reshard import prepare_reshard, run_reshard
from megatron_most.convert.upcycling import Upcycling

__all__ = [
    "ExportOptions", "ImportOptions", "Layout", "Ours", "Upcycling", "inspect", "open_ours", "prepare_export",
    "prepare_import", "prepare_reshard", "run_convert_ckpt", "run_export", "run_import", "run_reshard", "verify",
]  # fmt: skip
