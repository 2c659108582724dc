"""The backbone of the demo: a DeepSeek-V2 of a million weights, as transformers makes and saves it, weights random.

It stands for a model that you have downloaded: .venv/bin/python examples/quickstart/base.py --tokenizer DIR --out DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from megatron_most.runtime import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer, for its size and ids")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch
    from transformers import AutoTokenizer, DeepseekV2Config, DeepseekV2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    torch.manual_seed(args.seed)
    config = DeepseekV2Config(
        vocab_size=len(tokenizer), hidden_size=args.width, intermediate_size=2 * args.width,
        moe_intermediate_size=args.width, num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=4,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=64,
        q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32, topk_method="greedy",
        norm_topk_prob=False, routed_scaling_factor=1.0, max_position_embeddings=1024, rms_norm_eps=1e-6,
        initializer_range=0.06,  # so narrow a model learns sooner from wider weights than the usual 0.02
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    DeepseekV2ForCausalLM(config).save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(args.out)
    print(f"{args.out}: {sum(w.numel() for w in DeepseekV2ForCausalLM(config).parameters()):,} weights")


if __name__ == "__main__":
    run_command(main)
