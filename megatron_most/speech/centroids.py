"""Centroids made elsewhere, from .npy, .safetensors or .pt; never from a pickle.

scikit-learn's k-means models (`.bin`, `.km`, `.pkl`, `.joblib`) are pickles: reading one runs whatever code it holds.
They are refused unread, with the line that converts one.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_most.errors import DataError
from megatron_most.runtime import open_file, require_file
from megatron_most.speech.quantiser import Quantiser

_CONVERT = (
    'python -c "import joblib, numpy; '
    "numpy.save('centroids.npy', joblib.load('{name}').cluster_centers_.astype('f4'))\""
)


def import_quantiser(path: str | Path) -> Quantiser:
    """A quantiser from a file of centroids (units, width), or of a linear layer's `weight` and `bias`.

    .npy: one array. .safetensors and .pt: one two-axis tensor of any name, or tensors that end in `weight` and `bias`.
    """
    path = Path(path)
    with open_file(path, remedy="give a file of centroids") as file:
        head = file.read(8)
    suffix = path.suffix.lower()
    if head[:6] == b"\x93NUMPY":
        return Quantiser.from_centroids(_read_npy(path))
    if suffix == ".safetensors":
        return _named(read_safetensors(path), path)
    if suffix in (".pt", ".pth") and not head.startswith(b"\x80"):  # torch's own format is a zip archive
        return _named(_read_torch(path), path)
    convert = _CONVERT.format(name=path.name)
    raise DataError(
        f"{path}: not .npy, .safetensors or .pt. A scikit-learn model (.bin, .km, .pkl) is a pickle, and reading a "
        f"pickle runs the code in it; where you trust the file, convert it once by {convert}"
    )


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every array of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(require_file(path, remedy="is it whole?"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that numpy lacks
        raise DataError(f"{path}: not a readable .safetensors file ({error}); is it whole?") from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers ({error}); is it whole?") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: not a .pt file of tensors only ({first}); save the tensors by themselves") from error
    if torch.is_tensor(content):
        content = {"centroids": content}
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; it should be a tensor or a dictionary of tensors")
    return {str(name): value.float().numpy() for name, value in content.items() if torch.is_tensor(value)}


def _named(arrays: Mapping[str, np.ndarray], path: Path) -> Quantiser:
    shapes = {name: array.shape for name, array in arrays.items()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) == 1:
        (matrix,) = matrices
        if len(arrays) == 1 and not matrix.endswith("weight"):
            return Quantiser.from_centroids(arrays[matrix])
        bias = matrix.removesuffix("weight") + "bias"
        if matrix.endswith("weight") and set(arrays) == {matrix, bias}:
            return Quantiser.from_linear(arrays[matrix], arrays[bias])
    raise DataError(f"{path}: holds {shapes}; it should hold centroids (units, width), or a linear weight and bias")
