"""The matrix of an AnnData file (.h5ad) with its names, read and written through h5py alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from nnmf_cuda.whole_file import os_error, whole_file

_REMEDY = (
    "save it with anndata 0.8 or later, or give a tab-delimited table or an .npz table of cNMF"
)


@dataclass(frozen=True)
class Annotated:
    """Cells by genes, with their names."""

    X: Any  # (n_cells, n_genes), an array or a CSR matrix of SciPy
    cells: NDArray[Any]  # (n_cells,) strings
    genes: NDArray[Any]  # (n_genes,) strings

    def places(self, genes: NDArray[Any]) -> list[int]:
        """Return the columns of these genes, in this order."""
        places = {name: place for place, name in enumerate(self.genes.tolist())}
        missing = [name for name in genes.tolist() if name not in places]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(genes)} genes are not among the {len(places)} of the "
                f"counts, the first is {missing[0]!r}"
            )
        return [places[name] for name in genes.tolist()]


def read_h5ad(path: Path) -> Annotated:
    """Return X of an AnnData file, sparse where it is so there."""
    h5py = _h5py()
    try:
        with h5py.File(path) as file:
            return Annotated(_matrix(file["X"]), _names(file["obs"]), _names(file["var"]))
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no AnnData file that can be read ({error}): {_REMEDY}"
        ) from error


def write_h5ad(path: Path, annotated: Annotated) -> None:
    """Write X and its names as anndata 0.8 and later do, whole or not at all."""
    h5py = _h5py()
    with whole_file(path) as partial:
        try:
            with h5py.File(partial, "w") as file:
                _write(file, annotated, h5py.string_dtype())
        except RuntimeError as error:  # as h5py names a full disk where it closes
            raise os_error(error) from error


def _write(file: Any, annotated: Annotated, strings: Any) -> None:
    """Fill a new file, with names as strings of this type."""
    _encode(file, "anndata", "0.1.0")
    if scipy.sparse.issparse(annotated.X):
        X = scipy.sparse.csr_matrix(annotated.X)
        X.sort_indices()
        group = _encode(file.create_group("X"), "csr_matrix", "0.1.0")
        group.attrs["shape"] = np.array(X.shape, dtype=np.int64)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(X, name)
    else:
        _encode(file.create_dataset("X", data=annotated.X), "array", "0.2.0")
    for name, names in (("obs", annotated.cells), ("var", annotated.genes)):
        group = _encode(file.create_group(name), "dataframe", "0.2.0")
        group.attrs["_index"] = "_index"
        group.attrs["column-order"] = np.array([], dtype=np.float64)
        index = group.create_dataset("_index", data=names.astype(object), dtype=strings)
        _encode(index, "string-array", "0.2.0")
    for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
        _encode(file.create_group(name), "dict", "0.1.0")


def _encode(element: Any, kind: str, version: str) -> Any:
    element.attrs.update({"encoding-type": kind, "encoding-version": version})
    return element


def _matrix(element: Any) -> Any:
    """Return an array or a CSR matrix."""
    kind = _text(element.attrs.get("encoding-type", "array"))
    if kind in ("csr_matrix", "csc_matrix"):
        make = getattr(scipy.sparse, kind)
        parts = tuple(element[name][()] for name in ("data", "indices", "indptr"))
        return make(parts, shape=tuple(element.attrs["shape"])).tocsr()
    if kind != "array":
        raise ValueError(f"X is encoded as {kind!r}")
    return element[()]


def _names(frame: Any) -> NDArray[Any]:
    """Return the index of a table as strings."""
    index = frame[_text(frame.attrs["_index"])]
    if hasattr(index, "keys"):  # nullable strings: values and a mask
        index = index["values"]
    return np.array([_text(name) for name in index[()].tolist()], dtype=str)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _h5py() -> Any:
    """Return the module, or say how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "files of AnnData (.h5ad) need h5py: pip install 'nnmf-cuda[stacks]'"
        ) from error
    return h5py
