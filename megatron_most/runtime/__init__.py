"""Everything about processes, machines and files that knows nothing of MoST.

Which rank this is (launch.py), what it computes on (device.py), how ranks meet, agree and end together (ranks.py,
watch.py) and find out which of them hangs (pulse.py, beats.py, judge.py), lines, bars and files (log.py, progress.py,
files.py), one writer a folder (claim.py, process.py), jobs that continue after a kill (journal.py), and work over
several processes (workers.py). Importing this does not import torch.
"""

from megatron_most.runtime.claim import Claim, claim
from megatron_most.runtime.command import run_command
from megatron_most.runtime.device import (
    CPU_BACKEND,
    GPU_BACKEND,
    Device,
    deterministic,
    find_device,
    num_devices,
    seed_everything,
    set_threads,
)
from megatron_most.runtime.files import confine, ensure_new_folder, sha256_file, sync_folder, write_atomically
from megatron_most.runtime.journal import Journal, is_done, open_journal
from megatron_most.runtime.launch import Launch, expand_nodelist, find_launch
from megatron_most.runtime.log import get_logger, get_rank, quiet_upstream, redact, set_rank
from megatron_most.runtime.progress import Meter, progress
from megatron_most.runtime.pulse import PATIENCE, Pulse
from megatron_most.runtime.ranks import Ranks, agree, process_group
from megatron_most.runtime.workers import in_order

__all__ = [
    "CPU_BACKEND",
    "GPU_BACKEND",
    "PATIENCE",
    "Claim",
    "Device",
    "Journal",
    "Launch",
    "Meter",
    "Pulse",
    "Ranks",
    "agree",
    "claim",
    "confine",
    "deterministic",
    "ensure_new_folder",
    "expand_nodelist",
    "find_device",
    "find_launch",
    "get_logger",
    "get_rank",
    "in_order",
    "is_done",
    "num_devices",
    "open_journal",
    "process_group",
    "progress",
    "quiet_upstream",
    "redact",
    "run_command",
    "seed_everything",
    "set_rank",
    "set_threads",
    "sha256_file",
    "sync_folder",
    "write_atomically",
]
