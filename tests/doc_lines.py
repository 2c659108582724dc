"""Every command that a page shows, and who runs it: a line that nobody claims fails tests/test_docs.py.

A claim is (how the line begins, who has it, what of it is made small, why nobody or no more than that). Who: HERE, by
test_docs.py itself; SMALL, by it on small data; READ, by nobody; else "file::test" below tests/, which takes the words
from the page. `small` are options that take the place of their like in the line, or come behind: nothing else is
changed, and paths lead into a folder where small things stand under the names of the page.
Besides, test_docs.py gives every line to its program's own command line (doc_words.py), whoever runs it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("sh", "bash", "shell", "console", "")
HERE, SMALL, READ = "here", "small", "read"
INSTALLS, FETCHES = "installs packages, as root", "downloads"
SERVER = "a language model that is served beside it; the test has a server of its own"
LARGE = "wants the GPUs of a node; its recipe is built for them"
CLUSTER = "no cluster here: sbatch is a program that asks the script for a dry run"


@dataclass(frozen=True)
class Claim:
    begins: str
    by: str = ""
    small: str = ""
    """Options, as smaller() of doc_words.py takes them."""
    why: str = ""

    @property
    def how(self) -> str:
        """as written, in small, read alone, or by nobody."""
        if not self.by:
            return "by nobody"
        return "read alone" if self.by == READ else "in small" if self.small else "as written"


PY, TOOLS, TORCHRUN = ".venv/bin/python ", ".venv/bin/python tools/", ".venv/bin/torchrun "
_TWO = "train/test_two_phases.py::test_the_commands_of_the_readme_run_in_their_order"
_DRILLS, _EXAMPLES, _PAGES = "train/test_drills.py::", "test_examples.py::", "test_doc_pages.py::"
_HPC = "jobs/test_hpc_guide.py::test_the_page_is_gone_through_on_a_login_node_without_a_cluster"
_SYNTHESIS, _VOCODER = (
    _PAGES + "test_dialogues_are_written_spoken_and_compared", _PAGES + "test_voices_are_fitted_trained_and_imported",
)  # fmt: skip
_DATA = _PAGES + "test_corpora_become_datasets_by_every_command_of_the_guide"
_MOST_C = _PAGES + "test_a_model_learns_to_hear_frames_and_is_asked"
_CONVERSE, _ABLATION = (
    "converse/test_converse.py::",
    "train/test_bench_ablation.py::test_it_trains_and_goes_on_and_tells",
)
_DEMO = "test_quickstart.py::test_the_whole_demo_runs_in_small_and_again_does_nothing"
_TINY = (
    "--train.steps 2 --train.warmup-steps 0 --train.global-batch-size 2 --train.micro-batch-size 1 "
    "--telemetry.no-tensorboard"
)
_TWO_STEPS = "--train.steps 2 --train.warmup-steps 0 --train.global-batch-size 4 --train.validate-every 2"
_LAYOUT = "--train.steps 25 --model.num-layers 2"
_UNITS = "--tokens.backbone deepseek --tokens.num-units 500"
_ONE = f"{_TINY.replace('steps 2', 'steps 1')} --train.sequence-length 256 --model.num-layers 2"
_FRAMES = f"--config stage1-most-c-tiny {_UNITS} --model.wave-size 32 {_ONE}"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "README.md": (
        Claim("make demo", _DEMO, "--scale ci"),
        Claim("make test", READ, why="it is this run"),
        Claim(PY + "examples/two_phases", _TWO, "--utterances 60"),
        Claim(TOOLS + "train.py --config runs/two_phases", _TWO, _TWO_STEPS),
        Claim(TOOLS + "report.py runs/two_phases", _TWO),
        Claim("sudo apt", why=INSTALLS),
        Claim(PY + "examples/real_speech",
              "data/test_real_speech.py::test_debians_prompts_become_verified_datasets_in_one_command",
              "--num-units 100 --tasks asr"),
        Claim("D=", SMALL), Claim(TOOLS + "train.py --config most-tiny", SMALL, _TINY),
        Claim(PY + "examples/layouts", HERE, _LAYOUT),
        Claim(TORCHRUN + "--nproc-per-node 2 examples/layouts", HERE, _LAYOUT),
    ),
    "ablation.md": (
        Claim("make ablation", _ABLATION, "--scale ci --seeds 0 --at-once 1"),
        Claim(PY + "bench/ablation.py", _ABLATION,
              '--scale ci --seeds 0 --at-once 1 --only MAMoE "upcycled from dense"'),
    ),
    "augmentation.md": (
        Claim(TOOLS + "prepare_data.py", _PAGES + "test_speech_is_augmented_and_becomes_units_again"),
        Claim(TOOLS + "train.py", _PAGES + "test_speech_is_augmented_and_becomes_units_again",
              f"--config stage2-vanilla-moe-tiny {_UNITS} {_ONE.replace('256', '1024')}"),
    ),
    "config.md": (),
    "convert.md": (Claim(TOOLS, "convert/test_convert_guide.py::test_the_commands_of_the_guide_run_in_their_order"),),
    "data.md": (Claim(TOOLS + "prepare_data.py build", _DATA, "--workers 2"), Claim("", _DATA)),
    "evaluation.md": (
        Claim(TOOLS, "evaluate/test_evaluation_guide.py::test_the_commands_of_the_guide_run_in_their_order"),
        Claim(TORCHRUN, "evaluate/test_evaluation_guide.py::test_the_command_on_several_processes_runs",
              "--max-new-tokens 4"),
    ),
    "examples.md": (
        Claim(PY + "examples/add_a_modality", _EXAMPLES + "test_three_groups_learn_and_stay_apart"),
        Claim(PY + "examples/add_a_backbone", _EXAMPLES + "test_a_family_that_is_added_goes_there_and_back"),
        Claim(PY + "examples/finetune", _EXAMPLES + "test_a_folder_of_recordings_changes_a_model",
              "--steps 3 --batch 1 --templates chat"),
    ),
    "faults.md": (
        Claim(TOOLS + "drills.py --list", _DRILLS + "test_the_command_lists_the_drills_and_refuses_an_unknown_one"),
        Claim(TOOLS + "drills.py", _DRILLS + "test_the_commands_of_the_page_name_drills_and_end_as_they_must",
              why="drills and controls are run by tests of their own; here what ends at once takes their place"),
    ),
    "generation.md": (
        Claim(TOOLS, _CONVERSE + "test_the_commands_of_the_guide_run", "--max-new-tokens 8 --temperature 1"),
        Claim(TORCHRUN, _CONVERSE + "test_the_command_of_two_processes_says_what_one_does", "--max-new-tokens 12"),
    ),
    "hpc.md": (
        Claim("git clone", why=FETCHES), Claim("python3.12 -m venv", why=FETCHES), Claim("env/bin/pip", why=FETCHES),
        Claim("docker build", why=FETCHES), Claim("apptainer build", why=FETCHES),
        Claim("env/bin/hf download", why=FETCHES), Claim("sudo apt", why=INSTALLS),
        Claim("sudo make test-slurm", READ, why="it is the run of tests/slurm"),
        Claim("cp launch/cluster.env.example", _HPC), Claim(". launch/cluster.env", _HPC),
        Claim("bash launch/", _HPC), Claim("MOST_STAGES=", _HPC), Claim("env/bin/python", _HPC),
        Claim("sbatch", _HPC, "--dry-run", CLUSTER),
    ),
    "most_c.md": (
        Claim(TOOLS + "prepare_data.py frames", _MOST_C, "--shard 0/1"), Claim(TOOLS + "prepare_data.py", _MOST_C),
        Claim(TOOLS + "train.py --config stage1-most-c --model.wave-layers", _MOST_C,
              _FRAMES + " --model.wave-heads 2 --model.wave-inner-size 64 --name most-c-layers"),
        Claim(TOOLS + "train.py", _MOST_C, _FRAMES + " --name most-c"),
        Claim(TOOLS + "generate.py", _MOST_C, "--max-new-tokens 4"),
    ),
    "partition.md": (
        Claim(TOOLS, "convert/test_partition_guide.py::test_the_commands_of_the_guide_run_as_written"),
        Claim(PY + "bench/partition.py",
              "convert/test_bench_partition.py::test_it_tells_the_losses_of_every_strategy_under_every_gate",
              '--scale ci --bases "text and speech"'),
    ),
    "performance.md": (
        Claim(PY + "bench/slice.py", "train/test_bench_slice.py::test_a_slice_is_measured",
              "--recipe most-tiny --layers 2 4 --length 64 --rows 2 --steps 2 --ranks 2"),
        Claim(PY + "bench/step.py", "train/test_bench_step.py::test_every_peer_takes_steps_and_has_as_many_weights",
              "--recipe most-tiny --vanilla vanilla-moe-tiny --precision fp32 --length 128 --rounds 2 --json"),
    ),
    "quickstart.md": (Claim("sudo apt", why=INSTALLS), Claim("make demo", _DEMO, "--scale ci")),
    "scaling.md": (
        Claim(TOOLS + "plan.py --page",
              "plan/test_scaling.py::test_the_page_is_written_between_its_marks_and_refused_without",
              why="with made-up rows; a test beside it computes the page's own again"),
        Claim(TOOLS + "plan.py --measured", "plan/test_measured.py::test_two_real_runs_are_compared", "--leave-out 3"),
        Claim(TOOLS + "plan.py", HERE),
        Claim("bash launch/scaling.sh", _HPC),
    ),
    "serving.md": (Claim(TOOLS + "serve.py --help", HERE),),
    "synthesis.md": (
        Claim("sudo apt", why=INSTALLS),
        Claim(PY + "examples/synthesis",
              "synthesize/test_synthesis_example.py::test_a_dozen_kills_leave_the_bytes_of_an_unbroken_run",
              "--scale ci"),
        Claim("vllm serve", why=SERVER), Claim("export LLM_KEY", _SYNTHESIS),
        Claim(TOOLS + "synthesize.py dialogues --seeds examples", _SYNTHESIS, "--dialogues 20"),
        Claim(TOOLS + "synthesize.py dialogues --seeds seeds.toml", _SYNTHESIS, "--dialogues 5", SERVER),
        Claim(TOOLS + "synthesize.py speak", _SYNTHESIS, "--judge.name none"), Claim(TOOLS, _SYNTHESIS),
    ),
    "training.md": (
        Claim(TOOLS + "train.py --config stage1-tiny", SMALL, _TINY),
        Claim(TORCHRUN + "--nproc-per-node 8", READ, why=LARGE),
    ),
    "upcycling.md": (Claim(TOOLS + "convert_ckpt.py import", SMALL),),
    "vocoder.md": (
        Claim("speech=", _VOCODER),
        Claim(TOOLS + "train_vocoder.py hear", _VOCODER, "--limit 1"),
        Claim(TOOLS + "train_vocoder.py hifigan", _VOCODER,
              "--size tiny --steps 2 --batch 1 --segment-frames 8 --hold-out 0.3 --device cpu"),
        Claim(TOOLS, _VOCODER),
    ),
}  # fmt: skip
"""By page; of several that fit a line the first one has it. Pages that show no command need not be here."""


@dataclass(frozen=True)
class Line:
    page: str
    words: str
    """As typed: continued lines put together, without what follows a #."""

    @property
    def claim(self) -> Claim | None:
        return next((one for one in CLAIMS.get(self.page, ()) if self.words.startswith(one.begins)), None)


def shell_of(text: str) -> str:
    """What a page shows of the shell. A document that a command reads (<<'END') is no command."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    shown = "".join(block for language, block in blocks if language in SHELLS)
    return re.sub(r"<<'(\w+)'\n.*?^\1$", "", shown, flags=re.S | re.M)


def lines_of(page: str, text: str) -> list[Line]:
    """The commands of a page, in order."""
    lines = shell_of(text).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+", " ", re.split(r"(?:^|\s\s)#", line)[0]).strip() for line in lines]
    return [Line(page, words) for words in found if words]


def page_text(name: str) -> str:
    [page] = [page for page in PAGES if page.name == name]
    return page.read_text(encoding="utf-8")


LINES = [line for page in PAGES for line in lines_of(page.name, page.read_text(encoding="utf-8"))]


def taken(by: str) -> list[Line]:
    """What test_docs.py runs; a line that two pages show, once."""
    mine = {line.words: line for line in LINES if line.claim is not None and line.claim.by == by}
    return sorted(mine.values(), key=lambda line: line.words)
