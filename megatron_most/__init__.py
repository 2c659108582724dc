"""Megatron-MoST: speech-text language models with a modality-aware mixture of experts, on Megatron-Core and DeepSpeed."""

__version__ = "0.1.0"
