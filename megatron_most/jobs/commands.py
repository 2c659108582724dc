"""What the batch scripts of launch/ ask, each a word of tools/job.py; the scripts start and signal, this decides.

`begin` opens an attempt, `facts` runs on every node and `preflight` judges what they said, `links` runs on every rank,
`end` closes the attempt and says what follows. Answers for a script are words on stdout, one a line; what is for people
goes to stderr. Words of a recipe come after `--`, as tools/train.py takes them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_most.config import (
    Facts,
    Plan,
    RunConfig,
    build,
    count_parameters,
    from_command_line,
    require_same_run,
    run_folder,
)
from megatron_most.errors import ConfigError, DataError, MostError
from megatron_most.jobs import book
from megatron_most.jobs.facts import as_lines, from_lines, node_facts, packages
from megatron_most.jobs.judge import Demands, Verdict, judge, judge_links
from megatron_most.jobs.links import measure_links
from megatron_most.jobs.prebuild import prebuild
from megatron_most.jobs.status import tell
from megatron_most.jobs.verdict import MOST_FRUITLESS, Outcome, decide
from megatron_most.runtime import expand_nodelist, find_device, find_launch, process_group, sha256_file

_BYTES_A_NUMBER = 12  # weight and two moments in float32
_CODE = re.compile(r"(\d+)\.(\d+)")  # what rank.sh leaves: RANK.CODE
_TURNS = 3  # how often a job may leave bad nodes behind


def run_job(arguments: Sequence[str] | None = None) -> int:
    """The command line of tools/job.py."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    recipe = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(prog="job.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (about, act, options) in _COMMANDS.items():
        command = commands.add_parser(name, help=about, allow_abbrev=False)
        for option, settings in options.items():
            command.add_argument(option, **settings)
        command.set_defaults(act=act, recipe=recipe)
    given = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    return given.act(given) or 0


def _config(options: argparse.Namespace) -> tuple[RunConfig, Path]:
    if importlib.util.find_spec("tyro") is None:  # it reads command lines; without it no more is there either
        raise ConfigError("python", sys.executable, "our packages are not installed there", "set MOST_PYTHON")
    config = from_command_line(options.recipe, prog="train.py")
    return config, run_folder(config)


def _folder(options: argparse.Namespace) -> int:
    print(_config(options)[1].absolute())
    return 0


def _show_plan(options: argparse.Namespace) -> int:
    """What `begin` would refuse, without beginning."""
    config, run = _config(options)
    plan = _plan(config, options.ranks)
    _require_same_run(run, config)
    print(f"{run.absolute()}: {options.ranks} ranks as {plan.layout}, data parallelism {plan.layout.data}")
    return 0


def _begin(options: argparse.Namespace) -> int:
    """Prints the attempt's folder; code 3 where the run is done, 2 where it may not begin."""
    config, run = _config(options)
    _plan(config, options.ranks)  # a layout that does not fit is refused before any rank costs GPU time
    _require_same_run(run, config)
    if book.is_done(run, config.train.steps):
        print(f"{run}: done before, all {config.train.steps} steps; see {run / book.DONE}", file=sys.stderr)
        return 3
    attempts = book.read_book(run)
    last = attempts[-1] if attempts else None
    if last and last.is_going_on and last.begin["job"] in options.running.split() and last.begin["job"] != options.job:
        does = "trains here" if last.end is None else "is in the queue to go on here"
        raise MostError(f"{run}: job {last.begin['job']} {does}; wait for it, or scancel it")
    step = book.newest_step(run)
    fruitless = book.count_fruitless(attempts, options.job, step)
    if fruitless >= MOST_FRUITLESS:
        raise MostError(
            f"{run}: {fruitless} attempts of job {options.job} in a row have saved nothing beyond step {step}, so no "
            f"other begins; look at {attempts[-1].folder / 'log'}"
        )
    if book.clear_stop(run):
        raise MostError(f"{run / book.STOP}: there, so the run would stop after one step; remove it first")
    facts = {"job": options.job, "restart": options.restart, "nodes": options.nodes, "recipe": options.recipe}
    attempt = book.begin_attempt(run, facts)
    book.withdraw_done(run)
    print(attempt.folder.absolute())
    return 0


def _require_same_run(run: Path, config: RunConfig) -> None:
    """As every rank asks it later; here also of a run that is done. What is damaged is theirs, who pass it over."""
    step = book.newest_step(run)
    stored = run / "checkpoints" / f"step-{step:08d}" / "resolved.toml"
    try:
        is_whole = sha256_file(stored) in (stored.parent / "manifest.json").read_text()
    except (OSError, ValueError, DataError):
        return
    if is_whole:
        require_same_run(stored, config, step)


def _plan(config: RunConfig, ranks: int) -> Plan:
    """Every check of the configuration, without the import of torch."""
    versions = packages(sys.path)
    if "megatron_core" not in versions:
        raise ConfigError("python", sys.executable, "megatron-core is not installed there", "set MOST_PYTHON")
    major, minor = versions["megatron_core"].split(".")[:2]
    device: Any = "cpu" if config.device == "cpu" else "gpu"
    return build(config, Facts(world_size=ranks, device=device, core_version=(int(major), int(minor))))


def _facts(options: argparse.Namespace) -> int:
    """Prints what facts.from_lines reads."""
    config, run = _config(options)
    attempt = Path(options.attempt)
    asked: dict[str, Any] = {"step": options.step, "port": options.port, "nvidia_smi": options.nvidia_smi}
    facts = node_facts(config, run, attempt, **asked)
    sys.stdout.write("".join(f"{line}\n" for line in as_lines(facts)))
    return 0


def _preflight(options: argparse.Namespace) -> int:
    """Prints `ok PORT`, or `leave NODE,NODE`; code 2 where another node would not help."""
    config, run = _config(options)
    attempt = _attempt(run, Path(options.attempt))
    nodes = expand_nodelist(options.nodes)
    own = 2 * _BYTES_A_NUMBER * count_parameters(_plan(config, options.ranks)).total  # one comes before another goes
    demands = Demands(
        nodes=nodes,
        gpus=options.gpus,
        free_bytes=int(own if options.free_gb is None else options.free_gb * 1e9),
        skew_s=options.skew,
        between=(options.since, time.time()),
    )
    verdict = judge(from_lines(Path(options.found).read_text(errors="replace").splitlines()), demands)
    return _tell_verdict(run, attempt, nodes, verdict, f"ok {verdict.port}")


def _links(options: argparse.Namespace) -> int:
    """Prints a JSON line for each pair that this rank is the first of."""
    config, _ = _config(options)
    launch = find_launch()
    nodes = expand_nodelist(os.environ["SLURM_STEP_NODELIST"])
    with process_group(launch, find_device(config.device, launch.local_rank), timeout_s=options.timeout) as ranks:
        for rate in measure_links(ranks, nodes, options.megabytes):
            sys.stdout.write(json.dumps(rate) + "\n")
            sys.stdout.flush()
    return 0


def _judge_links(options: argparse.Namespace) -> int:
    """Prints `ok`, or `leave NODE,NODE`, as preflight does."""
    config, run = _config(options)
    attempt = _attempt(run, Path(options.attempt))
    nodes, rates = expand_nodelist(options.nodes), _said(Path(options.found))
    for rate in sorted(rates, key=lambda rate: rate["gb_per_s"])[:4]:
        print(f"slowest links: {' - '.join(rate['nodes'])}: {rate['gb_per_s']:.3g} GB/s a rank", file=sys.stderr)
    return _tell_verdict(run, attempt, nodes, judge_links(rates, options.floor, nodes), "ok")


def _tell_verdict(run: Path, attempt: book.Attempt, nodes: list[str], verdict: Verdict, fine: str) -> int:
    if not verdict.faults:
        print(fine)
        return 0
    for node, faults in verdict.faults.items():
        for fault in faults:
            print(f"preflight: {node}: {fault}", file=sys.stderr)
    told = "; ".join(f"{node}: {faults[0]}" for node, faults in verdict.faults.items())
    book.require_newest(run, attempt)
    turns = 1 + book.count_turned_back(book.read_book(run), attempt.begin["job"], attempt.begin["step"])
    if set(verdict.bad) >= set(nodes):
        why = "no node is fit, so others would hardly be"
    elif turns > _TURNS:
        why = f"this job has left bad nodes {_TURNS} times since it last got on"
    else:
        book.end_attempt(attempt, {"action": "leave", "code": 75, "reason": told, "step": attempt.begin["step"]})
        print(f"leave {','.join(verdict.bad)}")
        return 0
    book.end_attempt(attempt, {"action": "stop", "code": 2, "reason": told, "step": attempt.begin["step"]})
    raise MostError(f"preflight: {why}; {told}")


def _end(options: argparse.Namespace) -> int:
    """Prints `done`, `requeue` or `stop`, then the code to leave with; code 2 where a newer attempt owns the run."""
    run, attempt = _run_of(Path(options.attempt))
    book.require_newest(run, attempt)
    told = [name.groups() for path in (attempt.folder / "codes").iterdir() if (name := _CODE.fullmatch(path.name))]
    outcome = Outcome(
        codes={int(rank): int(code) for rank, code in told},
        srun=options.srun,
        asked=options.asked,
        cancelled=options.cancelled,
        lost=options.lost,
        stop_file=book.clear_stop(run),
    )
    step = book.newest_step(run)
    fruitless = book.count_fruitless(book.read_book(run), attempt.begin["job"], step)
    decision = decide(outcome, attempt.begin["step"], step, fruitless)
    if decision.action == "done":
        book.say_done(run, attempt)
    words = {"action": decision.action, "code": decision.code, "reason": decision.reason, "step": step}
    book.end_attempt(attempt, words)
    print(f"attempt {attempt.number}: {decision.reason}", file=sys.stderr)
    print(decision.action, decision.code)
    return 0


def _ask(options: argparse.Namespace) -> int:
    run, attempt = _run_of(Path(options.attempt))
    book.ask_to_stop(run, attempt, "the time limit is near")
    return 0


def _status(options: argparse.Namespace) -> int:
    print(tell(Path(options.run), options.queue))
    return 0


def _prebuild(options: argparse.Namespace) -> int:
    """Compile what ranks would; what was made is told, and where."""
    config, _ = _config(options)
    since = time.monotonic()
    for name, made in prebuild(config).items():
        print(f"{name}={os.environ[name]}: {len(made)} files made" + (f", {made[0].name} ..." if made else ""))
    print(f"{config.name}: all there for {config.device} after {time.monotonic() - since:.0f} s")
    return 0


def _run_of(folder: Path) -> tuple[Path, book.Attempt]:
    run = folder.parent.parent
    return run, _attempt(run, folder)


def _attempt(run: Path, folder: Path) -> book.Attempt:
    found = [attempt for attempt in book.read_book(run) if attempt.folder.name == folder.name]
    if not found:
        raise MostError(f"{folder}: no attempt of {run}")
    return found[0]


def _said(path: Path) -> list[dict[str, Any]]:
    """What ranks have measured, of a file's lines; others are words of Slurm or of a node that failed."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            found.append({**said, "nodes": [str(node) for node in said["nodes"]], "gb_per_s": float(said["gb_per_s"])})
    return found


def _number(default: float | None = None, kind: type = int) -> dict[str, Any]:
    return {"type": kind, "default": default, "required": default is None}


def _text(default: str | None) -> dict[str, Any]:
    """What squeue says: `-` = read it from stdin. The queue of a large cluster is too long for a command line."""
    return {"type": lambda text: sys.stdin.read() if text == "-" else text, "default": default}


_WORD: dict[str, Any] = {"required": True}
_FLAG: dict[str, Any] = {"action": "store_true"}
_COMMANDS: dict[str, tuple[str, Any, dict[str, dict[str, Any]]]] = {
    "folder": ("the run's folder", _folder, {}),
    "plan": ("check a recipe against a number of ranks", _show_plan, {"--ranks": _number()}),
    "begin": ("open an attempt", _begin, {
        "--job": _WORD, "--restart": _number(0), "--nodes": _WORD, "--ranks": _number(), "--running": _text(""),
    }),
    "facts": ("what this node sees of itself", _facts, {
        "--attempt": _WORD, "--step": _number(), "--port": _number(), "--nvidia-smi": {"default": ""},
    }),
    "preflight": ("judge what all nodes see", _preflight, {
        "--attempt": _WORD, "--found": _WORD, "--nodes": _WORD, "--ranks": _number(), "--gpus": _number(0),
        "--since": _number(kind=float), "--skew": _number(5.0, float),
        "--free-gb": {"type": float, "default": None},
    }),
    "links": ("measure all-reduce between neighbours", _links, {
        "--megabytes": _number(64.0, float), "--timeout": _number(300.0, float),
    }),
    "judge-links": ("judge what ranks have measured", _judge_links, {
        "--attempt": _WORD, "--found": _WORD, "--nodes": _WORD, "--floor": _number(0.0, float),
    }),
    "ask": ("ask the run to save and stop", _ask, {"--attempt": _WORD}),
    "end": ("close an attempt and say what follows", _end, {
        "--attempt": _WORD, "--srun": _number(), "--asked": _FLAG, "--cancelled": _FLAG, "--lost": _FLAG,
    }),
    "prebuild": ("compile once what ranks would", _prebuild, {}),
    "status": ("one look at a run", _status, {"run": {}, "--queue": _text(None)}),
}  # fmt: skip
