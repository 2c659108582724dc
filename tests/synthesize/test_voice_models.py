"""Speech by models on this machine: ours with its vocoder, and transformers' VITS and SpeechT5, tiny and untrained.

What such a model says is no speech, but it is said alike each time, in the voice that was asked for, and what fails is
counted. Nothing in a folder is run, and no pickle is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_most.data.rejects import RowError
from megatron_most.errors import DataError, MostError
from megatron_most.runtime import Launch
from megatron_most.synthesize import run_synthesize
from megatron_most.synthesize.voice_endpoint import VoiceBudget
from megatron_most.synthesize.voice_models import TransformersSpeaker
from megatron_most.synthesize.voice_opening import open_speaker
from megatron_most.synthesize.voices import VoiceOptions
from tests.data_files import content
from tests.harness import launch_ranks
from tests.talkable import make_talkable

ROOT = Path(__file__).resolve().parents[2]
LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
TEXT = "the tides rise twice a day"


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dialogues") / "d"
    seeds = str(ROOT / "examples" / "synthesis" / "seeds.toml")
    run_synthesize(
        ["dialogues", "--seeds", seeds, "--dialogues", "8", "--out", str(out), "--shape.max-exchanges", "1",
         "--shape.interruptions", "0"]
    )  # fmt: skip
    return out


def speak(dialogues: Path, out: Path, *voice: str) -> dict[str, Any]:
    run_synthesize(
        ["speak", "--dialogues", str(dialogues), "--out", str(out), "--name", "x", "--judge.name", "none",
         "--max-reject-rate", "0.99", "--weights.text-to-text", "0", "--workers", "3", *voice]
    )  # fmt: skip
    return json.loads((out / "speech.json").read_text())


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("vits")
    (folder / "letters.json").write_text(json.dumps({sign: n for n, sign in enumerate(["<pad>", "<unk>", *LETTERS])}))
    shape = VitsConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16,
        spectrogram_bins=9, upsample_initial_channel=32, wavenet_dilation_rate=1,
        posterior_encoder_num_wavenet_layers=1, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16, depth_separable_channels=2, depth_separable_num_layers=1,
        num_speakers=3, speaker_embedding_size=8, sampling_rate=22050,
    )  # fmt: skip
    VitsModel(shape).save_pretrained(folder)
    VitsTokenizer(str(folder / "letters.json"), phonemize=False).save_pretrained(folder)
    return folder


def test_a_vits_model_says_a_text_alike_each_time_and_otherwise_in_another_voice(vits: Path) -> None:
    options = VoiceOptions(transformers=vits, device="cpu")
    one, other = TransformersSpeaker(options), TransformersSpeaker(options)
    wave = one.say(TEXT, "0")
    assert wave.dtype == np.float32 and wave.ndim == 1 and len(wave) > 1000 and np.abs(wave).max() > 0
    other.say("something else before it", "2")
    assert np.array_equal(other.say(TEXT, "0"), wave) and one.identity == other.identity
    second = one.say(TEXT, "1")
    assert len(second) != len(wave) or not np.allclose(second, wave)
    with pytest.raises(RowError, match="none of these characters"):
        one.say("潮汐", "0")
    for voices in (("3",), ("anna",), ("0", "-1")):
        with pytest.raises(DataError, match="has the voices 0 to 2"):
            one.check_voices(voices)


def test_a_vits_model_speaks_dialogues_and_its_faults_are_counted(
    vits: Path, dialogues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an untrained model says is steady as noise is: its voice is given syllables, 2 a second."""
    say = TransformersSpeaker.say

    def in_syllables(speaker: TransformersSpeaker, text: str, voice: str) -> np.ndarray:
        wave = say(speaker, text, voice)
        return (wave * np.abs(np.sin(2 * np.pi * np.arange(len(wave)) / 22050))).astype(np.float32)

    monkeypatch.setattr(TransformersSpeaker, "say", in_syllables)
    words = ("--voices", "0", "1", "2", "--voice.transformers", str(vits), "--voice.device", "cpu")
    done = speak(dialogues, tmp_path / "one", *words)
    assert done["spoken"] + sum(done["rejects"].values()) == 8
    assert set(done["rejects"]) <= {"wrong length", "noise", "silence"}
    speak(dialogues, tmp_path / "two", *words)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_folder_that_is_no_model_of_these_is_refused_and_nothing_in_it_is_run(vits: Path, tmp_path: Path) -> None:
    import torch

    def refused(folder: Path, told: str) -> None:
        with pytest.raises(DataError, match=told):
            TransformersSpeaker(VoiceOptions(transformers=folder, device="cpu"))

    refused(tmp_path / "gone", "no such folder; nothing is downloaded")
    bad = tmp_path / "bad"
    bad.mkdir()
    config = json.loads((vits / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps({**config, "model_type": "bark"}))
    refused(bad, "type 'bark'; those that speak here are vits and speecht5")
    (bad / "config.json").write_text("{")
    refused(bad, "damaged")
    # Code beside a model stays unread, and weights that are a pickle too.
    (bad / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    (bad / "evil.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\nclass Evil: pass\n")
    for name in ("vocab.json", "tokenizer_config.json"):
        (bad / name).write_bytes((vits / name).read_bytes())
    torch.save({}, bad / "pytorch_model.bin")
    refused(bad, "not a whole folder of transformers' vits in safetensors")
    (bad / "model.safetensors").write_bytes((vits / "model.safetensors").read_bytes())
    TransformersSpeaker(VoiceOptions(transformers=bad, device="cpu")).say(TEXT, "0")
    assert not (tmp_path / "was here").exists()


@pytest.fixture(scope="module")
def speecht5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The model, its HiFi-GAN, and vectors of two voices."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="SpeechT5's tokenizer wants: pip install sentencepiece")
    import torch
    from safetensors.numpy import save_file
    from transformers import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        SpeechT5Tokenizer,
    )

    torch.manual_seed(2)
    root = tmp_path_factory.mktemp("speecht5")
    (root / "letters.txt").write_text("\n".join(" ".join(LETTERS[n:] + LETTERS[:n]) for n in range(len(LETTERS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "letters.txt"), model_prefix=str(root / "letters"), model_type="char", vocab_size=32,
        hard_vocab_limit=False, bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    shape = SpeechT5Config(
        vocab_size=40, hidden_size=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_mel_bins=8, speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=8, speech_decoder_postnet_layers=2, speaker_embedding_dim=6, max_text_positions=60,
        encoder_max_relative_position=20,
    )  # fmt: skip
    SpeechT5ForTextToSpeech(shape).save_pretrained(root / "model")
    SpeechT5Tokenizer(str(root / "letters.model")).save_pretrained(root / "model")
    sizes = SpeechT5HifiGanConfig(
        model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], initializer_range=0.3,
    )  # fmt: skip
    SpeechT5HifiGan(sizes).save_pretrained(root / "hifigan")
    draw = np.random.default_rng(0)
    save_file({name: draw.normal(size=6).astype(np.float32) for name in ("anna", "bob")}, root / "voices.safetensors")
    return root / "model", root / "hifigan", root / "voices.safetensors"


def test_a_speecht5_model_speaks_in_voices_that_are_vectors(speecht5: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    model, vocoder, vectors = speecht5
    options = VoiceOptions(transformers=model, vocoder=vocoder, speakers=vectors, device="cpu")
    speaker = TransformersSpeaker(options)
    speaker.check_voices(("anna", "bob"))
    anna, bob = speaker.say(TEXT, "anna"), speaker.say(TEXT, "bob")
    assert np.array_equal(speaker.say(TEXT, "anna"), anna) and len(anna) >= 16 and np.abs(anna).max() > 1e-3
    assert len(anna) != len(bob) or not np.allclose(anna, bob)
    with pytest.raises(DataError, match="--voices carl: not in --voice.speakers, which has anna, bob"):
        speaker.check_voices(("carl",))
    with pytest.raises(RowError, match="characters; the model hears 60"):
        speaker.say(TEXT * 9, "anna")
    with pytest.raises(DataError, match="SpeechT5 wants --voice.vocoder"):
        TransformersSpeaker(VoiceOptions(transformers=model, device="cpu"))
    save_file({"anna": np.zeros(5, np.float32)}, tmp_path / "wrong.safetensors")
    with pytest.raises(DataError, match=r"anna has shape \(5,\).*wants \(6,\)"):
        TransformersSpeaker(
            VoiceOptions(transformers=model, vocoder=vocoder, speakers=tmp_path / "wrong.safetensors", device="cpu")
        )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talkable(tmp_path_factory.mktemp("made"))


def said(root: Path, dialogues: Path, out: Path, *more: str) -> str:
    """What the command says where it is refused; run in a child, for a model's session is of a process."""

    def body(launch: Launch) -> int:
        words = ["--voice.run", str(root / "run"), "--voice.tokenizer", str(root / "data" / "tokenizer")]
        words += ["--voice.temperature", "1", "--voices", "0", "--voice.device", "cpu", *more]
        try:
            speak(dialogues, out, *words)
        except MostError as error:
            (root / "said").write_text(str(error))
            return 2
        (root / "said").write_text("")
        return 0

    [code] = launch_ranks(body, 1)
    told = (root / "said").read_text()
    assert (code == 2) == bool(told)
    return told


def test_a_model_of_ours_speaks_and_what_has_no_end_is_counted(ours: Path, dialogues: Path, tmp_path: Path) -> None:
    vocoder = ("--voice.vocoder", str(ours / "vocoder"))
    assert said(ours, dialogues, tmp_path / "one", *vocoder) == ""
    done = json.loads((tmp_path / "one" / "speech.json").read_text())
    assert done["spoken"] + sum(done["rejects"].values()) == 8 and done["spoken"] >= 1
    assert set(done["rejects"]) <= {"voice failed", "wrong length", "noise"}
    assert said(ours, dialogues, tmp_path / "two", *vocoder, "--workers", "1") == ""
    assert content(tmp_path / "one") == content(tmp_path / "two")  # whatever it said before, and in whatever order


def test_what_does_not_belong_to_our_model_is_refused(ours: Path, dialogues: Path, tmp_path: Path) -> None:
    vocoder = ("--voice.vocoder", str(ours / "vocoder"))
    for more, told in (
        ((), "give the vocoder that makes its units sound with --voice.vocoder"),
        (("--voice.vocoder", str(ours / "other vocoder")), "codec eeeeeeeeeeee"),
        ((*vocoder, "--voices", "1"), "has the voices 0 to 0"),
        ((*vocoder, "--voice.command", "cat {text} {wave}"), "no more and no less"),
    ):
        assert told in said(ours, dialogues, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_one_voice_has_to_be_named() -> None:
    with pytest.raises(DataError, match="give one of --voice.command"):
        with open_speaker(VoiceOptions(), VoiceBudget(), None, Path("x")):
            pass
