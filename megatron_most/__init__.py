"""Megatron-MoST: speech-text language models with a modality-aware mixture of experts.

Built on Megatron-Core and DeepSpeed. Rooms are listed, floor by floor, in docs/architecture.md.
"""

import warnings

from megatron_most.upstream import late_compile

__version__ = "0.1.0"

# Megatron-Core says at every import, a dozen lines long, that optional packages are missing. `make env` knows.
warnings.filterwarnings("ignore", message=r".*(Apex|Transformer Engine).* not installed")
warnings.filterwarnings("ignore", message=r"full scope is deprecated")

late_compile.install()
