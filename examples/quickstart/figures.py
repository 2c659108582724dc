"""What the demo came to: OUT/summary.json and a table, read from the results that its evaluations left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domain import words

from megatron_most.errors import DataError
from megatron_most.runtime import write_atomically

_WER = {"test": "asr_wer", "unseen": "asr_wer_unseen_voice", "shuffled": "asr_wer_shuffled"}
_HEARD = {
    "generated": "tts_wer",
    "resynthesised": "resynthesis_wer",
    "real": "real_wer",
    "shuffled": "judge_wer_shuffled",
}
_SAID = {
    "asr_wer": "speech to text, sentences never met, voices known: words wrong",
    "asr_wer_unseen_voice": "the same by a voice never heard",
    "asr_wer_shuffled": "the same model on shuffled sound (it must fail)",
    "tts_wer": "text to speech: words wrong as a judge hears it",
    "resynthesis_wer": "the judge on real units spoken again",
    "real_wer": "the judge on the recordings",
    "judge_wer_shuffled": "the judge on shuffled units",
    "qa_exact": "spoken questions answered rightly",
    "choice_accuracy": "right order of spoken words preferred",
    "text_nll": "nats a token of text held out of its task",
}


def finish(out: Path, seconds: Mapping[str, float], scale: str) -> None:
    """Write the summary, print the table."""
    summary = summarise(out, seconds, scale)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    print()
    for name, said in _SAID.items():
        value = summary[name]
        print(f"{value:10.3f}  {said}" if name == "text_nll" else f"{100 * value:8.1f} %  {said}")
    print(
        f"\n{summary['minutes']:.1f} minutes in all steps. Look at {out}/report.html; all figures: {out}/summary.json"
    )


def summarise(out: Path, seconds: Mapping[str, float], scale: str) -> dict[str, Any]:
    """Every figure of the table, and what it rests on."""
    found = {}
    for path in sorted((out / "evaluation").rglob("result.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found[result["task"]] = result
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            remedy = f"remove {path.parent.parent}, and run the same command again"
            raise DataError(f"{path}: no result of an evaluation ({error!r:.100}); {remedy}") from error
    try:
        summary = {name: _rate(found[f"asr/animals/{part}"], "wer") for part, name in _WER.items()}
        sides = found["tts/animals/own-test"]["parts"]["wer"]
        summary |= {name: sides[side]["value"] for side, name in _HEARD.items()}
        summary["qa_exact"] = _rate(found["qa-s2t/questions"], "exact_match")
        summary["choice_accuracy"] = _rate(found["tsc"], "accuracy")
        [nll] = [result for task, result in found.items() if task.startswith("nll")]
        summary["text_nll"] = _rate(nll, "nll")
    except (KeyError, ValueError) as error:
        raise DataError(f"{out}/evaluation: {error} is not there; found {sorted(found)}") from error
    minutes = round(sum(seconds.values()) / 60, 2)
    items = {task: result["items"] for task, result in found.items()}
    return {**summary, "minutes": minutes, "scale": scale, "words": len(words()), "sentences": _sentences(out),
            "items": items, "seconds": dict(seconds)}  # fmt: skip


def players(out: Path) -> dict[str, Path]:
    """What can be heard on the page: the first sentence that was spoken for the judge, and what it heard of it."""
    [folder] = (out / "evaluation" / "spoken" / "audio").iterdir()
    lines = (
        (out / "evaluation" / "spoken" / f"tts-{folder.name}" / "records.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    first = min((json.loads(line) for line in lines), key=lambda record: record["id"])
    name, heard = f"{first['id']}.wav", first["heard"]
    sides = {
        "a recording of the test": ("real", out / "corpus" / "test" / name.rpartition("-")[2]),
        "its units, spoken again": ("resynthesised", folder / "resynthesised" / name),
        "the model says it": ("generated", folder / name),
    }
    said = f"“{first['reference']}”, {{}}; the judge hears “{{}}”"
    return {said.format(what, heard[side] or "nothing"): path for what, (side, path) in sides.items()}


def _rate(result: dict[str, Any], name: str) -> float:
    return float(result["scores"][name]["value"])


def _sentences(out: Path) -> int:
    """Distinct ones that were spoken for training; phrases, single words and questions are not counted."""
    lines = (out / "corpus" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return len({row["text"] for row in rows if row["id"].startswith("train-")})
