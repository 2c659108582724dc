"""Units with their durations, the identity of a codec, its folder, and what is never read."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_most.errors import DataError
from megatron_most.speech import (
    PRESETS,
    CodecIdentity,
    MfccCodec,
    Quantiser,
    UnitSequence,
    fit_mfcc_codec,
    import_quantiser,
    load_codec,
    merge_repeats,
    save_codec,
)
from tests.audio_files import voice


@pytest.fixture(scope="module")
def codec() -> MfccCodec:
    return fit_mfcc_codec([voice(4.0, seed=s) for s in range(8)], 40, 0.04, seed=1, name="test")


def test_merging_repeats_keeps_every_frame() -> None:
    rng = np.random.default_rng(0)
    for num in (0, 1, 2, 50):
        frames = rng.integers(0, 3, num)
        merged = merge_repeats(frames, 0.04)
        assert np.array_equal(merged.per_frame(), frames) and merged.num_frames == num
        assert (merged.units[1:] != merged.units[:-1]).all()
    merged = merge_repeats(np.array([7, 7, 7, 2, 7]), 0.02)
    assert (merged.units.tolist(), merged.durations.tolist()) == ([7, 2, 7], [3, 1, 1])
    assert merged == UnitSequence(np.array([7, 2, 7], np.uint16), np.array([3, 1, 1], np.uint32), 0.02)
    assert merged != merge_repeats(np.array([7, 7, 2, 7]), 0.02)


def test_the_units_of_a_wave_do_not_depend_on_its_neighbours(codec: MfccCodec) -> None:
    waves = [voice(s, seed=9) for s in (0.1, 3.3, 1.0, 2.2)]
    together = codec.encode(waves)
    assert together == [codec.encode([wave])[0] for wave in waves]
    assert len(together[1]) > 5
    assert [units.num_frames for units in together] == [
        ((round(s * 1000) - 25) // 10 + 1) // 4 for s in (0.1, 3.3, 1.0, 2.2)
    ]


def test_a_codec_comes_back_from_its_folder_as_it_was(codec: MfccCodec, tmp_path: Path) -> None:
    folder = save_codec(codec, tmp_path / "codec")
    assert sorted(p.name for p in folder.iterdir()) == ["centroids.safetensors", "codec.json"]
    again = load_codec(folder)
    assert again.identity == codec.identity and again.min_samples == codec.min_samples
    wave = voice(3.0, seed=5)
    assert again.encode([wave]) == codec.encode([wave])
    with pytest.raises(DataError, match="not empty"):
        save_codec(codec, folder)


def test_a_codec_of_centred_features_says_so_and_comes_back(codec: MfccCodec, tmp_path: Path) -> None:
    centred = fit_mfcc_codec([voice(4.0, seed=s) for s in range(8)], 40, 0.04, seed=1, centred=True)
    loaded = load_codec(save_codec(centred, tmp_path / "codec"))
    wave = voice(2.0, seed=12)
    assert loaded.identity == centred.identity and "centred" in loaded.identity.name
    assert loaded.encode([wave]) == centred.encode([wave]) != codec.encode([wave])
    same = MfccCodec(0.04, centred.quantiser)
    assert same.identity.hash != centred.identity.hash and same.encode([wave]) != centred.encode([wave])


def test_the_hash_changes_with_whatever_changes_the_units_and_with_nothing_else(codec: MfccCodec) -> None:
    centroids = codec.quantiser.weight_KD
    moved = centroids.copy()
    moved[3, 5] = np.nextafter(moved[3, 5], np.float32(np.inf))
    others = [
        MfccCodec(0.02, codec.quantiser),
        MfccCodec(0.04, Quantiser.from_centroids(moved)),
        MfccCodec(0.04, Quantiser.from_centroids(centroids[::-1])),
    ]
    assert len({codec.identity.hash, *(other.identity.hash for other in others)}) == 4
    assert MfccCodec(0.04, Quantiser.from_centroids(centroids.copy()), name="x").identity.hash == codec.identity.hash


def test_an_identity_comes_back_from_json(codec: MfccCodec) -> None:
    values = json.loads(json.dumps(codec.identity.to_dict()))
    assert CodecIdentity.from_dict(values) == codec.identity
    for wrong in (
        {**values, "more": 1},
        {k: v for k, v in values.items() if k != "hash"},
        {**values, "num_units": "40"},
    ):
        with pytest.raises(DataError, match="codec identity"):
            CodecIdentity.from_dict(wrong)


def test_a_changed_byte_in_a_folder_is_refused(codec: MfccCodec, tmp_path: Path) -> None:
    folder = save_codec(codec, tmp_path / "codec")
    path = folder / "centroids.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="centroids, model or settings have changed"):
        load_codec(folder)
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="is it whole"):
        load_codec(folder)
    path.unlink()
    with pytest.raises(DataError, match="is it whole"):
        load_codec(folder)
    path.write_bytes(whole)
    load_codec(folder)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "kind": "mfcc-kmeans"}', '{"format": 1, "kind": 3, "settings": 4}'],
)
def test_a_damaged_codec_file_is_refused_by_name(codec: MfccCodec, tmp_path: Path, content: str) -> None:
    folder = save_codec(codec, tmp_path / "codec")
    (folder / "codec.json").write_text(content)
    with pytest.raises(DataError, match="codec.json"):
        load_codec(folder)


def test_a_preset_names_its_centroids_and_wants_them_as_a_file() -> None:
    assert (PRESETS["mhubert-25hz-500"].model, PRESETS["mhubert-25hz-500"].layer) == ("slprl/mhubert-base-25hz", 11)
    assert (PRESETS["hubert-50hz-500"].model, PRESETS["hubert-50hz-500"].layer) == ("facebook/hubert-base-ls960", 9)
    for name, preset in PRESETS.items():
        with pytest.raises(DataError, match="published as a pickle.* give that file with --centroids") as caught:
            load_codec(name)
        assert preset.centroids_url in str(caught.value)
    with pytest.raises(DataError, match="presets are mhubert-25hz-500"):
        load_codec("mhubert")


def test_centroids_are_read_from_npy_safetensors_and_pt(codec: MfccCodec, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    centroids = codec.quantiser.weight_KD
    np.save(tmp_path / "a.npy", centroids.astype(np.float64))
    save_file({"cluster_centers": centroids}, tmp_path / "b.safetensors")
    torch.save(torch.from_numpy(centroids), tmp_path / "c.pt")
    torch.save({"centers": torch.from_numpy(centroids)}, tmp_path / "d.pt")
    for name in ("a.npy", "b.safetensors", "c.pt", "d.pt"):
        assert import_quantiser(tmp_path / name).hash() == codec.quantiser.hash()


def test_a_linear_quantiser_is_read_from_pt_and_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    layer = torch.nn.Linear(6, 4)
    torch.save({f"layers.0.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "a.pt")
    arrays = {k: v.detach().numpy() for k, v in layer.state_dict().items()}
    save_file(arrays, tmp_path / "b.safetensors")
    rows = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    wanted = layer(torch.from_numpy(rows)).argmax(dim=1).numpy()
    for name in ("a.pt", "b.safetensors"):
        quantiser = import_quantiser(tmp_path / name)
        assert quantiser.kind == "linear" and np.array_equal(quantiser.assign(rows)[0], wanted)
    save_file({"weight": arrays["weight"]}, tmp_path / "c.safetensors")
    with pytest.raises(DataError, match="weight and bias"):
        import_quantiser(tmp_path / "c.safetensors")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["km.bin", "km.km", "km.pkl", "km.joblib", "km.pt", "km.npy", "zip.pt", "object.npy"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    if name == "zip.pt":
        torch.save({"weight": Bomb(mark)}, path)
    elif name == "object.npy":
        np.save(path, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError) as caught:
        import_quantiser(path)
    assert not mark.exists() and str(path) in str(caught.value) and "\n" not in str(caught.value)
    if name.startswith("km"):
        assert "numpy.save('centroids.npy'" in str(caught.value)
    with open(path, "rb") as file, pytest.raises(Exception):  # noqa: B017 - whatever comes of it, the bomb is live
        np.load(file, allow_pickle=True) if name == "object.npy" else torch.load(file, weights_only=False)
        pickle.loads(path.read_bytes())
    assert mark.exists()


def test_centroids_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        import_quantiser(tmp_path / "none.npy")
    np.save(tmp_path / "a.npy", np.eye(5))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="is it whole"):
        import_quantiser(tmp_path / "a.npy")
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is it whole"):
        import_quantiser(tmp_path / "b.safetensors")


def test_centroids_of_another_width_are_refused() -> None:
    with pytest.raises(DataError, match="takes centroids of 39"):
        MfccCodec(0.04, Quantiser.from_centroids(np.eye(12, dtype=np.float32)))
