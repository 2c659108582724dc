"""Small data for both phases, made on the spot, and recipes that name it: minutes on a laptop, nothing to download.

    .venv/bin/python examples/two_phases/prepare.py
    .venv/bin/python tools/train.py --config runs/two_phases/stage1.toml
    .venv/bin/python tools/train.py --config runs/two_phases/stage2.toml

Each step is a command of the product, echoed before it runs. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from corpus import write_corpus

from megatron_most.errors import DataError
from megatron_most.runtime import run_command, write_atomically

PREPARE = Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"
ABOUT = ["--split", "train", "--licence", "CC0-1.0", "--source", "examples/two_phases", "--language", "en"]
UNITS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/two_phases"), help="folder for everything made")
    parser.add_argument("--utterances", type=int, default=600, help="spoken sentences, two seconds each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, corpus = args.out, args.out / "corpus"
    if not (corpus / "written.jsonl").exists():  # the last one written
        print(f"making {args.utterances} utterances in {corpus}", flush=True)
        write_corpus(corpus, args.utterances, args.seed)
    prepare(out, corpus)
    write_recipes(out)
    print(f"\nready: tools/train.py --config {out}/stage1.toml, then --config {out}/stage2.toml")


def prepare(out: Path, corpus: Path) -> None:
    """Manifests, codec, tokenizer, units, datasets."""
    listed = {
        "speech": ["jsonl", "--name", "tones", "--files", corpus / "utterances.jsonl", "--audio-root", corpus / "wav"],
        "texts": ["text", "--name", "texts", "--files", corpus / "texts.jsonl"],
        "spoken": ["chat", "--name", "spoken", "--files", corpus / "spoken.jsonl", "--num-units", UNITS],
        "written": ["chat", "--name", "written", "--files", corpus / "written.jsonl"],
    }
    manifests = {name: out / "manifests" / name for name in listed}
    for name, words in listed.items():
        if not manifests[name].exists():
            step("manifest", *words, *ABOUT, "--out", manifests[name])
    codec, tokenizer, units = out / "codec", out / "tokenizer", out / "units"
    if not codec.exists():
        step("fit-codec", "--manifest", manifests["speech"], "--num-units", UNITS, "--out", codec)
    if not tokenizer.exists():
        texts = [manifests[name] for name in ("speech", "texts", "written")]
        step("fit-tokenizer", "--manifest", *texts, "--num-units", UNITS, "--out", tokenizer)
    step("units", "--manifest", manifests["speech"], "--codec", codec, "--out", units)
    sources = {
        "asr": ("speech", True), "tts": ("speech", True), "text-lm": ("texts", False),
        "speech-instruct": ("spoken", True), "text-instruct": ("written", False),
    }  # fmt: skip
    for task, (name, has_speech) in sources.items():
        words = ["--tokenizer", tokenizer, "--tokens", tokenizer / "token_map.json", "--hold-out", "0.1"]
        words += ["--hold-out-by", "row", *(["--units", units] if has_speech else [])]
        for part in ("train", "valid"):
            step("build", "--task", task, "--manifest", manifests[name], *words, "--part", part, "--out",
                 out / task / part)  # fmt: skip
    step("verify", "--paths", *manifests.values(), units, *(out / task / "train" for task in sources))


def write_recipes(out: Path) -> None:
    """The shipped miniatures of both phases, with these datasets filled in."""
    folder = out.resolve()
    tokens = f'[tokens]\nbackbone = "file"\nfile = "{folder}/tokenizer/token_map.json"\n'
    samples = f'\n[samples]\ncount = 2\ntokens = 24\ntokenizer = "{folder}/tokenizer"\n'
    gate = f'\n[forgetting]\nvalid = ["{folder}/text-lm/valid"]\nlimit = 0.5\n'
    for phase, tasks in {
        "stage1": ("asr", "tts", "text-lm"),
        "stage2": ("speech-instruct", "text-instruct", "asr", "tts"),
    }.items():
        data = "".join(
            f'\n[data.{task.replace("-", "_")}]\ntrain = ["{folder}/{task}/train"]\nvalid = ["{folder}/{task}/valid"]\n'
            for task in tasks
        )
        start = f'start_from = "{folder}/runs/stage1"\n' if phase == "stage2" else ""
        head = f'extends = "{phase}-tiny"\nname = "{phase}"\n\n'
        runs = f'\n[checkpoint]\nfolder = "{folder}/runs/{{name}}"\n{start}'
        write_atomically(out / f"{phase}.toml", head + tokens + data + gate + samples + runs)


def step(*words: object) -> None:
    command = [sys.executable, str(PREPARE), *(str(word) for word in words)]
    print("\n$ " + shlex.join(["tools/prepare_data.py", *command[2:]]), flush=True)
    if code := subprocess.run(command).returncode:
        raise DataError(f"{words[0]} ended with code {code}; see above")


if __name__ == "__main__":
    run_command(main)
