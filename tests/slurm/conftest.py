"""One Slurm and one blend for all tests of this folder; a run under test, and its twin that one process has trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_most.data.build import build
from megatron_most.data.build_inputs import BuildInputs, BuildOptions
from megatron_most.data.manifest import open_manifest
from megatron_most.data.manifest_writer import ManifestWriter
from megatron_most.data.rows import ChatRow, Turn
from megatron_most.data.templates import load_templates
from megatron_most.data.tokenizer import load_tokenizer
from megatron_most.vocab import TokenMap
from tests.data_files import text
from tests.phases import make_blend
from tests.slurm.jobs import Bench
from tests.slurm.sandbox import Sandbox, why_not


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    if reason := why_not():
        pytest.skip(reason)
    with Sandbox(tmp_path_factory.mktemp("slurm") / "box", nodes=3) as box:
        yield box


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets where the launchers look for them: one folder a task."""
    root = make_blend(tmp_path_factory.mktemp("data"))
    (root / "text-lm").rename(root / "texts-whole")
    (root / "text-lm").mkdir()
    (root / "texts-whole").rename(root / "text-lm" / "made-up")
    tools: dict[str, Any] = dict(tokenizer=load_tokenizer(root / "tokenizer"), templates=load_templates("chat"))
    tokens = TokenMap.load(root / "tokenizer" / "token_map.json")
    for task, parts in (("speech-instruct", (1, 2, 3)), ("text-instruct", ())):
        about: dict[str, Any] = dict(corpus="c", split="train", licence="CC0-1.0", source="made", normalisation="none")
        with ManifestWriter(root / f"{task}-rows", kind="chat", **about) as out:
            for number in range(40):
                user = Turn(role="user", parts=(text(number), *((parts,) if parts else ())))
                answer = Turn(role="assistant", parts=(text(number + 1),))
                out.add_chat(ChatRow(id=f"c-{number}", turns=(user, answer)))
        inputs = BuildInputs(manifests=(open_manifest(root / f"{task}-rows"),), units=(), tokens=tokens, **tools)
        build(inputs, BuildOptions(task=task), root / task / "made-up")  # type: ignore[arg-type]
    return root


@pytest.fixture
def bench(slurm: Sandbox, data: Path, tmp_path: Path) -> Iterator[Bench]:
    """A folder with a space and a quote in its name, and the cluster.env that points there."""
    bench = Bench(slurm, data, tmp_path / "a user's runs", sys.executable)
    try:
        yield bench
    finally:
        bench.close()
