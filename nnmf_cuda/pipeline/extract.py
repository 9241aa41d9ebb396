"""Images to a file of features, batch by batch: memory does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.data import ReadFailure, iter_image_batches
from nnmf_cuda.features import FeatureExtractor

__all__ = ["FORMATS", "extract_to_file"]

FORMATS = (".npy", ".npz", ".parquet")


def extract_to_file(
    files: Sequence[Path],
    extractor: FeatureExtractor,
    out: Path,
    *,
    normalize: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    batch_size: int = 256,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[int, list[ReadFailure]]:
    """Write the features of image files.

    Parameters
    ----------
    files : sequence of path
        Images, in the order of the rows.
    extractor : FeatureExtractor
        On the device that computes.
    out : path
        `.npy`: one float32 array (n_images, n_columns), written as it comes and fit for
        memory-mapping, with the names in `<out>.files.txt`, one a line. `.npz`: arrays `features`
        and `files`, collected in memory. `.parquet`: a column `file` and one a feature; needs
        pyarrow.
    normalize : bool, default=False
        Write the classifier's features instead of the raw NNLS coefficients.
    on_error : {"raise", "skip"}
        What to do with unreadable images; skipped ones are returned, and listed in
        `<out>.failed.txt`.
    batch_size : int, default=256
        Images at once.
    overwrite : bool, default=False
        Whether `out` may exist.
    progress : bool, default=False
        Show a progress bar, where stderr is a terminal.

    Returns
    -------
    n_written : int
        Number of rows.
    failures : list of ReadFailure
        Images that could not be read.

    Raises
    ------
    ValueError
        If the ending of `out` is unknown, `out` exists or cannot be written, or an image cannot
        be read. Nothing is then written.
    """
    _check_out(out, overwrite=overwrite)
    transform: Callable[[torch.Tensor], torch.Tensor] = (
        extractor.forward if normalize else extractor.coefficients
    )
    n_columns = extractor.n_features if normalize else len(extractor.components)
    failures: list[ReadFailure] = []
    n_written = 0
    with _writer(out, n_columns) as writer, torch.no_grad():
        for batch in iter_image_batches(
            files,
            batch_size=batch_size,
            image_shape=extractor.image_shape,
            on_error=on_error,
            progress=progress,
        ):
            failures += batch.failures
            if len(batch.images):
                features = transform(torch.from_numpy(batch.images)).float().cpu().numpy()
                writer.write(features, [str(file) for file in batch.files])
                n_written += len(features)
        if n_written == 0:
            raise ValueError(
                f"none of the {len(files)} images could be read; the first: {failures[0].message}"
            )
    _list_failures(out, failures)
    return n_written, failures


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists: give another name, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist")


def _list_failures(out: Path, failures: Sequence[ReadFailure]) -> None:
    path = Path(f"{out}.failed.txt")
    if failures:
        path.write_text("".join(f"{f.file}\t{f.message}\n" for f in failures), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


class _Writer(Protocol):
    def write(self, features: NDArray[np.float32], files: list[str]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def _writer(out: Path, n_columns: int) -> Iterator[_Writer]:
    """Yield a writer to a temporary name, which becomes `out` when the block ends well."""
    partial = out.with_name(f".{out.name}.partial")
    names = Path(f"{partial}.files.txt")
    try:
        writer: _Writer
        if out.suffix == ".npy":
            writer = _NpyWriter(partial, names, n_columns)
        elif out.suffix == ".npz":
            writer = _NpzWriter(partial)
        else:
            writer = _ParquetWriter(partial, n_columns)
        try:
            yield writer
        finally:
            writer.close()
        os.replace(partial, out)
        if names.exists():
            os.replace(names, f"{out}.files.txt")
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
        names.unlink(missing_ok=True)


class _NpyWriter:
    """Rows appended to an .npy file; the header is written again when their number is known."""

    def __init__(self, path: Path, names: Path, n_columns: int) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._names: IO[str] = names.open("w", encoding="utf-8")
        self._n_columns = n_columns
        self._n_rows = 0
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        shape = (self._n_rows, self._n_columns)
        description = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)

    def write(self, features: NDArray[np.float32], files: list[str]) -> None:
        features.astype("<f4", copy=False).tofile(self._file)
        self._names.writelines(f"{name}\n" for name in files)
        self._n_rows += len(features)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()
        self._names.close()


class _NpzWriter:
    """Rows collected in memory and written at the end."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._features: list[NDArray[np.float32]] = []
        self._files: list[str] = []

    def write(self, features: NDArray[np.float32], files: list[str]) -> None:
        self._features.append(features)
        self._files += files

    def close(self) -> None:
        if self._features:
            np.savez(self._file, features=np.concatenate(self._features), files=self._files)
        self._file.close()


class _ParquetWriter:
    """One row group a batch."""

    def __init__(self, path: Path, n_columns: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "writing .parquet needs pyarrow: pip install 'nnmf-cuda[parquet]'"
            ) from error
        self._arrow: Any = pyarrow
        names = [f"component_{i}" for i in range(n_columns)]
        fields = [("file", pyarrow.string()), *((name, pyarrow.float32()) for name in names)]
        self._schema = pyarrow.schema(fields)
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema)

    def write(self, features: NDArray[np.float32], files: list[str]) -> None:
        columns = [files, *features.T]
        self._file.write_table(self._arrow.table(columns, schema=self._schema))

    def close(self) -> None:
        self._file.close()
