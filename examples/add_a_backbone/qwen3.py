"""Another family of Hugging Face models in fifty lines: Qwen3 (dense), which this package does not know.

    .venv/bin/python examples/add_a_backbone/qwen3.py import --source models/Qwen3-0.6B --out checkpoints/qwen3 \\
        --token-map token_map.json --upcycle.group-sizes text=4 audio=4
    .venv/bin/python examples/add_a_backbone/qwen3.py --try runs/add_a_backbone     # on a tiny one made on the spot

A family says three things: which fields of config.json mean what here (`read`), the same backwards (`write`), and which
tensor of ours is made of which of theirs (`table`). Its commands are then those of tools/convert_ckpt.py; their gate
compares logits with transformers' own class, and names the first layer that differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_most.config import Plan, RunConfig
from megatron_most.convert import Family, Settings, add_family, fields, rows, run_convert_ckpt
from megatron_most.runtime import run_command
from megatron_most.vocab import tiny_token_map

TABLE = (
    *rows.FRAME,
    *rows.GQA,
    *rows.DENSE,
)  # Llama's names; a norm of each query and key head comes with model.qk_norm


def read(settings: Settings) -> fields.Changes:
    layers = settings.integer("num_hidden_layers")
    settings.one_of("use_sliding_window", [False], False)
    settings.one_of("layer_types", [["full_attention"] * layers, None], None)
    settings.get("sliding_window"), settings.get("max_window_layers")  # of no effect without it
    dense = {"model.qk_norm": True, "moe.num_experts": 0, "moe.dense_layers": []}
    return {**fields.read_frame(settings), **fields.read_gqa(settings), **dense}


def claims(config: RunConfig) -> bool:
    return config.model.qk_norm and not config.moe.num_experts


def write(plan: Plan) -> dict[str, Any]:
    fields.refuse("qwen3", {"has no experts, and norms heads (model.qk_norm)": not claims(plan.config)})
    return {**fields.write_frame(plan), **fields.write_gqa(plan), **fields.old_rope(plan), "use_sliding_window": False}


add_family(
    Family(
        name="qwen3", model_types=("qwen3",), architecture="Qwen3ForCausalLM", table=TABLE, read=read, write=write,
        claims=claims, upcycled=(*TABLE, *rows.COPIES, *rows.OWN_BUFFERS),
    )
)  # fmt: skip


def try_out(folder: Path) -> None:
    """There and back, and upcycled; each import and export ends with the gate."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "vocab_size": 72}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained(folder / "hf")
    tiny_token_map().save(folder / "token_map.json")
    given = ["--source", str(folder / "hf"), "--token-map", str(folder / "token_map.json")]
    run_convert_ckpt(["import", *given, "--out", str(folder / "dense")])
    run_convert_ckpt(["export", "--source", str(folder / "dense"), "--out", str(folder / "back")])
    run_convert_ckpt(["import", *given, "--out", str(folder / "most"), "--upcycle.group-sizes", "text=4", "audio=4"])


def main() -> int | None:
    match sys.argv[1:]:
        case ["--try", folder]:
            return try_out(Path(folder))
        case words:
            return run_convert_ckpt(words)


if __name__ == "__main__":
    run_command(main)
