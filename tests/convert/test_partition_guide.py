"""docs/partition.md is so: its commands run as written on a small model of as many experts, logits gate included, and
its table is what its numbers say.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from megatron_most.convert import ImportOptions, inspect, open_ours, run_convert_ckpt
from megatron_most.convert.partitioned import FILE, PAGE
from tests.convert.most_twins import apart
from tests.data_files import make_tokenizer
from tests.hf_models import deepseek

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE = (DOCS / "partition.md").read_text(encoding="utf-8")
TOOL = ".venv/bin/python tools/convert_ckpt.py "


def test_the_commands_of_the_guide_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tmp_path / "models" / "DeepSeek-V2-Lite"
    tokens = make_tokenizer(hf)
    small = {"n_routed_experts": 64, "num_experts_per_tok": 6, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    deepseek(vocab_size=tokens.vocab_size, **small).save_pretrained(hf)
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "sample.txt").write_text("a number of words that say nothing of much interest\n" * 40)
    (tmp_path / "corpora" / "transcripts.txt").write_text("well you know i mean it is what it is\n" * 40)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
    assert len(lines) == 3 and all(line.startswith(TOOL) for line in lines)
    apart(lambda: [run_convert_ckpt(shlex.split(line.removeprefix(TOOL))) for line in lines])
    for name, sizes in {"load": (32, 32), "affinity": (40, 24)}.items():
        found = json.loads((tmp_path / "checkpoints" / name / FILE).read_text())
        groups = found["layers"][0]["groups"]
        assert tuple(len(group["experts"]) for group in groups) == sizes
        assert groups[0]["experts"] != list(range(sizes[0])) and 0 < groups[0]["constant"] < 1
        assert (tmp_path / "checkpoints" / name / PAGE).exists()
    told = open_ours(tmp_path / "checkpoints" / "affinity").source["partition"]
    assert told["strategy"] == "affinity"
    assert "layer 1  text: " in inspect(tmp_path / "checkpoints" / "affinity", ImportOptions())


def test_the_table_of_the_guide_is_what_its_numbers_say() -> None:
    rows = json.loads((DOCS / "partition.json").read_text(encoding="utf-8"))
    first = {(row["base"], row["seed"]): row for row in rows if row["strategy"] == "none"}
    lines = re.findall(r"^\| (text[a-z ]*) \| (\w+) \| ([a-z_]+[a-z_, 1]*) \| ([\d.]+) \| (.*) \|$", GUIDE, re.M)
    assert len(lines) == 2 * 5 * 3
    for base, strategy, gate, mass, cells in lines:
        mine = [row for row in rows if (row["base"], row["strategy"], row["gate"]) == (base, strategy, gate)]
        assert mass == f"{sum(row['mass'] for row in mine) / len(mine):.2f}"
        for kind, cell in zip(("text", "audio", "mixed"), cells.split(" | "), strict=True):
            above = [row[kind] - first[row["base"], row["seed"]][kind] for row in mine]
            assert float(cell.split()[0]) == pytest.approx(sum(above) / len(above), abs=6e-4)
