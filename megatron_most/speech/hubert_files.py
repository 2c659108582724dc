"""Find a HuBERT model in transformers' format, a folder or a hub id, and hash the weights that will be read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from megatron_most.errors import DataError
from megatron_most.runtime import read_file, reading, require_file, sha256_file

_SETTINGS = ["config.json", "preprocessor_config.json", "*.index.json"]
# In the order of preference; a large model is in parts.
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")


@dataclass(frozen=True)
class HubertFiles:
    """A model's folder and what its files say. `normalise` is None where nothing says it."""

    folder: Path
    weights_sha256: str
    is_safetensors: bool
    sample_rate: int
    normalise: bool | None


def find_hubert(model: str | Path, revision: str | None = None) -> HubertFiles:
    """A folder as it is; a hub id is downloaded, or taken from the cache. DataError where there is no such model."""
    folder = Path(model)
    if not folder.is_dir():
        folder = _download(str(model), revision)
    require_file(folder / "config.json", remedy="give a folder of a transformers HubertModel")
    pattern, files = next(((p, f) for p in _WEIGHTS if (f := sorted(folder.glob(p)))), ("", []))
    if not files:
        raise DataError(f"{folder}: no model.safetensors or pytorch_model.bin; is the download whole?")
    hashes = []
    for file in files:
        with reading(file, "is the download whole?"):
            hashes.append(sha256_file(file))
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    rate, normalise = _preprocessor(folder)
    return HubertFiles(folder, whole, pattern.endswith("safetensors"), rate, normalise)


def _preprocessor(folder: Path) -> tuple[int, bool | None]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return 16000, None
    data = read_file(path)
    try:
        content = json.loads(data)
        rate, normalise = content.get("sampling_rate", 16000), content.get("do_normalize")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not readable ({error}); it should be a JSON object") from error
    if type(rate) is not int or rate <= 0 or type(normalise) not in (bool, type(None)):
        raise DataError(f"{path}: sampling_rate {rate!r}, do_normalize {normalise!r}; a number and true or false")
    return rate, normalise


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for weights in _WEIGHTS:
            patterns = [*_SETTINGS, weights]
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
            if list(folder.glob(weights)):
                break
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"{model}: neither a folder nor found on the hub ({first}); download the model where there is a network "
            "and give its folder"
        ) from error
    return folder
