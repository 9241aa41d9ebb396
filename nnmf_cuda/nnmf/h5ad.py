"""The matrix of an AnnData file (.h5ad) with its names, read through h5py alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

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
