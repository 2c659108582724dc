"""docs/convert.md is so: its commands run as written, one after another, on a small model in the place of the large."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_most.convert import ExportOptions, ImportOptions, Upcycling, open_ours, run_convert_ckpt
from megatron_most.convert.commands import Import, Reading, Reshard, Verify
from tests.convert.most_twins import apart
from tests.data_files import make_tokenizer
from tests.hf_models import deepseek

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
TOOL = ".venv/bin/python tools/convert_ckpt.py "


def guide_commands() -> list[list[str]]:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
    assert all(line.startswith(TOOL) for line in lines)
    return [shlex.split(line.removeprefix(TOOL)) for line in lines]


def test_the_commands_of_the_guide_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tmp_path / "models" / "DeepSeek-V2-Lite"
    tokens = make_tokenizer(hf)
    small = {"n_routed_experts": 64, "num_experts_per_tok": 6, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    deepseek(vocab_size=tokens.vocab_size, **small).save_pretrained(hf)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "sample.txt").write_text("a number of words that say nothing of much interest\n" * 40)
    monkeypatch.chdir(tmp_path)
    commands = guide_commands()

    def body() -> None:
        for words in commands:
            run_convert_ckpt(words)

    apart(body)
    made = {f"{folder}/{path.name}" for folder in ("checkpoints", "exports") for path in Path(folder).iterdir()}
    named = {words[words.index("--out") + 1] for words in commands if "--out" in words}
    assert made == named and {words[0] for words in commands} == {"import", "export", "reshard", "inspect", "verify"}
    constants = {name: open_ours(f"checkpoints/{name}").source.get("constants") for name in ("most", "own", "ones")}
    assert constants["ones"] is None and constants["own"]["measured_on"] == "sample.txt"
    assert constants["most"]["measured_on"] == "a page of ours" and constants["most"]["tokens"]["text"] == 512


def test_every_option_that_the_guide_names_exists() -> None:
    kinds = (ImportOptions, ExportOptions, Import, Reading, Reshard, Verify)
    known = {field.name.replace("_", "-") for kind in kinds for field in fields(kind)}
    known |= {f"no-{name}" for name in known} | {"source", "path", "help", "layout.expert", "partition.strategy"}
    known |= {f"card.{name}" for name in ("licence", "base-model", "languages")}
    known |= {f"upcycle.{field.name.replace('_', '-')}" for field in fields(Upcycling)}
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z.-]*[a-z])", GUIDE))
    assert named <= known and len(named) > 15
