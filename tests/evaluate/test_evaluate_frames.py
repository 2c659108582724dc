"""A model that hears continuous frames is evaluated, asked and served by its sound alone, checkpoint or exported."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import runpy
from dataclasses import replace as but
from pathlib import Path

import pytest
import soundfile

from megatron_most.checkpoint import MADE_WITH
from megatron_most.config import load_recipe, replace
from megatron_most.converse import run_generate
from megatron_most.convert import run_convert_ckpt
from megatron_most.data import MadeWith
from megatron_most.data.manifest import open_manifest
from megatron_most.data.rows import Utterance
from megatron_most.data.templates import load_templates
from megatron_most.errors import MostError
from megatron_most.evaluate import Data, Options
from megatron_most.evaluate.decoding import Decoding
from megatron_most.runtime import Launch
from megatron_most.serve.opening import open_partner
from megatron_most.speech import read_span
from megatron_most.vocab import TokenMap
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech
from tests.harness import launch_ranks
from tests.phases import run
from tests.serve.partners import serving
from tests.spoken_models import ran, read_records, refused

STEPS, UTTERANCES = 50, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/, which has learnt six utterances of corpus/ by heart; exported/; u0.wav."""
    root = tmp_path_factory.mktemp("frames")
    make_tokenizer(root / "tokenizer")
    speech = make_speech(root / "corpus", recordings=2, cuts=UTTERANCES // 2, longest=3)
    build_frames(frame_inputs(speech, root / "tokenizer"), root / "asr")
    changes = {
        "tokens.backbone": "file", "tokens.file": str(root / "tokenizer" / "token_map.json"),
        "data.asr.weight": 1.0, "data.asr.train": [str(root / "asr")],
        "data.audio_roots": [str(root / "corpus" / "audio")], "data.window": UTTERANCES,
        "train.steps": STEPS, "train.sequence_length": 128, "train.batch_counts": "documents",
        "train.global_batch_size": UTTERANCES, "train.micro_batch_size": 3, "train.learning_rate": 8e-3,
        "train.validate_every": 0, "checkpoint.folder": str(root / "run"), "checkpoint.every": 0,
        "model.num_layers": 2, "telemetry.tensorboard": False,
    }  # fmt: skip
    run(replace(load_recipe("most-c-tiny"), changes))
    own = ["--tokenizer", str(root / "tokenizer"), "--no-gate"]
    export = ["export", "--source", str(root / "run"), "--out", str(root / "exported"), *own]
    assert launch_ranks(lambda launch: run_convert_ckpt(export) or 0, 1) == [0]
    row = known(root)
    wave = read_span(root / "corpus" / "audio" / row.audio, row.start, row.duration, sample_rate=16000)
    soundfile.write(root / "u0.wav", wave, 16000)
    return root


def known(root: Path) -> Utterance:
    """An utterance that was learnt under the phrasing in which the command and the server ask."""
    templates = load_templates("chat")
    rows = [row for row in open_manifest(root / "corpus" / "manifest").rows() if isinstance(row, Utterance)]
    asked = [row for row in rows if templates.instruction("asr", f"asr/{row.id}") == templates.instructions["asr"][0]]
    assert len(asked) > 1, "so that it is not told from others by its phrasing"
    return asked[0]


def asked(root: Path, model: str, out: Path) -> Options:
    return Options(
        tasks=("asr",), model=root / model, out=out, data=Data(manifest=(root / "corpus" / "manifest",)), batch_size=4,
        decoding=Decoding(max_new_tokens=16), tokenizer=root / "tokenizer" if model == "run" else None,
    )  # fmt: skip


def test_it_transcribes_by_heart_as_a_checkpoint_and_exported(made: Path, tmp_path: Path) -> None:
    said = [row.text for row in open_manifest(made / "corpus" / "manifest").rows()]
    for model in ("run", "exported"):
        [result] = ran(asked(made, model, tmp_path / model))
        assert result.scores["wer"].value < 0.05
        found = read_records(tmp_path / model / "asr-test-train")
        assert [record["hypothesis"] for record in found] == said
        assert "codec" not in result.config and len(result.data["sounds"]) == 64
        frames = MadeWith.load(made / "exported" / MADE_WITH).frames
        assert frames is not None and result.config["frames"] == frames.key


def test_the_card_says_how_it_is_loaded(made: Path, tmp_path: Path) -> None:
    def body(launch: Launch, file: Path) -> int:
        [code] = re.findall(r"```python\n(.*?)```", (made / "exported" / "README.md").read_text(), re.S)
        file.write_text(code.replace("FOLDER", str(made / "exported")))
        found = runpy.run_path(str(file))
        tokens = TokenMap.load(made / "exported" / "token_map.json")
        ids = found["tokenizer"]("the fox [Hu7]", add_special_tokens=False)["input_ids"]
        assert type(found["model"]).__name__ == "MostForCausalLM" and ids[-1] == tokens.id_of_unit(7)
        assert (found["tokenizer"].eos_token_id, found["tokenizer"].pad_token_id) == (tokens.eos_id, tokens.pad_id)
        return 0

    assert launch_ranks(body, 1, tmp_path / "load.py") == [0]


def test_its_likelihood_of_frames_is_refused(made: Path, tmp_path: Path) -> None:
    nll = but(asked(made, "run", tmp_path / "nll"), tasks=("nll",), data=Data(dataset=(made / "asr",)))
    assert "has continuous frames, whose likelihood is not measured here" in refused(nll)


def test_a_question_to_it_needs_no_codec_but_to_a_model_of_units(made: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"WavPath": "u0.wav", "Answer": "owls"}\n')
    (tmp_path / "u0.wav").write_bytes((made / "u0.wav").read_bytes())
    question = but(asked(made, "run", tmp_path / "qa"), tasks=("qa-s2t",), data=Data(questions=(tmp_path / "q.jsonl",)))
    [result] = ran(question)
    assert result.items == 1 and "frames" in result.config


def test_the_command_hears_it(made: Path) -> None:
    out = io.StringIO()

    def body(launch: Launch, file: Path) -> int:
        with contextlib.redirect_stdout(out):
            run_generate(["--model", str(made / "run"), "--tokenizer", str(made / "tokenizer"), "--audio",
                          str(made / "u0.wav"), "--max-new-tokens", "16"])  # fmt: skip
        file.write_text(out.getvalue())
        return 0

    assert launch_ranks(body, 1, made / "said") == [0]
    assert (made / "said").read_text().strip() == known(made).text


def serve(launch: Launch, made: Path, file: Path) -> int:
    with (
        open_partner(
            made / "exported", tokenizer=None, codec=None, vocoder=None, templates=None, device="cpu", name=None
        ) as partner,
        serving(partner) as server,
    ):
        assert not partner.why_deaf and not partner.voices
        data = base64.b64encode((made / "u0.wav").read_bytes()).decode()
        ask = load_templates("chat").instructions["asr"][0] + "\n\n"
        parts = [{"type": "text", "text": ask}, {"type": "input_audio", "input_audio": {"data": data}}]
        status, answer = server.ask(parts, temperature=0)
        assert status == 200, answer
        file.write_text(answer["choices"][0]["message"]["content"])
        status, answer = server.ask([{"type": "units", "units": "[Hu1][Hu2]"}])
        assert status == 400 and "units without sound" in answer["error"]["message"]
    return 0


def test_the_server_hears_it(made: Path, tmp_path: Path) -> None:
    assert launch_ranks(serve, 1, made, tmp_path / "said") == [0]
    said = (tmp_path / "said").read_text().strip()
    assert said == known(made).text


def serve_deaf(launch: Launch, made: Path, folder: Path) -> int:
    told = {"tokenizer": None, "codec": None, "vocoder": None, "templates": None, "device": "cpu", "name": None}
    with open_partner(folder, **told) as partner, serving(partner) as server:  # type: ignore[arg-type]
        status, answer = server.ask("the fox", max_tokens=4)
        assert status == 200, answer
        data = base64.b64encode((made / "u0.wav").read_bytes()).decode()
        status, answer = server.ask([{"type": "input_audio", "input_audio": {"data": data}}])
        assert status == 400 and "does not have, so it cannot hear; send text" in answer["error"]["message"]
        assert not json.loads(server.send("GET", "/v1/models")[2])["data"][0]["most"]["hears"]
    with pytest.raises(MostError, match="--codec-model"):
        open_partner(folder, encoder=folder / "gone", **told).__enter__()  # type: ignore[arg-type]
    return 0


def test_where_its_encoder_is_not_at_hand_the_server_takes_text(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    for file in (made / "exported").iterdir():
        if file.name != MADE_WITH:
            (folder / file.name).symlink_to(file)
    known = MadeWith.load(made / "exported" / MADE_WITH)
    assert known.frames is not None
    gone = but(known.frames, kind="hubert", model=str(tmp_path / "gone"), layer=3)
    (folder / MADE_WITH).write_text(but(known, frames=gone).to_json())
    assert launch_ranks(serve_deaf, 1, made, folder) == [0]
