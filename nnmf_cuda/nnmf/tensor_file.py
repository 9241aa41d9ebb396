"""Tensors and their description in one safetensors file: whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda._version import __version__
from nnmf_cuda.whole_file import os_error, whole_file

FORMAT_VERSION = 1
"""Raised when a file of an older version could be misread."""


class Kind(Enum):
    """What a file holds, in words; a file of one kind is not taken for another."""

    CHECKPOINT = "the checkpoint of a fit"
    INDEX = "the checkpoint of a fit to a Shard"
    ROWS = "the rows of a rank in the checkpoint of a fit to a Shard"
    ESTIMATOR = "a fitted estimator"


_READ_BY = {
    Kind.CHECKPOINT: "fit(X, checkpoint=...)",
    Kind.INDEX: "fit(Shard(rows), checkpoint=...)",
    Kind.ROWS: "fit(Shard(rows), checkpoint=...) with the file beside its folder",
    Kind.ESTIMATOR: "NNMF.load",
}
_REMEDY = {
    Kind.CHECKPOINT: "delete it to begin the fit anew, or give checkpoint= another name",
    Kind.INDEX: "delete it to begin the fit anew, or give checkpoint= another name",
    Kind.ROWS: "delete the file that its folder is named after to begin the fit anew",
    Kind.ESTIMATOR: "give a file that NNMF.save has written, or save the estimator again",
}


_HEAD = "nnmf-cuda"  # in the file's metadata


@dataclass(frozen=True)
class Content:
    """What a file holds: JSON and tensors on the CPU."""

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def write_tensors(path: Path, kind: Kind, content: Content) -> None:
    """Write a `whole_file`, over one of this name; tensors of the CPU are not copied."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = _on_their_own(content.tensors)
    head = json.dumps(
        {
            "kind": kind.value,
            "format_version": FORMAT_VERSION,
            "nnmf_cuda": __version__,
            "description": content.description,
        }
    )
    metadata = {_HEAD: head, "sha256": _digest(head, tensors)}
    with whole_file(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:  # as it names a full disk
            raise os_error(error) from error


def _on_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, copied where they share memory: the format has none."""
    found, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return found


def read_tensors(path: Path, kind: Kind) -> Content:
    """Return what `write_tensors` has written; raise for any other file."""
    from safetensors import SafetensorError, safe_open

    remedy = _REMEDY[kind]
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not {kind.value}: give the name of a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what the file is mapped to is aligned otherwise than memory, and may vanish.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path}: damaged, or not a safetensors file ({error}): {remedy}"
        ) from error
    head = metadata.get(_HEAD, "")
    if not head:
        raise ValueError(f"{path}: a safetensors file of another program, {remedy}")
    if metadata.get("sha256") != _digest(head, tensors):
        raise ValueError(f"{path}: damaged, it does not hold what was written: {remedy}")
    said = json.loads(head)
    if said["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {said['format_version']} by nnmf-cuda {said['nnmf_cuda']}, "
            f"but this is {__version__}, which reads format {FORMAT_VERSION}: use that version, or "
            f"{remedy}"
        )
    if said["kind"] != kind.value:
        raise ValueError(
            f"{path}: holds {said['kind']}, which {_READ_BY[Kind(said['kind'])]} reads, and not "
            f"{kind.value}"
        )
    return Content(said["description"], tensors)


def _digest(head: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a text and of tensors on the CPU, in the order of their names."""
    sha256 = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Flat, since a scalar has no dimension along which to be seen as bytes.
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
