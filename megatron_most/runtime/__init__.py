"""Everything about processes, machines and files that knows nothing of MoST.

Which rank this is (launch.py), what it computes on (device.py), how ranks meet, agree and end together (ranks.py,
watch.py) and find out which of them hangs (pulse.py, beats.py, judge.py), lines, bars, clocks and files (log.py,
progress.py, clock.py, files.py), what the disk refuses (disk.py), one writer a folder (claim.py, process.py), jobs that
continue after a kill (journal.py), work over several processes (workers.py), and names that are loaded late (lazy.py).
Importing this does not import torch.
"""

from megatron_most.runtime.claim import Claim, claim
from megatron_most.runtime.clock import Clock
from megatron_most.runtime.command import EXIT_STOPPED, run_command
from megatron_most.runtime.device import (
    CPU_BACKEND,
    GPU_BACKEND,
    Device,
    deterministic,
    find_device,
    gpu_generation,
    has_triton,
    num_devices,
    seed_everything,
    set_threads,
)
from megatron_most.runtime.disk import (
    cannot_read,
    cannot_write,
    open_file,
    read_file,
    reading,
    remedy_of,
    require_file,
    writing,
)
from megatron_most.runtime.files import (
    confine,
    ensure_new_folder,
    json_lines,
    sha256_file,
    sync_folder,
    write_atomically,
)
from megatron_most.runtime.journal import JOB, Journal, is_done, open_journal
from megatron_most.runtime.launch import Launch, expand_nodelist, find_launch
from megatron_most.runtime.lazy import lazy_names
from megatron_most.runtime.log import get_logger, get_rank, printable, quiet_upstream, redact, set_rank
from megatron_most.runtime.process import end_with_parent
from megatron_most.runtime.progress import Meter, progress
from megatron_most.runtime.pulse import PATIENCE, Pulse
from megatron_most.runtime.ranks import Ranks, agree, process_group
from megatron_most.runtime.signals import hear_signals, take_signal
from megatron_most.runtime.workers import in_order, num_cores

__all__ = [
    "CPU_BACKEND",
    "EXIT_STOPPED",
    "GPU_BACKEND",
    "JOB",
    "PATIENCE",
    "Claim",
    "Clock",
    "Device",
    "Journal",
    "Launch",
    "Meter",
    "Pulse",
    "Ranks",
    "agree",
    "cannot_read",
    "cannot_write",
    "claim",
    "confine",
    "deterministic",
    "end_with_parent",
    "ensure_new_folder",
    "expand_nodelist",
    "find_device",
    "gpu_generation",
    "has_triton",
    "find_launch",
    "get_logger",
    "get_rank",
    "hear_signals",
    "take_signal",
    "in_order",
    "is_done",
    "json_lines",
    "lazy_names",
    "num_cores",
    "num_devices",
    "open_file",
    "open_journal",
    "printable",
    "process_group",
    "progress",
    "quiet_upstream",
    "read_file",
    "reading",
    "redact",
    "remedy_of",
    "require_file",
    "run_command",
    "seed_everything",
    "set_rank",
    "set_threads",
    "sha256_file",
    "sync_folder",
    "write_atomically",
    "writing",
]
