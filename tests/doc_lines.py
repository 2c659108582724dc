"""Every command that a page shows, and who runs it: a line that nobody claims fails tests/test_docs.py.

A claim is (how the line begins, who has it, why it is not run as written). Who: HERE, by test_docs.py itself; SMALL, by
it on small data; else "file::test" below tests/, which runs the page's commands or reads them by the real command line.
Nobody may have a line only where no machine of ours can run it, and the reason is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("sh", "bash", "")
HERE, SMALL = "here", "small"
INSTALLS, SLURM, GPUS = "installs packages, as root", "wants a Slurm cluster", "wants more GPUs than a test has"
GPU = "wants a GPU; tried in small"
FETCHES, SERVER = "downloads", "wants a language model that is served beside it"
LARGE = "wants corpora of terabytes; its words are read by the tool's own command line"
FOLDERS = "wants folders of the steps before it; the example, which a test runs, has the same commands"


@dataclass(frozen=True)
class Claim:
    begins: str
    by: str = ""
    why: str = ""


PY, TOOLS = ".venv/bin/python ", ".venv/bin/python tools/"
_TWO = "train/test_two_phases.py::test_the_commands_of_the_readme_run_in_their_order"
_DRILLS, _LAUNCH = "train/test_drills.py::", "jobs/test_launchers.py::"
_SYNTHESIS = "synthesize/test_synthesis_guide.py::test_every_command_of_the_guide_parses"
_VOCODER = "vocode/test_vocoder_commands.py::test_the_guides_commands_are_commands"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "README.md": (
        Claim("make demo", "test_quickstart.py::test_the_whole_demo_runs_in_small_and_again_does_nothing"),
        Claim("make test", why="it is this run"),
        Claim(PY + "examples/two_phases", _TWO), Claim(TOOLS + "train.py --config runs/two_phases", _TWO),
        Claim(TOOLS + "report.py runs/two_phases", _TWO),
        Claim("sudo apt", why=INSTALLS),
        Claim(PY + "examples/real_speech",
              "data/test_real_speech.py::test_debians_prompts_become_verified_datasets_in_one_command"),
        Claim("D=", SMALL), Claim(TOOLS + "train.py --config most-tiny $M", SMALL),
        Claim(PY + "examples/layouts", HERE), Claim(".venv/bin/torchrun --nproc-per-node 2 examples/layouts", HERE),
    ),
    "ablation.md": (
        Claim("make ablation", "train/test_bench_ablation.py::test_it_trains_and_goes_on_and_tells"),
        Claim(PY + "bench/ablation.py", "train/test_bench_ablation.py::test_it_trains_and_goes_on_and_tells"),
    ),
    "augmentation.md": (
        Claim(TOOLS, "data/test_augmentation_guide.py::test_its_commands_are_those_of_the_tools", LARGE),
    ),
    "config.md": (),
    "convert.md": (Claim(TOOLS, "convert/test_convert_guide.py::test_the_commands_of_the_guide_run_in_their_order"),),
    "data.md": (Claim("", "data/test_data_guide.py::test_every_command_of_the_guide_parses", LARGE),),
    "evaluation.md": (
        Claim(TOOLS, "evaluate/test_evaluation_guide.py::test_the_commands_of_the_guide_run_in_their_order"),
        Claim(".venv/bin/torchrun", "evaluate/test_evaluation_guide.py::test_the_command_on_several_processes_runs"),
    ),
    "examples.md": (
        Claim(PY + "examples/add_a_modality", "test_examples.py::test_three_groups_learn_and_stay_apart"),
        Claim(PY + "examples/add_a_backbone", "test_examples.py::test_a_family_that_is_added_goes_there_and_back"),
        Claim(PY + "examples/finetune", "test_examples.py::test_a_folder_of_recordings_changes_a_model"),
    ),
    "faults.md": (
        Claim(TOOLS + "drills.py --list", _DRILLS + "test_the_command_lists_the_drills_and_refuses_an_unknown_one"),
        Claim(TOOLS + "drills.py --only",
              _DRILLS + "test_the_command_runs_a_drill_and_its_exit_code_says_whether_it_failed"),
        Claim(TOOLS + "drills.py --controls", _DRILLS + "test_without_its_protection_the_drill_fails"),
        Claim(TOOLS + "drills.py", _DRILLS + "test_the_drill_is_passed"),
    ),
    "generation.md": (
        Claim(TOOLS, "converse/test_converse.py::test_the_commands_of_the_guide_run"),
        Claim(".venv/bin/torchrun", "converse/test_converse.py::test_the_command_of_two_processes_says_what_one_does"),
    ),
    "hpc.md": (
        Claim("git clone", why=FETCHES), Claim("python3.12 -m venv", why=FETCHES), Claim("env/bin/pip", why=FETCHES),
        Claim("cp launch/cluster.env.example", _LAUNCH + "test_without_options_phase_1_is_six_nodes_of_eight_ranks"),
        Claim(". launch/cluster.env", _LAUNCH + "test_without_options_phase_1_is_six_nodes_of_eight_ranks"),
        Claim("sbatch launch/prebuild.sh", why=SLURM),
        Claim("docker build", why=FETCHES), Claim("apptainer build", why=FETCHES),
        Claim("env/bin/hf download", why=FETCHES),
        Claim("bash launch/prepare_data.sh", _LAUNCH + "test_shards_become_an_array_and_a_merge_behind_it"),
        Claim("sbatch launch/convert.sh", why=SLURM),
        Claim("bash launch/stage1_asr_tts.sh --dry-run",
              _LAUNCH + "test_without_options_phase_1_is_six_nodes_of_eight_ranks"),
        Claim("env/bin/python tools/plan.py", "plan/test_plan.py::test_the_command_tells_layouts_cost_and_reasons"),
        Claim("sbatch", "slurm/test_slurm_life.py::"
              "test_a_chain_of_two_phases_and_an_evaluation_is_done_with_the_losses_of_one_process"),
        Claim("bash launch/pipeline.sh",
              _LAUNCH + "test_the_chain_ends_with_an_evaluation_that_has_words_of_its_own"),
        Claim("bash launch/status.sh", "jobs/test_attempts.py::test_status_tells_state_pace_and_the_last_error"),
        Claim("MOST_STAGES=", _LAUNCH + "test_the_chain_ends_with_an_evaluation_that_has_words_of_its_own"),
        Claim("bash launch/scaling.sh",
              _LAUNCH + "test_scaling_is_a_run_for_each_number_of_nodes_and_a_report_behind_all"),
        Claim("sudo apt", why=INSTALLS), Claim("sudo make test-slurm", why="it is the run of tests/slurm"),
    ),
    "most_c.md": (
        Claim(TOOLS + "prepare_data.py", SMALL, LARGE), Claim(TOOLS + "train.py", SMALL, LARGE),
        Claim(TOOLS + "generate.py",
              "converse/test_ears.py::test_a_model_of_frames_hears_by_their_source_and_needs_no_codec",
              "wants a trained model"),
    ),
    "partition.md": (
        Claim(TOOLS, "convert/test_partition_guide.py::test_the_commands_of_the_guide_run_as_written"),
        Claim(PY + "bench/partition.py",
              "convert/test_bench_partition.py::test_it_tells_the_losses_of_every_strategy_under_every_gate"),
    ),
    "performance.md": (
        Claim(PY + "bench/slice.py", "train/test_bench_slice.py::test_a_slice_is_measured", GPU),
        Claim(PY + "bench/step.py",
              "train/test_bench_step.py::test_every_peer_takes_steps_and_has_as_many_weights", GPU),
    ),
    "quickstart.md": (
        Claim("sudo apt", why=INSTALLS),
        Claim("make demo", "test_quickstart.py::test_the_whole_demo_runs_in_small_and_again_does_nothing"),
    ),
    "scaling.md": (
        Claim(TOOLS + "plan.py --page", "plan/test_scaling.py::test_rows_of_the_page_are_computed_again"),
        Claim(TOOLS + "plan.py --measured", "plan/test_measured.py::test_two_real_runs_are_compared"),
        Claim(TOOLS + "plan.py", HERE),
        Claim("bash launch/scaling.sh",
              _LAUNCH + "test_scaling_is_a_run_for_each_number_of_nodes_and_a_report_behind_all"),
    ),
    "serving.md": (Claim(TOOLS + "serve.py --help", HERE),),
    "synthesis.md": (
        Claim("sudo apt", why=INSTALLS),
        Claim(PY + "examples/synthesis",
              "synthesize/test_synthesis_example.py::test_a_dozen_kills_leave_the_bytes_of_an_unbroken_run"),
        Claim("vllm serve", why=SERVER), Claim("export LLM_KEY", why=SERVER),
        Claim(TOOLS + "synthesize.py dialogues --seeds examples",
              "synthesize/test_dialogues_command.py::"
              "test_the_documented_command_makes_500_different_dialogues_of_a_dozen_seeds"),
        Claim(TOOLS + "synthesize.py dialogues --seeds seeds.toml", _SYNTHESIS, SERVER),
        Claim(TOOLS + "synthesize.py dialogues --chats", _SYNTHESIS, LARGE),
        Claim(TOOLS, _SYNTHESIS, FOLDERS),
    ),
    "training.md": (
        Claim(TOOLS + "train.py --config stage1-tiny", SMALL),
        Claim(".venv/bin/torchrun --nproc-per-node 8", "engine/test_layouts.py", GPUS),
    ),
    "upcycling.md": (Claim(TOOLS + "convert_ckpt.py import", SMALL),),
    "vocoder.md": (
        Claim("speech=", _VOCODER), Claim(TOOLS + "train_vocoder.py hifigan", _VOCODER, "takes minutes, or days"),
        Claim(TOOLS + "train_vocoder.py convert", _VOCODER, FETCHES), Claim(TOOLS, _VOCODER, FOLDERS),
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


def lines_of(page: str, text: str) -> list[Line]:
    """The commands of a page, in order. A document that a command reads (<<'END') is no command."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        if language not in SHELLS:
            continue
        block = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.S | re.M).replace("\\\n", " ")
        for line in block.splitlines():
            words = re.sub(r"\s+", " ", re.split(r"(?:^|\s\s)#", line)[0]).strip()
            found += [Line(page, words)] if words else []
    return found


LINES = [line for page in PAGES for line in lines_of(page.name, page.read_text(encoding="utf-8"))]


def taken(by: str) -> list[Line]:
    """What test_docs.py runs; a line that two pages show, once."""
    mine = {line.words: line for line in LINES if line.claim is not None and line.claim.by == by}
    return sorted(mine.values(), key=lambda line: line.words)
