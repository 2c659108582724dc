"""The rules of the house, read from the syntax trees: who may import whom, and which words stand where.

Each rule takes one source file and yields (line, complaint). Every rule is tried on each file of the tree, and on
snippets that break it: a rule that cannot fail is no test. Imports inside functions and under TYPE_CHECKING count like
any other, so a late import hides nothing; comments and docstrings never count. No torch is imported here.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "megatron_most"
FLOORS = {
    "vocab": 0, "errors": 0,
    "config": 1, "runtime": 1, "kernels": 1,
    "upstream": 2, "parallel": 2,
    "data": 3, "speech": 3,
    "moe": 4,
    "model": 5, "checkpoint": 5,
    "engine": 6,
    "convert": 7, "generate": 7, "score": 7,
    "converse": 8,
    "train": 9, "evaluate": 9, "synthesize": 9, "serve": 9, "plan": 9, "report": 9, "jobs": 9, "vocode": 9,
}  # fmt: skip
NEIGHBOURS = {("data", "speech"), ("vocab", "errors"), ("kernels", "runtime")}  # the only imports along a floor
NEIGHBOURS |= {(None, "upstream")}  # the package itself, which is run before any room can import Core
PRODUCT = (PACKAGE, "examples", "tools", "bench", "launch")
UPSTREAM = ("megatron", "deepspeed", "transformers")  # whose private names stay in upstream/
DEVICE_FILES = (f"{PACKAGE}/runtime/device.py", f"{PACKAGE}/upstream/megatron_cpu.py")
DEVICE_NAMES = {"cuda", "nccl", "gloo", "is_cuda", "is_nccl_available", "is_gloo_available"}
DEVICE_STRING = re.compile(r"(\w+:)?(cuda|nccl|gloo)([:,].*)?")
TORCHLESS = ("vocab", "errors", "config")
WITH_TORCH = ("torch", *UPSTREAM, "lhotse", "safetensors")
ORACLE_IMPORTS = {"torch", "math", "itertools", "dataclasses", "__future__"}
UNSAFE = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load"}
UNSAFE |= {f"{m}.{f}" for m in ("pickle", "_pickle", "dill", "cloudpickle", "marshal") for f in ("load", "loads")}
UNSAFE |= {"pickle.Unpickler", "pickle._Unpickler", "shelve.open"}
# Places of one machine or one index. In pieces, so that this file passes.
FOLDERS = "|".join(("wor" + "k", "roo" + "t", "tm" + "p/w", "op" + "t/pypi", "op" + "t/wheels"))
HOSTS = "|".join((r"py" + r"pi\.org", "python" + "hosted", r"download\.py" + r"torch\.org"))
PLACES = re.compile(rf"(?<![\w.~}})/-])/(?:{FOLDERS})\b|{HOSTS}")

Complaints = Iterator[tuple[int, str]]


class Source:
    """One python file: its path from the root, its tree, and what its names stand for."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        parts = path.removesuffix(".py").split("/")
        self.package = parts[:-1]
        self.in_product = parts[0] in PRODUCT
        self.room = parts[1] if parts[0] == PACKAGE and parts[1] != "__init__" else None

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def imports(self) -> list[tuple[int, str, str]]:
        """(line, full dotted name, the name it is bound to), relative imports resolved, import_module("…") included."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for name in node.names:
                    found.append((node.lineno, name.name, name.asname or name.name.split(".")[0]))
            elif isinstance(node, ast.ImportFrom):
                above = self.package[: len(self.package) - node.level + 1] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                for name in node.names:
                    found.append((node.lineno, f"{module}.{name.name}", name.asname or name.name))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                if node.args and isinstance(node.args[0], ast.Constant):
                    found.append((node.lineno, str(node.args[0].value), ""))
        return found

    @cached_property
    def aliases(self) -> dict[str, str]:
        return {bound: bound if full.startswith(bound + ".") else full for _, full, bound in self.imports}

    def dotted(self, node: ast.AST) -> str:
        """The full name of `a.b.c` or `a` with imports undone: np.load -> numpy.load. "" for anything else."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (base := self.dotted(node.value)):
            return f"{base}.{node.attr}"
        return ""

    @cached_property
    def attributes(self) -> list[tuple[int, str]]:
        return [(node.lineno, self.dotted(node)) for node in self.nodes if isinstance(node, ast.Attribute)]

    @cached_property
    def names(self) -> list[tuple[int, str]]:
        """Every imported or accessed full dotted name."""
        return [(line, full) for line, full, _ in self.imports] + self.attributes


def room_of(full: str) -> str | None:
    parts = full.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 and not parts[1].startswith("__") else None


def private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def imports_go_down(source: Source) -> Complaints:
    if not source.path.startswith(PACKAGE + "/"):
        return
    here, floor = source.room, FLOORS.get(source.room or "", -1)
    if here is not None and here not in FLOORS:
        yield 1, f"{here} is not a room of the house"
    for line, full, _ in source.imports:
        there = room_of(full)
        if there is None or there == here or (here, there) in NEIGHBOURS:
            continue
        if there not in FLOORS:
            yield line, f"{there} is not a room of the house"
        elif FLOORS[there] >= floor:
            yield line, f"{here} (floor {floor}) imports {there} (floor {FLOORS[there]}): imports go down only"


def low_rooms_do_without_torch(source: Source) -> Complaints:
    for line, full, _ in source.imports:
        if source.room in TORCHLESS and full.split(".")[0] in WITH_TORCH:
            yield line, f"{source.room} imports {full}: it must load without torch"


def device_words_stay_in_their_files(source: Source) -> Complaints:
    if not source.in_product or source.path in DEVICE_FILES:
        return
    prose = {id(node.value) for node in source.nodes if isinstance(node, ast.Expr)}
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr in DEVICE_NAMES:
            yield node.lineno, f"device word .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            if DEVICE_STRING.fullmatch(node.value.strip()):
                yield node.lineno, f"device word {node.value!r}"
    for line, full, _ in source.imports:
        if DEVICE_NAMES & set(full.split(".")):
            yield line, f"device word in import of {full}"


def versions_are_checked_upstream(source: Source) -> Complaints:
    if not source.in_product or source.room == "upstream":
        return
    for line, full in source.names:
        if full.startswith(("packaging", "importlib.metadata", "importlib_metadata", "pkg_resources")):
            yield line, f"{full}: version checks belong in upstream/"
    for node in source.nodes:  # to record a __version__ is fine; to compare one or take it apart is a check
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Attribute | ast.Subscript):
            parts = [node.value]
        else:
            continue
        if any(source.dotted(part).endswith("__version__") for part in parts):
            yield node.lineno, "a check of __version__ belongs in upstream/"


def private_names_stay_home(source: Source) -> Complaints:
    if not source.in_product:
        return
    for line, full in source.names:
        root, *rest = full.split(".")
        foreign = root in UPSTREAM and source.room != "upstream" or room_of(full) not in (None, source.room)
        if foreign and any(private(part) for part in rest):
            yield line, f"{full} is private to another"


def nothing_loads_code(source: Source) -> Complaints:
    if not source.in_product:
        return
    for line, full, _ in source.imports:
        if full in UNSAFE | {"torch.load"}:
            yield line, f"{full}: import its module, so that calls show"
    for node in source.nodes:
        if not isinstance(node, ast.Call):
            continue
        options = {word.arg: getattr(word.value, "value", word.value) for word in node.keywords}
        if (called := source.dotted(node.func)) in UNSAFE:
            yield node.lineno, f"{called}() runs what it reads"
        if called == "torch.load" and options.get("weights_only") is not True:
            yield node.lineno, "torch.load needs weights_only=True"
        for option in ("shell", "trust_remote_code", "allow_pickle"):
            if options.get(option, False) is not False:
                yield node.lineno, f"{option} must stay False"


def oracles_import_torch_only(source: Source) -> Complaints:
    if not source.path.startswith("tests/oracles/") or Path(source.path).name.startswith("test_"):
        return
    for line, full, _ in source.imports:
        if full.split(".")[0] not in ORACLE_IMPORTS:
            yield line, f"an oracle imports {full}"


def files_stay_short(source: Source) -> Complaints:
    length = source.text.count("\n")
    if source.path.startswith(PACKAGE + "/") and length > 400:
        yield 400, f"{length} lines; a file has at most 400"


def no_place_of_one_machine(source: Source) -> Complaints:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := PLACES.search(line):
            yield number, f"names a place that only one machine has: {found[0]}"


RULES: list[Callable[[Source], Complaints]] = [
    imports_go_down, low_rooms_do_without_torch, device_words_stay_in_their_files, versions_are_checked_upstream,
    private_names_stay_home, nothing_loads_code, oracles_import_torch_only, files_stay_short, no_place_of_one_machine,
]  # fmt: skip

BREACHES = [
    (imports_go_down, "megatron_most/moe/router.py", "def f():\n    from megatron_most.engine import step"),
    (imports_go_down, "megatron_most/moe/router.py", "if TYPE_CHECKING:\n    from ..model import gpt"),
    (imports_go_down, "megatron_most/moe/__init__.py", "from ..train import loop"),
    (imports_go_down, "megatron_most/speech/files.py", "import megatron_most.data.pack"),
    (imports_go_down, "megatron_most/parallel/mpu.py", "from megatron_most import upstream"),
    (imports_go_down, "megatron_most/config/moe.py", 'importlib.import_module("megatron_most.moe")'),
    (imports_go_down, "megatron_most/errors.py", "import megatron_most.vocab"),
    (imports_go_down, "megatron_most/__init__.py", "from .errors import MostError"),
    (imports_go_down, "megatron_most/train/loop.py", "from megatron_most.utils import x"),
    (imports_go_down, "megatron_most/utils/x.py", ""),
    (low_rooms_do_without_torch, "megatron_most/config/moe.py", "def f():\n    import torch.nn"),
    (low_rooms_do_without_torch, "megatron_most/vocab/map.py", "from transformers import AutoTokenizer"),
    (device_words_stay_in_their_files, "tools/train.py", "torch.cuda.synchronize()"),
    (device_words_stay_in_their_files, "megatron_most/moe/router.py", "x = x.cuda(0)"),
    (device_words_stay_in_their_files, "bench/gate.py", 'x.to("cuda:0")'),
    (device_words_stay_in_their_files, "bench/gate.py", 'x.to(f"cuda:{rank}")'),
    (device_words_stay_in_their_files, "examples/a/demo.py", 'init("cpu:gloo,cuda:nccl")'),
    (device_words_stay_in_their_files, "megatron_most/parallel/groups.py", 'init(backend="nccl")'),
    (device_words_stay_in_their_files, "megatron_most/parallel/groups.py", "from torch.cuda import Stream"),
    (versions_are_checked_upstream, "megatron_most/moe/router.py", 'new = torch.__version__ >= "2.9"'),
    (versions_are_checked_upstream, "megatron_most/moe/router.py", 'v = core.__version__.split(".")'),
    (versions_are_checked_upstream, "tools/train.py", "from importlib.metadata import version"),
    (versions_are_checked_upstream, "megatron_most/engine/deepspeed.py", "from packaging.version import parse"),
    (private_names_stay_home, "megatron_most/moe/router.py", "from megatron.core.utils import _hidden"),
    (private_names_stay_home, "megatron_most/model/gpt.py", "from megatron.core import parallel_state as p\np._GROUP"),
    (private_names_stay_home, "megatron_most/engine/step.py", "import deepspeed\ndeepspeed._thing.x()"),
    (private_names_stay_home, "megatron_most/engine/step.py", "from megatron_most.moe.router import _pick"),
    (private_names_stay_home, "tools/train.py", "from megatron_most import train\ntrain._loop()"),
    (nothing_loads_code, "megatron_most/checkpoint/read.py", "import pickle as p\np.load(f)"),
    (nothing_loads_code, "megatron_most/checkpoint/read.py", "from pickle import loads"),
    (nothing_loads_code, "megatron_most/checkpoint/read.py", "torch.load(f)"),
    (nothing_loads_code, "megatron_most/speech/vocoder.py", "import torch as t\nt.load(f, weights_only=False)"),
    (nothing_loads_code, "tools/train.py", 'eval("1")'),
    (nothing_loads_code, "tools/train.py", "subprocess.run(command, shell=True)"),
    (nothing_loads_code, "megatron_most/convert/hf.py", "AutoConfig.from_pretrained(x, trust_remote_code=flag)"),
    (nothing_loads_code, "megatron_most/data/read.py", "import yaml\nyaml.load(f)"),
    (oracles_import_torch_only, "tests/oracles/gate.py", "def f():\n    from megatron_most.moe import router"),
    (oracles_import_torch_only, "tests/oracles/gate.py", "from . import other"),
    (files_stay_short, "megatron_most/moe/router.py", "x = 1\n" * 401),
    (no_place_of_one_machine, "docs/start.md", "cd /wor" + "k/main"),
    (no_place_of_one_machine, "README.md", "see https://py" + "pi.org/p"),
]
INNOCENT = [
    ("megatron_most/data/pack.py", "from megatron_most.speech import a\nfrom .read import _row\nfrom .. import errors"),
    ("megatron_most/report/page.py", "from megatron_most import __version__\nprint(__version__)"),
    ("megatron_most/upstream/core.py", "from megatron.core.x import _y\nold = core.__version__ < '0.17'"),
    ("megatron_most/runtime/device.py", 'device = "cuda" if torch.cuda.is_available() else "cpu"'),
    ("megatron_most/runtime/launch.py", '"""cuda"""\nx = "runs on cuda"  # cuda\ntorch.load(f, weights_only=True)'),
    ("megatron_most/model/gpt.py", "class A(GPTModel):\n    def _preprocess(self):\n        super()._preprocess()"),
    ("tools/evaluate.py", "model.eval()\nre.compile(x)\nsubprocess.run(command, shell=False)"),
    ("tests/test_read.py", "import pickle\npickle.loads(x)\ntorch.cuda.x()\nfrom megatron_most.moe.x import _y"),
    ("tests/oracles/gate.py", "from __future__ import annotations\nimport math\nimport torch.nn.functional as F"),
]


def project_files() -> list[Path]:
    """What git holds or would take; without git, everything but the environment and the caches."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        left_out = re.compile(r"\.venv|\.git|runs|build|\..*_cache|.*\.egg-info")
        tops = [top for top in ROOT.iterdir() if not left_out.fullmatch(top.name)]
        files = [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top])]
    return sorted({path for path in files if path.is_file() and path.suffix != ".pyc"})


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    found = []
    for path in project_files():
        try:
            found.append(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:  # not text
            continue
    assert any(source.path == "megatron_most/__init__.py" for source in found), "the walk does not see the package"
    return found


def complaints(rule: Callable[[Source], Complaints], source: Source) -> list[str]:
    if not source.path.endswith(".py") and rule is not no_place_of_one_machine:
        return []
    return [f"{source.path}:{line}: {text}" for line, text in sorted(set(rule(source)))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Source], Complaints], sources: list[Source]) -> None:
    found = [text for source in sources for text in complaints(rule, source)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "text"), BREACHES, ids=[f"{r.__name__}-{t[:60]!r}" for r, _, t in BREACHES])
def test_a_breach_is_seen(rule: Callable[[Source], Complaints], path: str, text: str) -> None:
    assert complaints(rule, Source(path, text))


@pytest.mark.parametrize(("path", "text"), INNOCENT, ids=[path for path, _ in INNOCENT])
def test_what_is_allowed_passes_every_rule(path: str, text: str) -> None:
    assert not [found for rule in RULES for found in complaints(rule, Source(path, text))]


def test_every_rule_has_a_breach_that_tries_it() -> None:
    assert {rule for rule, _, _ in BREACHES} == set(RULES)


def test_every_folder_of_the_package_is_a_known_room() -> None:
    folders = {p.name for p in (ROOT / PACKAGE).iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= {*FLOORS, "recipes"}
