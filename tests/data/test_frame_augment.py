"""Continuous speech as training hears it: changed in each epoch, by document and epoch alone; never in validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_most.config import AugmentConfig, SpecAugmentConfig
from megatron_most.data import Blend, FrameAugment, FrameOpener, Position, Reader, Steps, open_task
from megatron_most.data.frame_augment import mask_frames
from megatron_most.data.frame_files import keep_frames
from megatron_most.errors import ConfigError
from megatron_most.speech import FrameSettings, open_frames
from megatron_most.vocab import TokenMap
from tests.data_files import make_tokenizer
from tests.frame_files import build_frames, frame_inputs, make_speech

SOUND = AugmentConfig(noise=1.0, noise_db=(5.0, 10.0), band=0.5, volume=0.5)
SPEC = SpecAugmentConfig(time_masks=2, feature_masks=1)
ROW = 128


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    make_tokenizer(root / "tokenizer")
    speech = make_speech(root / "corpus", recordings=2, cuts=5)
    build_frames(frame_inputs(speech, root / "tokenizer"), root / "asr")
    return root


def reader_of(
    corpus: Path,
    sound: AugmentConfig = SOUND,
    spec: SpecAugmentConfig = SPEC,
    threads: int = 1,
    kept: Path | None = None,
) -> Reader:
    tokens = TokenMap.load(corpus / "tokenizer" / "token_map.json")
    opener = FrameOpener(kept=[str(kept)] if kept else (), audio_roots=[str(corpus / "corpus" / "audio")])
    augment = FrameAugment(sound, spec)
    train = open_task([corpus / "asr"], tokens, features_of=opener, augment=augment if augment.is_on else None)
    valid = open_task([corpus / "asr"], tokens, features_of=opener)
    return Reader(
        Blend([train]), row_length=ROW, seed=3, token_map=tokens, window=10, validation=[valid], threads=threads
    )


def features(reader: Reader, window: int) -> dict[str, np.ndarray]:
    """Of each document of an epoch (a window of this corpus is one)."""
    found = {}
    for row in reader.window_rows(window):
        for piece in row.pieces:
            name = reader.names([row])[0][row.pieces.index(piece)].partition("[")[0]
            document = reader._read(piece)
            assert document.wave is not None and document.wave.features_NF is not None
            found[name] = document.wave.features_NF
    return found


def test_every_epoch_hears_another_draw_and_an_epoch_always_the_same(corpus: Path) -> None:
    reader, again, plain = reader_of(corpus), reader_of(corpus), reader_of(corpus, AugmentConfig(), SpecAugmentConfig())
    first, second = features(reader, 0), features(reader, 1)
    assert set(first) == set(second) and len(first) == 10
    later = features(again, 1)  # asked for without the first, as a resumed run does
    clean = features(plain, 0)
    for name in first:
        assert first[name].shape == second[name].shape == clean[name].shape
        assert np.array_equal(second[name], later[name])
        assert not np.allclose(first[name], second[name]) and not np.allclose(first[name], clean[name])
    assert all(np.array_equal(features(plain, 1)[name], clean[name]) for name in clean)


def test_ranks_micro_batches_and_threads_see_the_same_frames(corpus: Path) -> None:
    def by_row(threads: int, ranks: int, micro: int) -> list[bytes]:
        found: list[bytes] = []
        for rank in range(ranks):
            with Steps(
                reader_of(corpus, threads=threads), Position(), rows=4, rank=rank, ranks=ranks,
                micro_batch_size=micro, ahead=False,
            ) as steps:  # fmt: skip
                for _ in range(3):
                    for batch in next(steps).batches:
                        if batch.wave_BSF is not None:
                            found += [row.numpy().tobytes() for row in batch.wave_BSF if torch.count_nonzero(row)]
        return sorted(found)

    alone = by_row(1, 1, 4)
    assert len(alone) == 12
    assert alone == by_row(4, 2, 1) == by_row(2, 4, 2)


def test_validation_hears_recordings_as_they_are(corpus: Path) -> None:
    augmented, plain = reader_of(corpus), reader_of(corpus, AugmentConfig(), SpecAugmentConfig())
    ours, theirs = (dict(reader.validation_samples("asr")) for reader in (augmented, plain))
    assert len(ours) == 10 and set(ours) == set(theirs)
    for name, document in ours.items():
        assert document.wave is not None and theirs[name].wave is not None
        np.testing.assert_array_equal(document.wave.features_NF, theirs[name].wave.features_NF)


def test_kept_frames_are_masked_but_their_sound_cannot_be_changed(corpus: Path, tmp_path: Path) -> None:
    source = open_frames(FrameSettings())
    kept = keep_frames(
        corpus / "asr", source, tmp_path / "kept", (0, 1), [corpus / "corpus" / "audio"], stored="float32"
    )
    with pytest.raises(ConfigError, match="whose sound data.augment is to change") as caught:
        reader_of(corpus, kept=kept)
    assert caught.value.field == "data.frames"
    masked, heard = reader_of(corpus, AugmentConfig(), kept=kept), reader_of(corpus, AugmentConfig())
    ours, theirs = features(masked, 0), features(heard, 0)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_place_in_the_data_is_refused_where_the_augmentation_is_another(corpus: Path) -> None:
    reader = reader_of(corpus)
    state = reader.state(Position(1, 0))
    assert reader_of(corpus).check_state(state) == Position(1, 0)
    for other in (reader_of(corpus, replace(SOUND, seed=1)), reader_of(corpus, SOUND, SpecAugmentConfig())):
        with pytest.raises(Exception, match="fingerprint of dataset 0 of task asr"):
            other.check_state(state)


def test_masks_hide_so_much_and_become_the_mean_in_every_stacked_frame() -> None:
    frames = np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32)
    only_time = SpecAugmentConfig(time_masks=1, time_frames=10)
    only_bands = SpecAugmentConfig(feature_masks=1, feature_share=0.25)
    hidden, bands = [], []
    for number in range(200):
        masked = mask_frames(frames, only_time, (number,), stack=2)
        rows = np.flatnonzero((masked != frames).any(axis=1))
        assert not len(rows) or np.array_equal(rows, np.arange(rows[0], rows[-1] + 1))
        np.testing.assert_allclose(masked[rows], np.broadcast_to(frames.mean(axis=0), (len(rows), 80)), atol=1e-5)
        hidden.append(len(rows))
        masked = mask_frames(frames, only_bands, (number,), stack=2)
        columns = np.flatnonzero((masked != frames).any(axis=0))
        first, second = columns[columns < 40], columns[columns >= 40] - 40
        assert np.array_equal(first, second) and (masked[:, columns] == masked[0, columns]).all()
        bands.append(len(first))
    assert (min(hidden), max(hidden)) == (0, 10) and (min(bands), max(bands)) == (0, 10)
    short = mask_frames(frames[:4], SpecAugmentConfig(time_masks=5), (1,))
    assert np.array_equal(short, frames[:4])  # a fifth of four frames is none
