"""make demo: the whole pipeline in minutes on a CPU, by the commands that a cluster uses, on a small closed domain.

    .venv/bin/python examples/quickstart/demo.py                  # or: make demo
    .venv/bin/python examples/quickstart/demo.py --scale ci       # every step on next to nothing; learns nothing

flite speaks sentences about animals; they become units and datasets; a tiny DeepSeek-V2 is imported and trained in both
phases; it is evaluated on sentences it has never met, exported, and asked. Each step is a command, echoed
before it runs. Run again, it goes on where it stopped. In the end: a table, report.html and summary.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import speech
from corpus import Corpus, write_corpus
from figures import finish, players
from recipes import write_recipes
from steps import RANKS, ROOT, Steps, require_room

from megatron_most.checkpoint import RECIPE
from megatron_most.errors import DataError
from megatron_most.runtime import claim, run_command

TEMPLATES = Path(__file__).resolve().with_name("templates.toml")
ABLATION = ROOT / "docs" / "ablation.json"
"""As `make ablation` measured it, elsewhere: it takes longer than the demo."""
PREPARE, CONVERT, EVALUATE = "tools/prepare_data.py", "tools/convert_ckpt.py", "tools/evaluate.py"
SPOKEN = ("train", "own-train", "test", "own-test", "unseen", "shuffled")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    corpus: Corpus
    units: int
    steps: tuple[int, int]
    """Of both phases."""
    spoken: int
    """Sentences that the model speaks for the judge."""


SCALES = {
    "full": Scale(
        Corpus(train=1500, phrases=400, test=120, unseen=60, stories=40, asked=500, texts=3000), 200, (1450, 240), 24
    ),
    "ci": Scale(Corpus(train=30, phrases=0, test=6, unseen=2, stories=2, asked=20, texts=60), 32, (4, 2), 2),
}
NUM_STEPS = 41


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for everything made")
    parser.add_argument("--scale", choices=SCALES, default="full", help="ci: to see that every step runs")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("PHASE1", "PHASE2"), help="longer training, or shorter")
    args = parser.parse_args()
    if args.steps and min(args.steps) < 1:
        parser.error(f"--steps {args.steps[0]} {args.steps[1]}: at least one of each phase")
    if not (args.out / "steps" / "speech.json").exists() or not (args.out / "corpus").exists():
        speech.require_flite()
    require_room(args.out)
    scale = SCALES[args.scale]
    if args.steps:
        scale = replace(scale, steps=tuple(args.steps))
    if set("{}") & set(str(args.out.resolve())):
        raise DataError(f"{args.out.resolve()}: braces stand for a recipe's name in paths; give --out without them")
    if args.out.exists() and not args.out.is_dir():
        raise DataError(f"{args.out}: not a folder; give --out another name")
    args.out.mkdir(parents=True, exist_ok=True)
    with claim(args.out):
        steps = Steps(args.out, NUM_STEPS)
        prepare(steps, args.out, scale)
        train(steps, args.out, scale)
        evaluate(steps, args.out, scale)
        use(steps, args.out)
        finish(args.out, steps.seconds, args.scale)


def prepare(steps: Steps, out: Path, scale: Scale) -> None:
    """Sentences -> speech -> manifests -> codec, tokenizer -> units -> datasets, and a voice for the units."""
    corpus, sets = out / "corpus", out / "manifests"
    facts = {"corpus": scale.corpus, "voices": [*speech.VOICES, speech.UNSEEN], "own": speech.OWN}
    steps.own(
        "speech",
        facts,
        "sentences about animals, spoken by flite",
        lambda: write_corpus(corpus, scale.corpus),
        corpus / "questions.jsonl",
    )
    about = ["--licence", "CC0-1.0", "--source", "examples/quickstart", "--language", "en"]
    listed: list[object]
    for name in SPOKEN:
        listed = ["--name", "animals", "--split", name, "--files", corpus / f"{name}.jsonl", "--audio-root", corpus]
        made = sets / name
        steps.command(f"manifest-{name}", PREPARE, "manifest", "jsonl", *listed, *about, "--out", made, makes=made)
    for name, kind in (("texts", "text"), ("spoken", "chat"), ("written", "chat")):
        listed = ["--name", name, "--split", "train", "--files", corpus / f"{name}.jsonl"]
        made = sets / name
        steps.command(f"manifest-{name}", PREPARE, "manifest", kind, *listed, *about, "--out", made, makes=made)
    codec, tokenizer, units = out / "codec", out / "tokenizer", out / "units"
    size = ["--num-units", scale.units]
    steps.command("fit-codec", PREPARE, "fit-codec", "--manifest", sets / "train", *size, "--centred", "--out", codec)
    texts = ["--manifest", *(sets / name for name in ("train", "texts", "written")), "--vocab-size", 700]
    steps.command("fit-tokenizer", PREPARE, "fit-tokenizer", *texts, *size, "--out", tokenizer)
    for name in SPOKEN:
        given = ["--manifest", sets / name, "--codec", codec]
        steps.command(f"units-{name}", PREPARE, "units", *given, "--out", units / name)
    words = ["--tokenizer", tokenizer, "--tokens", tokenizer / "token_map.json", "--templates", TEMPLATES]
    for name, task, parts in BUILDS:
        given = ["--task", task, *parts(sets, units), *words, "--out", out / "sets" / name]
        steps.command(f"build-{name.replace('/', '-')}", PREPARE, "build", *given)
    built = [out / "sets" / name for name, _, _ in BUILDS]
    steps.command("verify", PREPARE, "verify", "--paths", units / "train", *built)
    given = ["--manifest", sets / "own-train", "--units", units / "own-train"]
    steps.command("voice", "tools/train_vocoder.py", "codebook", *given, "--out", out / "voice")


def _whole(name: str, units: str = "") -> Callable[[Path, Path], list[object]]:
    return lambda sets, made: ["--manifest", sets / name, *(["--units", made / units] if units else [])]


def _part(name: str, part: str, units: str = "") -> Callable[[Path, Path], list[object]]:
    """Training, or the twentieth that is held out."""
    whole = _whole(name, units)
    return lambda sets, made: [*whole(sets, made), "--part", part, "--hold-out", 0.05, "--hold-out-by", "row"]


BUILDS = [  # dataset, task, what it is made of. asr and tts are watched on test sentences; nothing is chosen by them
    ("asr/train", "asr", _whole("train", "train")), ("asr/valid", "asr", _whole("test", "test")),
    ("tts/train", "tts", _whole("own-train", "own-train")), ("tts/valid", "tts", _whole("own-test", "own-test")),
    ("audio-lm/train", "audio-lm", _whole("train", "train")),
    ("text-lm/train", "text-lm", _part("texts", "train")), ("text-lm/valid", "text-lm", _part("texts", "valid")),
    ("speech-instruct/train", "speech-instruct", _part("spoken", "train", "train")),
    ("speech-instruct/valid", "speech-instruct", _part("spoken", "valid", "train")),
    ("text-instruct/train", "text-instruct", _whole("written")),
]  # fmt: skip


def train(steps: Steps, out: Path, scale: Scale) -> None:
    """A base model from Hugging Face, phase 1, phase 2."""
    tokenizer, hf, base = out / "tokenizer", out / "hf", out / "base"
    steps.command("base", "examples/quickstart/base.py", "--tokenizer", tokenizer, "--out", hf, makes=hf)
    groups = ["--groups", "text: 0-3", "audio: 4-7", "--token-map", tokenizer / "token_map.json"]
    steps.command("import", CONVERT, "import", "--source", hf, *groups, "--out", base, makes=base)
    steps.own("recipes", {"steps": scale.steps}, "a recipe for each phase",
              lambda: write_recipes(out, scale.steps, RECIPE, RANKS), out / "phase2.toml")  # fmt: skip
    for phase in ("phase1", "phase2"):
        leaves = out / "runs" / phase / "checkpoints"
        steps.command(phase, "tools/train.py", "--config", out / f"{phase}.toml", leaves=leaves, ranks=RANKS)


def evaluate(steps: Steps, out: Path, scale: Scale) -> None:
    """On sentences that were never trained on."""
    sets, units = out / "manifests", out / "units"
    model = ["--model", out / "runs" / "phase2", "--tokenizer", out / "tokenizer", "--templates", TEMPLATES]
    heard = [one for kind in ("manifest", "units") for one in (f"--{kind}", *(
        (sets if kind == "manifest" else units) / name for name in ("test", "unseen", "shuffled")))]  # fmt: skip
    asked = ["--questions", out / "corpus" / "questions.jsonl", "--tsc", out / "corpus" / "stories"]
    asked += ["--codec", out / "codec", "--dataset", out / "sets" / "text-lm" / "valid", "--max-new-tokens", 24]
    steps.command("evaluate", EVALUATE, "asr", "qa-s2t", "tsc", "nll", *model, *heard, *asked, "--batch-size", 32,
                  "--out", out / "evaluation" / "heard")  # fmt: skip
    spoken = ["--manifest", sets / "own-test", "--units", units / "own-test", "--limit", scale.spoken]
    spoken += ["--vocoder", out / "voice"]
    spoken += ["--judge", "pocketsphinx", "--judge-hears", "words", "--max-new-tokens", 160, "--keep-audio"]
    steps.command("evaluate-tts", EVALUATE, "tts", *model, *spoken, "--out", out / "evaluation" / "spoken",
                  ranks=RANKS)  # fmt: skip


def use(steps: Steps, out: Path) -> None:
    """Export, and ask the exported model."""
    export = out / "export"
    steps.command("export", CONVERT, "export", "--source", out / "runs" / "phase2", "--tokenizer", out / "tokenizer",
                  "--out", export, makes=export)  # fmt: skip
    sound = next(iter(sorted((out / "corpus" / "test").glob("*.wav"))))
    common = ["--model", export, "--templates", TEMPLATES, "--max-new-tokens", 24]
    heard = ["--codec", out / "codec", "--audio", sound, "--task", "asr"]
    steps.command("listen", "tools/generate.py", *common, *heard)
    ours = ["--model", out / "runs" / "phase2", "--tokenizer", out / "tokenizer", *common[2:]]
    routing = out / "routing.json"
    steps.command("routing", "tools/generate.py", *ours, *heard, "--routing", routing, leaves=routing)
    sounds = [f"{label}={path}" for label, path in players(out).items()]
    runs = [out / "runs" / phase for phase in ("phase1", "phase2")]
    beside = ["--evaluation", out / "evaluation", "--sound", *sounds, "--routing", routing]
    beside += ["--ablation", ABLATION] if ABLATION.exists() else []
    steps.command("report", "tools/report.py", *runs, *beside, "--out", out / "report.html")


if __name__ == "__main__":
    run_command(main)
