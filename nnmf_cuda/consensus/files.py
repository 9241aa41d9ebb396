"""The tables of dylkot/cNMF on disk, and where a run of it has them."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.whole_file import whole_file

_OBJECTS = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype")}
"""All that arrays of strings, numbers and truth values are pickled with."""


@dataclass(frozen=True)
class Frame:
    """A table with names of rows and columns, as pandas' DataFrame."""

    values: NDArray[Any]  # (n, m)
    index: NDArray[Any]  # (n,), numbers or strings
    columns: NDArray[Any]  # (m,)

    def column(self, name: str) -> NDArray[Any]:
        """Return the values of the column of this name."""
        places = np.flatnonzero(self.columns == name)
        if len(places) != 1:
            raise ValueError(f"no column {name!r} among {', '.join(map(str, self.columns))}")
        return self.values[:, places[0]]


@dataclass(frozen=True)
class CnmfPaths:
    """Where the run `name` of cNMF in `output_dir` has its files."""

    output_dir: Path
    name: str

    def make(self) -> None:
        """Make the folders."""
        self._inner("").parent.mkdir(parents=True, exist_ok=True)

    @property
    def counts(self) -> Path:
        """Counts of the genes that vary most, scaled to unit variance."""
        return self._inner("norm_counts.h5ad")

    @property
    def tpm(self) -> Path:
        """All genes in transcripts per million."""
        return self._inner("tpm.h5ad")

    @property
    def tpm_stats(self) -> Path:
        """Mean and standard deviation of each gene there."""
        return self._inner("tpm_stats.df.npz")

    @property
    def replicates(self) -> Path:
        """Number of components, place and seed of each run."""
        return self._inner("nmf_params.df.npz")

    @property
    def parameters(self) -> Path:
        """What all runs have in common."""
        return self._inner("nmf_idvrun_params.yaml")

    @property
    def genes(self) -> Path:
        """Names of the genes that vary most."""
        return self._outer("overdispersed_genes.txt")

    @property
    def k_selection(self) -> Path:
        """Stability and error of each number of components."""
        return self._outer("k_selection_stats.df.npz")

    @property
    def k_selection_plot(self) -> Path:
        """The same, drawn."""
        return self._outer("k_selection.png")

    def spectra(self, k: int, replicate: int) -> Path:
        """Spectra of one run."""
        return self._inner(f"spectra.k_{k}.iter_{replicate}.df.npz")

    def merged_spectra(self, k: int) -> Path:
        """Spectra of all runs of one number of components."""
        return self._inner(f"spectra.k_{k}.merged.df.npz")

    def local_density(self, k: int) -> Path:
        """Local density of each of them, from which cNMF goes on without computing it anew."""
        return self._inner(f"local_density_cache.k_{k}.merged.df.npz")

    def clustering(self, k: int, density_threshold: float) -> Path:
        """Return where the clustergram stands."""
        return self._outer(f"clustering.{_choices(k, density_threshold)}.png")

    def result(self, what: str, k: int, density_threshold: float) -> tuple[Path, Path]:
        """Return where a result of the consensus stands, for programs and as text."""
        stem, dot, end = what.partition(".")
        stem = f"{stem}.{_choices(k, density_threshold)}{dot}{end}"
        return self._inner(f"{stem}.df.npz"), self._outer(f"{stem}.txt")

    def _outer(self, name: str) -> Path:
        return self.output_dir / self.name / f"{self.name}.{name}"

    def _inner(self, name: str) -> Path:
        return self.output_dir / self.name / "cnmf_tmp" / f"{self.name}.{name}"


def _choices(k: int, density_threshold: float) -> str:
    """Return what the names of a consensus' files tell of it."""
    threshold = str(density_threshold).replace(".", "_")
    return f"k_{k}.dt_{threshold}"


def read_frame(path: Path) -> Frame:
    """Return the table that cNMF has saved; nothing in the file is executed.

    cNMF's own loader unpickles whatever the arrays of a file hold. Here they may hold strings,
    numbers and truth values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [_array(archive.read(f"{name}.npy")) for name in ("data", "index", "columns")]
        frame = Frame(*parts)
        if frame.values.shape != (len(frame.index), len(frame.columns)):
            raise ValueError(f"data has the shape {frame.values.shape}")
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} holds no table as cNMF saves one (an .npz file of data, index and columns): "
            f"{error}"
        ) from error
    return frame


def write_frame(path: Path, frame: Frame) -> None:
    """Write a table so that cNMF reads it, whole or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            data=frame.values,
            index=_as_pandas(frame.index),
            columns=_as_pandas(frame.columns),
        )


def read_text_frame(path: Path) -> Frame:
    """Return a tab-delimited table of numbers with names in its first row and column."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        head = next(rows, [])
        index, values = [], []
        for number, row in enumerate(rows, 2):
            try:
                if len(row) != len(head):
                    raise ValueError(f"{len(row)} fields, but the first line has {len(head)}")
                values.append(np.array(row[1:], dtype=np.float64))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error}; give a tab-delimited table of numbers with "
                    "names of genes in the first line and of cells in the first column"
                ) from error
            index.append(row[0])
    if not values:
        raise ValueError(f"{path} has no line of counts below that with the names of the genes")
    return Frame(np.stack(values), np.array(index), np.array(head[1:]))


def write_text_frame(path: Path, frame: Frame) -> None:
    """Write a table tab-delimited, to the letter as pandas does, whole or not at all."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["", *frame.columns.tolist()])
        for name, row in zip(frame.index.tolist(), frame.values.tolist(), strict=True):
            rows.writerow([name, *("" if value != value else value for value in row)])


def _as_pandas(names: NDArray[Any]) -> NDArray[Any]:
    """Return names of strings as the objects that pandas has for them."""
    return names.astype(object) if names.dtype.kind == "U" else names


def _array(content: bytes) -> NDArray[Any]:
    """Return the array of an .npy file."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_head = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    dtype = read_head(stream)[2]
    if dtype.hasobject:
        array = _Plain(stream).load()
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{type(array).__name__} in place of an array")
        return array
    stream.seek(0)
    plain: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return plain


class _Plain(pickle.Unpickler):
    """Unpickles arrays of plain values, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _OBJECTS:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a string nor a number")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
