"""MoST-C trained by its public function: it goes on after a kill, all ranks end where sound is gone, and what does not
fit is refused by its field.
"""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.config import Facts, RunConfig, build, load_recipe, replace
from megatron_most.data.frame_files import keep_frames
from megatron_most.data.heard import Heard
from megatron_most.data.manifest import open_manifest
from megatron_most.data.spans import SpanTable
from megatron_most.errors import ConfigError, MostError
from megatron_most.runtime import Launch
from megatron_most.speech import FrameSettings, open_frames
from megatron_most.train import run_training
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech
from tests.harness import launch_ranks
from tests.phases import kill_when_saved, losses, refusal, run, run_until
from tests.speech_models import save_tiny_hubert

STEPS = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("most-c")
    make_tokenizer(root / "tokenizer")
    speech = make_speech(root / "corpus", recordings=4, cuts=5)
    build_frames(frame_inputs(speech, root / "tokenizer"), root / "asr")
    return root


def recipe(corpus: Path, folder: Path, **changes: Any) -> RunConfig:
    named = {
        "name": "test", "tokens.backbone": "file", "tokens.file": str(corpus / "tokenizer" / "token_map.json"),
        "data.asr.weight": 1.0, "data.asr.train": [str(corpus / "asr")],
        "data.audio_roots": [str(corpus / "corpus" / "audio")], "data.window": 20, "train.steps": STEPS,
        "train.sequence_length": 128, "train.global_batch_size": 4, "train.micro_batch_size": 2,
        "train.learning_rate": 5e-3, "checkpoint.folder": str(folder), "checkpoint.every": 3, "model.num_layers": 2,
        "telemetry.tensorboard": False,
    }  # fmt: skip
    return replace(load_recipe("most-c-tiny"), {**named, **changes})


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    run(recipe(corpus, folder))
    return losses(folder)


def test_a_killed_run_goes_on_to_the_same_losses_from_kept_frames_too(
    corpus: Path, tmp_path: Path, unbroken: dict[int, float]
) -> None:
    saved = tmp_path / "run" / "checkpoints" / "step-00000003"
    assert run_until(recipe(corpus, tmp_path / "run"), 4, partial(kill_when_saved, saved)) == -signal.SIGKILL
    source = open_frames(FrameSettings())
    keep_frames(corpus / "asr", source, tmp_path / "kept", (0, 1), [corpus / "corpus" / "audio"], stored="float32")
    kept = {"data.frames": [str(tmp_path / "kept")], "data.audio_roots": []}
    run(recipe(corpus, tmp_path / "run", **kept))
    assert losses(tmp_path / "run") == unbroken and unbroken[STEPS - 1] < unbroken[0]


def test_a_killed_run_with_augmented_frames_goes_on_to_the_same_losses(
    corpus: Path, tmp_path: Path, unbroken: dict[int, float]
) -> None:
    changes = {
        "data.augment.noise": 1.0, "data.augment.volume": 0.5, "data.spec_augment.time_masks": 2,
        "data.spec_augment.feature_masks": 2, "train.steps": 5, "train.schedule": "constant",
    }  # fmt: skip
    run(recipe(corpus, tmp_path / "whole", **changes))
    saved = tmp_path / "run" / "checkpoints" / "step-00000003"
    killed = recipe(corpus, tmp_path / "run", **changes)
    assert run_until(killed, 4, partial(kill_when_saved, saved)) == -signal.SIGKILL
    run(recipe(corpus, tmp_path / "run", **{**changes, "data.frames_threads": 3}))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert losses(tmp_path / "run")[0] != unbroken[0]
    other = recipe(corpus, tmp_path / "run", **{**changes, "data.augment.noise": 0.5, "train.steps": 5})
    assert "data.augment.noise = 0.5" in refusal(other) and "how speech sounds" in refusal(other)


def test_a_hubert_model_that_has_moved_is_heard_while_training_and_another_is_refused(
    corpus: Path, tmp_path: Path
) -> None:
    model = save_tiny_hubert(tmp_path / "tiny", "25hz")
    inputs = frame_inputs(
        open_manifest(corpus / "corpus" / "manifest"), corpus / "tokenizer", kind="hubert", model=str(model), layer=2
    )
    changes = {
        "data.asr.train": [str(build_frames(inputs, tmp_path / "asr"))], "model.wave_size": 32, "train.steps": 2,
        "data.frames_model": str(model.rename(tmp_path / "moved")),
    }  # fmt: skip
    run(recipe(corpus, tmp_path / "run", **changes))
    assert len(losses(tmp_path / "run")) == 2
    changes["data.frames_model"] = str(save_tiny_hubert(tmp_path / "other", "group"))
    assert "other weights, layer or settings" in refusal(recipe(corpus, tmp_path / "refused", **changes))


@pytest.mark.parametrize("changes", [{}, {"layout.pipeline": 2}], ids=["DP2", "PP2"])
def test_sound_that_goes_away_ends_all_ranks_with_the_documents_name(
    corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    audio = Path(shutil.copytree(corpus / "corpus" / "audio", tmp_path / "audio"))
    (audio / "r2.flac").unlink()
    changes = {"data.audio_roots": [str(audio)], "train.hang_after_s": 60.0, **changes}
    config = recipe(corpus, tmp_path / "run", **changes)

    def body(launch: Launch) -> int:
        try:
            return run_training(config, launch)
        except MostError as error:
            (tmp_path / f"error-{launch.rank}").write_text(str(error))
            return 2

    assert launch_ranks(body, 2) == [2, 2]
    for rank in range(2):
        told = (tmp_path / f"error-{rank}").read_text()
        assert "document asr/r2-c" in told and "r2.flac: missing: not in" in told


def test_only_the_first_stage_hears_the_sound(corpus: Path, tmp_path: Path) -> None:
    config = recipe(corpus, tmp_path / "run", **{"layout.pipeline": 2, "train.steps": 1})

    def body(launch: Launch) -> int:
        plain = Heard.features

        def told(self: Heard, number: int, table: SpanTable) -> np.ndarray:
            (tmp_path / f"heard-{launch.rank}").touch()
            return plain(self, number, table)

        Heard.features = told  # type: ignore[method-assign]
        return run_training(config, launch)

    assert launch_ranks(body, 2) == [0, 0]
    assert (tmp_path / "heard-0").exists() and not (tmp_path / "heard-1").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.wave_size": 0, "data.audio_roots": []}, r"model.wave_size = 0: .*asr \(asr\) has frames of mfcc-40ms"),
        ({"model.wave_size": 40}, "model.wave_size = 40: .*: 39; set it to 39"),
        ({"model.wave_size": 39, "model.wave_stack": 3}, "model.wave_stack = 3: .*: 1; set it to 1"),
        ({"model.wave_tag": "wave"}, "model.wave_tag = 'wave': .*: 'audio'; set it to 'audio'"),
        ({"model.wave_source": "0000"}, "model.wave_source = '0000': .* whose hash is"),
        ({"data.audio_roots": []}, "neither kept nor is there sound to make them of"),
    ],
    ids=["no projector", "width", "stack", "tag", "source", "no sound"],
)
def test_frames_that_are_not_the_models_are_refused_by_field(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(MostError, match=told):
        raise MostError(refusal(recipe(corpus, tmp_path, **changes)))


def test_a_projector_without_frames_to_learn_from_is_refused(data: Path, tmp_path: Path) -> None:
    from tests.phases import recipe as of_units

    told = refusal(of_units(data, tmp_path, "most-c-tiny"))
    assert "model.wave_size = 39: no dataset of the run has continuous frames" in told


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model.wave_size": 39, "model.wave_stack": 2}, "model.wave_stack"),
        ({"model.wave_size": 0, "model.wave_stack": 2}, "model.wave_stack"),
        ({"model.wave_size": 0, "model.wave_source": "ab"}, "model.wave_source"),
        ({"model.wave_size": 0, "model.wave_tag": "wave"}, "model.wave_tag"),
        ({"model.wave_size": 0, "data.frames": ["x"]}, "data.frames"),
        ({"model.wave_size": 0, "data.audio_roots": ["x"]}, "data.audio_roots"),
    ],
)
def test_what_is_said_of_frames_without_a_projector_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(with_frames(changes), Facts(world_size=1, device="cpu", core_version=(0, 16)))
    assert caught.value.field == field


def with_frames(changes: dict[str, Any]) -> RunConfig:
    return replace(load_recipe("most-tiny"), changes)
