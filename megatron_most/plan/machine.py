"""Machines as makers describe them, and what is assumed beside it: the numbers a prediction rests on, all of them
flags.

Bytes and operations are decimal but for memory, which is in GiB as GPUs have it. Links are one way, for one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_most.runtime.device import peak_flops_of

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A GPU and its links."""

    name: str
    memory: float
    """Bytes."""
    peak: float
    """Dense bf16 or fp16 products a second."""
    peak_fp32: float
    """The same in float32, without tensor cores: torch's default."""
    hbm: float
    """Bytes a second of the GPU's own memory."""
    inside: float
    """Bytes a second to another GPU of the node."""
    between: float
    """Bytes a second to a GPU of another node, with all GPUs of the node at it."""
    host: float
    """Bytes a second to the node's memory, with all GPUs at it."""


def _machine(name: str, driver: str, memory_gib: float, fp32: float, hbm: float, links: tuple[float, float, float],
             ) -> Machine:  # fmt: skip
    inside, between, host = (1e9 * link for link in links)
    peak = peak_flops_of(driver)
    assert peak is not None, f"{driver}: not in the table of devices"
    return Machine(
        name=name, memory=memory_gib * GIB, peak=peak, peak_fp32=fp32 * 1e12, hbm=hbm * 1e12, inside=inside,
        between=between, host=host,
    )  # fmt: skip


# NVIDIA's data sheets: A100 (2021, NVLink 3: 600 GB/s both ways), H100 (2023, NVLink 4: 900 GB/s), H200 (2024), GH200
# (2023; its link to the CPU is 900 GB/s both ways). Nodes: DGX A100 has an HDR port of 200 Gbit/s for each GPU, DGX
# H100 and H200 an NDR port of 400; four GH200 to a node with 150 GB/s between any two and 200 Gbit/s each, as Alps has
# them. PCIe 4 and 5 x16 give 25 and 50 GB/s in practice; two GPUs of a DGX A100 share one.
MACHINES = {
    machine.name: machine
    for machine in (
        _machine("a100-40", "NVIDIA A100-SXM4-40GB", 40, 19.5, 1.555, (300, 25, 12.5)),
        _machine("a100-80", "NVIDIA A100-SXM4-80GB", 80, 19.5, 2.039, (300, 25, 12.5)),
        _machine("h100-80", "NVIDIA H100 80GB HBM3", 80, 67, 3.35, (450, 50, 50)),
        _machine("h200-141", "NVIDIA H200", 140, 67, 4.8, (450, 50, 50)),
        _machine("gh200", "NVIDIA GH200 480GB", 95, 67, 4.0, (150, 25, 380)),
    )
}


SHARES = ("efficiency", "link_efficiency", "hbm_efficiency", "overlap", "filled", "fragments")
"""Fields of Assumed that are at most 1."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What no data sheet says. Change them once a run has told better."""

    efficiency: float = 0.28
    """Of the peak, in products alone: one GH200 with Megatron-Core's local layers, as ours are, trains a model of this
    size at 17,200 tokens a second, which is 0.28 of its peak. Layers of Transformer Engine reach 0.36.
    """
    link_efficiency: float = 0.75
    """Of a link's bandwidth, in large messages."""
    hbm_efficiency: float = 0.7
    overlap: float = 0.6
    """Share of the backward pass behind which ZeRO's traffic can hide, where DeepSpeed overlaps the two: by default
    under ZeRO-3 alone.
    """
    latency_s: float = 10e-6
    """Of each message between two ranks of a collective."""
    operation_s: float = 8e-6
    """The host's time for one operation on the GPU. A model like ours takes about 310 a layer, forward and backward,
    and 19 for each expert of it (counted): where GPUs get little to do at once, it is the host that they wait for.
    """
    zero3_module_s: float = 0.3e-3
    """ZeRO-3's work around each module in Python, both ways; 0.6 ms on a slow core, measured."""
    imbalance: float = 1.2
    """Rows of the busiest expert-parallel rank over the mean; 1.0 at perfect balance. Striped placement alone gives
    1.01, blocked 1.8 at 10 % of audio; the rest is how well the router is balanced.
    """
    documents_per_row: float = 6.0
    """Where train.batch_counts = "documents": how many fill a packed row (of 2,048 tokens about 6)."""
    filled: float = 0.95
    """Share of a row's places that are no pads."""
    document_tokens: float = 0.0
    """Tokens of a document, for attention between them; 0 = a row holds documents_per_row of them."""
    reserve_gib: float = 3.0
    """GPU memory that is not ours: the driver's context, NCCL's buffers."""
    fragments: float = 0.06
    """Share of the GPU's memory that the allocator cannot use."""
    host_gib: float = 0.0
    """Node memory for one GPU, where the optimizer is offloaded; 0 = not checked."""
    host_bandwidth: float = 20e9
    """Bytes a second of node memory for one GPU's share of an offloaded optimizer."""
    start_s: float = 300.0
    """From a job's start to its first step: containers, imports, reading a checkpoint."""
    notice_s: float = 360.0
    """How long before its time limit a job is asked to stop: 300 s by the launchers' --signal, and Slurm may be up to a
    minute early.
    """
    disk: float = 5e9
    """Bytes a second that all ranks together write to the file system."""

    def reserve(self, machine: Machine) -> float:
        return self.reserve_gib * GIB + self.fragments * machine.memory
