"""The command line of tools/generate.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_most.config import LayoutConfig
from megatron_most.converse.choices import TASKS, Task
from megatron_most.errors import ConfigError
from megatron_most.generate import Settings
from megatron_most.runtime import get_logger
from megatron_most.speech import checked_speaker, load_codec, load_vocoder, sound_format, write_sound

if TYPE_CHECKING:
    from megatron_most.converse.talker import Said

_log = get_logger(__name__)
_TEACH = """\
Say something to a model, in text or in speech, and get text or speech back.

  generate.py --model runs/stage1 --tokenizer TOKENIZER --prompt "How are you?"
  generate.py --model runs/stage1 --tokenizer TOKENIZER --codec CODEC --audio question.wav --task asr
  generate.py --model exported --prompt "Good morning." --task tts --vocoder VOCODER --out morning.wav
  torchrun --nproc-per-node 2 tools/generate.py --model runs/stage1 --tensor 2 ...

MODEL is a run's folder, a step's, or one exported for transformers. Codec, vocoder and tokenizer must be those of the
model's data: its checkpoint knows their hashes. See docs/generation.md."""


def run_generate(args: Sequence[str] | None = None) -> None:
    """One answer: text to standard output, speech to --out."""
    chosen = _parser().parse_args(args)
    if chosen.prompt is None and chosen.audio is None:
        raise ConfigError("--prompt", None, "nothing to answer", "give --prompt TEXT, --audio FILE or both")
    if (chosen.out is None) != (chosen.vocoder is None):
        raise ConfigError("--out", chosen.out, "speech needs --out and --vocoder", "give both or neither")
    task: Task = chosen.task or ("asr" if chosen.prompt is None else "chat")
    settings = Settings(
        max_new_tokens=chosen.max_new_tokens,
        mode=chosen.mode or TASKS[task],
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        repetition_penalty=chosen.repetition_penalty,
        seed=chosen.seed,
    )
    layout = LayoutConfig(tensor=chosen.tensor, expert=chosen.expert)
    # Late: usage lines cost no import of torch.
    from megatron_most.converse.ears import open_ears
    from megatron_most.converse.models import open_any
    from megatron_most.converse.routing import write_routing
    from megatron_most.converse.talker import Talker

    # What can be wrong without the model is looked at before it is loaded.
    codec = load_codec(chosen.codec, model=chosen.codec_model) if chosen.codec else None
    voice = load_vocoder(chosen.vocoder) if chosen.vocoder else None
    if voice is not None:
        checked_speaker(chosen.speaker, voice.num_speakers)
        sound_format(chosen.out)
    with open_any(chosen.model, layout=layout, device=chosen.device, precision=chosen.precision) as opened:
        if chosen.trust_codec:
            opened = opened.trusting(codec, voice)
        ears = open_ears(opened, codec, chosen.codec_model) if chosen.audio else None
        talker = Talker(
            opened,
            tokenizer=chosen.tokenizer,
            templates=chosen.templates,
            trust_templates=chosen.trust_templates,
            ears=ears,
        )
        if voice is not None:
            opened.made_with.require_codec(voice.codec_hash, str(chosen.vocoder), str(opened.folder))
        heard = talker.hear(chosen.audio) if chosen.audio else None
        prompt = talker.prompt(task, chosen.prompt, heard)
        [said] = talker.answer([prompt], settings)
        if chosen.routing is not None:
            write_routing(chosen.routing, talker, prompt, said.answer.ids)
        if not opened.leads:
            return
        _print(said)
        if voice is not None:
            write_sound(chosen.out, talker.speak(said, voice, chosen.speaker), voice.sample_rate)
            _log.info("%s: %d units", chosen.out, sum(map(len, said.units)))


def _print(said: Said) -> None:
    if said.text:
        sys.stdout.write(said.text + "\n")
    for units in said.units:
        sys.stdout.write("".join(f"[Hu{unit}]" for unit in units) + "\n")
    answer = said.answer
    rate = len(answer.ids) / max(answer.seconds, 1e-9)
    _log.info("%d tokens, stopped by %s, %.1f tokens/s", len(answer.ids), answer.stopped, rate)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py", description=_TEACH, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a run's or a step's folder, or an exported one")
    add("--prompt", metavar="TEXT", help="what is said in text")
    add("--audio", type=Path, metavar="FILE", help="what is said in speech; any format that prepare_data.py reads")
    add("--task", choices=TASKS, help="not given: asr for speech alone, else chat")
    add("--mode", choices=("free", "text-only", "audio-only"), help="of the answer; not given: as the task has it")
    add("--out", type=Path, metavar="FILE", help="speech of the answer: .wav or .flac")
    add("--routing", type=Path, metavar="FILE", help="write which experts each token used, as JSON; for report.py")
    add("--vocoder", type=Path, metavar="FOLDER", help="what speaks the units, of the model's codec")
    add("--speaker", type=int, default=0, help="the vocoder's voice")
    add("--codec", help="folder or preset of the codec that made the model's units; to hear --audio by")
    add(
        "--codec-model",
        type=Path,
        metavar="FOLDER",
        help="the HuBERT of the codec, or of the frames that a MoST-C model hears, where it has moved",
    )
    add("--trust-codec", action="store_true", help="take units to be the model's where its folder does not say whose")
    add("--tokenizer", type=Path, help="of the model's data; exported folders have their own")
    add("--templates", help="by name or file; not given: those of the model's data")
    add("--trust-templates", action="store_true", help="take --templates though the model has learnt others")
    add("--max-new-tokens", type=int, default=Settings.max_new_tokens)
    add("--temperature", type=float, default=Settings.temperature, help="0: always the likeliest token")
    add("--top-p", type=float, default=Settings.top_p)
    add("--top-k", type=int, default=Settings.top_k, help="0: all")
    add("--repetition-penalty", type=float, default=Settings.repetition_penalty, help="1: none")
    add("--seed", type=int, default=Settings.seed)
    add("--tensor", type=int, default=1, help="tensor-parallel processes, under torchrun or srun")
    add("--expert", type=int, default=1, help="expert-parallel processes")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto")
    add("--precision", choices=("fp32", "bf16"), help="not given: as it was trained; exported folders: fp32")
    return parser
