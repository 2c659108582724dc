"""Fitting a codec's centroids on a sample of manifests: whole utterances, drawn and ordered by a hash of their ids.

So the sample is spread evenly over the corpora, comes shuffled (which k-means wants), and is the same for one seed.
The codec's folder appears when it is whole; run again, the work is not done twice.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from megatron_most.data.extract import LOUDEST
from megatron_most.data.manifest import Manifest
from megatron_most.data.rejects import RowError
from megatron_most.data.rows import Utterance
from megatron_most.errors import DataError
from megatron_most.runtime import Meter, confine, get_logger, is_done, num_cores, open_journal
from megatron_most.speech import (
    AudioError,
    CodecIdentity,
    HubertCodec,
    HubertFeatures,
    MfccCodec,
    fit_hubert_codec,
    fit_mfcc_codec,
    load_codec,
    read_span,
    save_codec,
)

_log = get_logger(__name__)
_AHEAD = 64  # utterances decoded before they are asked for
_MAX_S = 60.0  # longer ones would weigh too much in the sample


def fit_codec(
    manifests: Sequence[Manifest],
    out: Path,
    *,
    num_units: int,
    hours: float,
    seed: int,
    frame_s: float = 0.04,
    centred: bool = False,
    features: HubertFeatures | None = None,
    audio_root: Path | None = None,
) -> CodecIdentity:
    """Fit on MFCCs (`centred`: less their mean), or on `features` of HuBERT, and save the codec in `out`. Utterances
    that cannot be read are left out and counted.
    """
    job = {
        "what": "codec",
        "manifests": [manifest.header.sha256 for manifest in manifests],
        "num_units": num_units,
        "hours": hours,
        "seed": seed,
        "features": _mfccs(frame_s, centred) if features is None else features.facts,
    }
    if is_done(out, job):
        return load_codec(out, model=features.model_name if features else None).identity
    sample = _draw(manifests, hours * 3600, seed, audio_root)
    rate = features.sample_rate if features else 16000
    with open_journal(out, job, ()) as journal:
        with Meter(sum(row.duration for _, row in sample) / 3600, "fit", _hours) as meter:
            waves = _waves(sample, rate, meter)
            if features is not None:
                codec: HubertCodec | MfccCodec = fit_hubert_codec(waves, features, num_units, seed)
            else:
                codec = fit_mfcc_codec(waves, num_units, frame_s, seed, centred=centred)
        journal.seal(lambda part: fill(part, lambda folder: save_codec(codec, folder)))
    return codec.identity


def _mfccs(frame_s: float, centred: bool) -> dict[str, object]:
    return {"frame_s": frame_s, **({"centred": True} if centred else {})}  # as it was before there was a choice


def fill(part: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write a new folder, as it insists on, and move what it wrote into the folder of a job."""
    draft = part / "draft"
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
    make(draft)
    for path in sorted(draft.iterdir()):
        path.replace(part / path.name)
    draft.rmdir()


def _draw(
    manifests: Sequence[Manifest], seconds: float, seed: int, audio_root: Path | None
) -> list[tuple[Path, Utterance]]:
    """(audio root, utterance), in the order of their hashes, about `seconds` of them."""
    whole = sum(manifest.header.seconds for manifest in manifests)
    share = min(1.0, seconds / whole) if whole else 0.0
    drawn: list[tuple[bytes, Path, Utterance]] = []
    for manifest in manifests:
        if manifest.header.kind != "speech":
            raise DataError(f"{manifest.folder}: a manifest of {manifest.header.kind}; codecs are fitted on speech")
        manifest.require_plain("a codec that is fitted")
        manifest.verify()
        root = audio_root or manifest.audio_root
        for row in manifest.rows():
            assert isinstance(row, Utterance), "a speech manifest holds utterances"
            key = hashlib.blake2b(f"{seed}/{row.id}".encode(), digest_size=8).digest()
            if int.from_bytes(key) < share * 2**64 and row.duration <= _MAX_S:
                drawn.append((key, root, row))
    if not drawn:
        raise DataError("no utterance to fit on; raise --hours, or look at the manifests")
    drawn.sort(key=lambda entry: entry[0])
    return [(root, row) for _, root, row in drawn]


def _waves(sample: Sequence[tuple[Path, Utterance]], rate: int, meter: Meter) -> Iterator[np.ndarray]:
    """Decoded by threads, in order."""
    failed = 0
    first = ""
    with ThreadPoolExecutor(min(8, num_cores())) as threads:
        coming: deque[tuple[Utterance, Future[np.ndarray]]] = deque()
        for root, row in [*sample, *[(Path(), None)] * min(_AHEAD, len(sample))]:
            if row is not None:
                coming.append((row, threads.submit(_read, root, row, rate)))
            if row is None or len(coming) > _AHEAD:
                done, future = coming.popleft()
                try:
                    yield future.result()
                except (AudioError, DataError) as error:
                    failed, first = failed + 1, first or f"{done.id}: {error}"
                meter.advance(done.duration / 3600)
    if failed:
        _log.warning(
            "%d of %d utterances could not be read and were left out; the first: %s", failed, len(sample), first
        )
    if failed * 2 > len(sample):
        raise DataError(f"{failed} of {len(sample)} utterances could not be read, the first: {first}")


def _read(root: Path, row: Utterance, rate: int) -> np.ndarray:
    wave = read_span(confine(root, row.audio), row.start, row.duration, sample_rate=rate)
    if float(np.abs(wave).max(initial=0.0)) > LOUDEST:
        raise RowError("not sound", "a sample far beyond full scale")
    return wave


def _hours(done: float, total: float, seconds: float) -> str:
    return f"{done:.2f}/{total:.2f} h, {done * 3600 / seconds:.0f}x real time"
