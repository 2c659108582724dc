"""The part of bench/data.py that turns sound files into units by a HuBERT model: random weights, real shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import peers
import soundfile
from data_inputs import NUM_UNITS, Inputs, sound_manifest
from race import Row, fresh, race

from megatron_most.data.extract import ExtractOptions, extract_units
from megatron_most.data.unit_set import open_units
from megatron_most.runtime import Device, find_device
from megatron_most.speech import HubertCodec, HubertFeatures, Quantiser


def hubert(inputs: Inputs) -> Iterator[Row]:
    """Sound files to units, on the CPU, and on a GPU where there is one."""
    import torch
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**inputs.scale.hubert))
    model.save_pretrained(inputs.folder / "model")
    num_layers = model.config.num_hidden_layers
    del model
    yield from _on(find_device("cpu"), inputs, num_layers)
    if (device := find_device()).kind == "gpu":
        yield from _on(device, inputs, num_layers)


def _on(device: Device, inputs: Inputs, num_layers: int) -> Iterator[Row]:
    """Against the whole model, as it is loaded by its name, and against one cut off behind the layer that is wanted."""
    scale, model, layer, kind = inputs.scale, inputs.folder / "model", inputs.scale.layer, device.kind
    manifest, paths = sound_manifest(inputs.folder / kind, scale.waves * (1 if kind == "cpu" else 32))
    features = HubertFeatures(model, layer, normalise=False, device=device, precision="fp32")
    options = ExtractOptions(decode_threads=1 if kind == "cpu" else 0)
    seen = np.concatenate(features([soundfile.read(path, dtype="float32")[0] for path in paths[:8]]))
    draw = np.random.default_rng(0)
    centroids = seen[draw.choice(len(seen), min(NUM_UNITS, len(seen) // 4), replace=False)]
    centroids += (0.05 * seen.std(0) * draw.standard_normal(centroids.shape)).astype(np.float32)
    codec = HubertCodec(features, Quantiser.from_centroids(centroids))
    out = fresh(inputs.folder / f"units-{kind}")

    def ours() -> Callable[[], object]:
        folder = next(out)
        return lambda: extract_units(manifest, codec, folder, (0, 1), options, manifest.audio_root)

    labels = {False: f"the whole model, layer {layer} of {num_layers}", True: "a model cut off there"}
    # In a process of its own: neither changes how the other's memory is managed.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        for is_cut, label in labels.items():

            def run(is_cut: bool = is_cut) -> tuple[float, list[np.ndarray]]:
                return child.submit(peers.hubert_units, model, layer, is_cut, centroids, kind, paths).result()

            theirs = run()[1]
            row = race(
                f"hubert units, {kind}, against {label}",
                ours,
                lambda run=run: lambda: run()[0],
                rounds=min(2, scale.rounds),
                amount=(manifest.header.seconds, "s of sound"),
                wanted=None if is_cut else 1.0 if kind == "cpu" else 2.0,
                clock=time.process_time if kind == "cpu" else time.perf_counter,
            )
            [shard] = open_units(inputs.folder / f"units-{kind}-0").shards
            alike = sum(np.array_equal(shard.sequence(at).units, units) for at, units in enumerate(theirs))
            row = replace(row, ours=f"{row.ours}; {alike} of {len(paths)} files alike")
            yield row if alike == len(paths) or row.ok is None else replace(row, ok=False)
