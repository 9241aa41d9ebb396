"""Fingerprints of models that a user has given, by which a comparison sees that one has changed."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint_of(path: str, model: Any) -> str:
    """Return hexadecimal digits that change with a model, whatever it is called.

    They are of an ONNX file with its files of weights; of a Python object the source of its module
    and of the classes that it is made of, and its numbers: those of a torch module, and the arrays
    and tensors beside a function. What a model reads elsewhere is not seen.

    Parameters
    ----------
    path : str
        "package.module:name", or an ``.onnx`` file.
    model : object
        What is there.

    Raises
    ------
    ValueError
        If a part of a torch module's state has no bytes.
    """
    digest = hashlib.sha256()
    for part in _of_onnx(Path(path)) if path.endswith(".onnx") else _of_object(path, model):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _of_onnx(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
    for name in _files_of_weights(path):
        beside = path.parent / name
        yield name.encode()
        yield beside.read_bytes() if beside.is_file() else b""


def _files_of_weights(path: Path) -> list[str]:
    """Return the files in which weights of an ONNX file lie, or without `onnx` where most do."""
    try:
        import onnx
    except ImportError:
        return [f"{path.name}.data"]
    model = onnx.load(str(path), load_external_data=False)
    places = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in places if entry.key == "location"})


def _of_object(path: str, model: Any) -> Iterator[bytes]:
    owners = [model if isinstance(model, type | FunctionType) else type(model)]
    held: dict[str, Any] = {}
    if isinstance(model, nn.Module):
        owners += [type(part) for part in model.modules()]
        held = model.state_dict()
    elif isinstance(model, FunctionType):
        kinds = (np.ndarray, Tensor)
        held = {n: v for n, v in sorted(model.__globals__.items()) if isinstance(v, kinds)}
    for name in sorted({path.partition(":")[0], *(owner.__module__ for owner in owners)}):
        source = getattr(sys.modules.get(name), "__file__", None)
        yield name.encode()
        yield Path(source).read_bytes() if source else b""
    for name, value in held.items():
        yield name.encode()
        yield _bytes_of(f"{path}: {name}", value)


def _bytes_of(name: str, value: Any) -> bytes:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        flat = value.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes()
    try:
        return pickle.dumps(value)
    except Exception as error:  # of whatever kind: it is the user's object
        raise ValueError(
            f"{name} of the model cannot be told from another ({type(error).__name__}: {error}):"
            " give it as what can be pickled"
        ) from error
