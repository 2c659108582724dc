"""A third expert group, on a CPU in seconds: music is heard as frames and its instrument named, beside speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_most.config import from_command_line
from megatron_most.data import Document, Wave, pack_rows, synthetic_document
from megatron_most.engine import make_engine, open_session
from megatron_most.model import build_model
from megatron_most.moe import collect, routers
from megatron_most.runtime import run_command, set_threads
from megatron_most.vocab import TEXT, WAVE, TokenMap

INSTRUMENTS, HEARD = 8, 6  # kinds; frames in a piece


def piece(number: int, tokens: TokenMap) -> Document:
    """Noisy frames of one instrument, tagged wave; then its name as text, which is learnt."""
    draw = np.random.default_rng(number)
    kind = int(draw.integers(INSTRUMENTS))
    frames = np.eye(INSTRUMENTS)[[kind] * HEARD] + 0.3 * draw.standard_normal((HEARD, INSTRUMENTS))
    ids, tags = [tokens.begin_wave_id] * HEARD + [kind, tokens.eos_id], [WAVE] * HEARD + [TEXT] * 2
    return Document(ids, tags, [False] * HEARD + [True] * 2, Wave(np.arange(HEARD), frames.astype(np.float32)))


def main() -> None:
    config = from_command_line(default=str(Path(__file__).with_name("music.toml")), prog="music.py")
    with open_session(config) as session:
        set_threads(1)
        plan, rows, length = session.plan, config.train.global_batch_size, config.train.sequence_length
        engine = make_engine(build_model(plan, session.groups, session.device.torch_device), plan, session.groups)
        for step in range(config.train.steps):
            numbers = range(step * rows, (step + 1) * rows)
            music = [piece(n, plan.tokens) for n in numbers]
            speech = [synthetic_document(plan.tokens, "audio", length - len(music[0].ids) + 2, 0, n) for n in numbers]
            batch = pack_rows([list(row) for row in zip(music, speech, strict=True)], length, plan.tokens)
            losses = engine.step([batch], config.train.learning_rate * (1 - step / config.train.steps)).losses
            if step % 20 == 0 or step == config.train.steps - 1:
                print(f"step {step:3d}   names {losses['text']:.3f}   speech {losses['audio']:.3f} nats", flush=True)
        for layer in collect(routers(engine.model), session.groups.tokens, session.groups.stages):
            for name, experts in zip(plan.moe.group_names, plan.moe.groups, strict=True):
                tokens, visits = layer.tokens_per_tag[name], sum(layer.load[expert] for expert in experts)
                print(f"layer {layer.layer}: {tokens} {name} tokens, {visits} visits to experts {experts}")
                if visits != tokens * config.moe.top_k or not tokens:
                    raise SystemExit(f"layer {layer.layer}: tokens of another modality were with the experts of {name}")


if __name__ == "__main__":
    run_command(main)
