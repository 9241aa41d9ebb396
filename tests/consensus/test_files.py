"""Tables and matrices of cNMF: read without executing anything, written for pandas to read."""

from __future__ import annotations

import io
import os
import pickle
import resource
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from nnmf_cuda.consensus.files import (
    CnmfPaths,
    Frame,
    read_frame,
    read_text_frame,
    write_frame,
    write_text_frame,
)
from nnmf_cuda.consensus.h5ad import Annotated, read_h5ad, write_h5ad
from tests.consensus.prepared import load_frame, save_frame, save_h5ad
from tests.processes import exit_code, fork

FRAMES = {
    "spectra": pd.DataFrame(
        [[0.1, 1e-300, 3.0], [1 / 3, 0, 2]], index=[1, 2], columns=["a", "gene \t b", "ü"]
    ),
    "merged": pd.DataFrame(np.eye(2), index=["iter0_topic1", "iter0_topic2"], columns=["a", "b"]),
    "float32": pd.DataFrame(np.eye(2, dtype=np.float32), index=["a", "b"], columns=["x", "y"]),
    "mixed": pd.DataFrame([[3, 0, 2**31 - 2, False]], columns=["n_components", "iter", "s", "c"]),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_tables_of_cnmf_are_read(tmp_path, frame):
    save_frame(tmp_path / "table.df.npz", frame)
    found = read_frame(tmp_path / "table.df.npz")
    np.testing.assert_array_equal(found.values, frame.to_numpy())
    assert found.index.tolist() == frame.index.tolist()
    assert found.columns.tolist() == frame.columns.tolist()


def test_tables_of_numpy_1_are_read(tmp_path):
    """Their pickles name the modules of then."""
    save_frame(tmp_path / "table.df.npz", FRAMES["merged"])
    with np.load(tmp_path / "table.df.npz", allow_pickle=True) as file:
        arrays = dict(file)
    index = pickle.dumps(arrays.pop("index"), protocol=3)
    old = index.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != index
    found = rewritten(tmp_path, old)
    assert found.index.tolist() == ["iter0_topic1", "iter0_topic2"]


def rewritten(folder, index):
    """Read a table whose pickle of the index is this."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|O", "fortran_order": False, "shape": (2,)}
    )
    with zipfile.ZipFile(folder / "table.df.npz") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["index.npy"] = head.getvalue() + index
    with zipfile.ZipFile(folder / "other.df.npz", "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    return read_frame(folder / "other.df.npz")


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_what_is_pickled_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_frame(tmp_path / "table.df.npz", FRAMES["merged"])
    harm = np.array([Harm(), "b"], dtype=object)
    with pytest.raises(ValueError, match=r"other\.df\.npz holds no table.*mkdir"):
        rewritten(tmp_path, pickle.dumps(harm, protocol=4))
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(harm, protocol=4))  # the oracle: elsewhere it is
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_tables_are_written_for_pandas(tmp_path, frame):
    if frame is FRAMES["mixed"]:
        frame = frame.astype(float)
    ours = Frame(frame.to_numpy(), np.array(frame.index.tolist()), np.array(frame.columns.tolist()))
    write_frame(tmp_path / "table.df.npz", ours)
    pd.testing.assert_frame_equal(load_frame(tmp_path / "table.df.npz"), frame)
    write_text_frame(tmp_path / "table.txt", ours)
    frame.astype(float).to_csv(tmp_path / "pandas.txt", sep="\t")
    if frame is not FRAMES["float32"]:  # as float64, pandas rounds where it prints
        assert (tmp_path / "table.txt").read_bytes() == (tmp_path / "pandas.txt").read_bytes()
    found = read_text_frame(tmp_path / "table.txt")
    np.testing.assert_array_equal(found.values, frame.to_numpy())
    assert found.columns.tolist() == frame.columns.tolist()
    assert found.index.tolist() == [str(name) for name in frame.index]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pandas.txt",
        "table.df.npz",
        "table.txt",
    ]


def test_a_table_that_cannot_be_written_leaves_the_former_one(tmp_path):
    path = tmp_path / "table.txt"
    good = Frame(np.eye(2), np.array(["a", "b"]), np.array(["x", "y"]))
    write_text_frame(path, good)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        write_text_frame(path, Frame(np.eye(3), np.array(["a", "b"]), np.array(["x", "y", "z"])))
    assert read_text_frame(path).index.tolist() == ["a", "b"]
    assert [one.name for one in tmp_path.iterdir()] == ["table.txt"]


class Interrupted:
    """Numbers of a table, of which another process writes the file before it has all of them."""

    def __init__(self, values, write):
        self._values, self._write = values, write

    def tolist(self):
        for number, row in enumerate(self._values):
            if number == len(self._values) // 2:
                self._write()
            yield row


def test_two_that_write_one_table_do_not_mix(tmp_path):
    path = tmp_path / "table.txt"
    names = np.array([str(row) for row in range(2000)])
    large = Frame(np.eye(2000, 3), names, np.array(["x", "y", "z"]))
    write_text_frame(path, large)
    expected = path.read_bytes()
    small = Frame(np.eye(2), np.array(["a", "b"]), np.array(["x", "y"]))
    rows = Interrupted(large.values, lambda: write_text_frame(path, small))
    write_text_frame(path, Frame(rows, names, large.columns))
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


def cut_short(write, n_bytes, said):
    """Write a file where none may be longer; return what is said of that."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        try:
            write()
        except OSError as error:
            print(error)
        return 0

    assert exit_code(fork(limited, said=said)) == 0
    return said.read_text()


@pytest.mark.parametrize("kind", ["table", "text", "h5ad"])
def test_a_file_that_the_system_cuts_short_is_named_and_the_former_kept(tmp_path, rng, kind):
    def write(path, X):
        names = [np.array([f"name {i}" for i in range(n)]) for n in X.shape]
        if kind == "h5ad":
            write_h5ad(path, Annotated(X, *names))
        else:
            {"table": write_frame, "text": write_text_frame}[kind](path, Frame(X, *names))

    path, X = tmp_path / "home" / "file", rng.random((300, 40))
    path.parent.mkdir()
    write(path, rng.random((2, 3)))
    former = path.read_bytes()
    said = cut_short(lambda: write(path, X), 20_000, tmp_path / "said.txt")
    assert said == f"[Errno 27] File too large; give another path: {str(path)!r}\n"
    assert path.read_bytes() == former
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no table as cNMF saves one"),
        (b"PK\x05\x06" + bytes(18), "holds no table.*data.npy"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, message):
    path = tmp_path / "table.df.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_frame(path)


def test_a_table_of_another_shape_is_named(tmp_path):
    path = tmp_path / "table.df.npz"
    np.savez(path, data=np.eye(3), index=np.arange(2), columns=np.arange(3))
    with pytest.raises(ValueError, match=r"data has the shape \(3, 3\)"):
        read_frame(path)
    with pytest.raises(ValueError, match="no column 'iter' among a, b"):
        Frame(np.eye(2), np.arange(2), np.array(["a", "b"])).column("iter")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ta\tb\nx\t1\n", "line 2: 2 fields, but the first line has 3"),
        ("\ta\nx\tmany\n", "line 2: .*many"),
        ("\ta\n", "has no line of counts"),
        ("", "has no line of counts"),
    ],
)
def test_text_that_is_no_table_of_counts_is_named(tmp_path, text, message):
    path = tmp_path / "counts.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_text_frame(path)


@pytest.mark.parametrize("index", ["string-array", "nullable-string-array"])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix])
def test_matrices_of_anndata_are_read(tmp_path, rng, kind, index):
    X = rng.poisson(0.5, (5, 4)).astype(np.float32)
    cells, genes = [f"cell {i}" for i in range(5)], ["a", "ü", "c", "d"]
    save_h5ad(tmp_path / "counts.h5ad", kind(X), cells, genes, index=index)
    found = read_h5ad(tmp_path / "counts.h5ad")
    assert scipy.sparse.issparse(found.X) == (kind is not np.asarray)
    assert found.X.dtype == np.float32
    dense = found.X.toarray() if kind is not np.asarray else found.X
    np.testing.assert_array_equal(dense, X)
    assert found.cells.tolist() == cells
    assert found.genes.tolist() == genes
    assert found.places(np.array(["d", "a"])) == [3, 0]
    with pytest.raises(ValueError, match="1 of 2 genes are not among the 4 .* 'e'"):
        found.places(np.array(["a", "e"]))


def test_what_is_no_matrix_of_anndata_is_named_with_a_remedy(tmp_path):
    path = tmp_path / "counts.h5ad"
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"counts\.h5ad is no AnnData file .* anndata 0\.8"):
        read_h5ad(path)
    save_h5ad(path, np.eye(2), ["a", "b"], ["x", "y"])
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = "awkward"
    with pytest.raises(ValueError, match="X is encoded as 'awkward'"):
        read_h5ad(path)


def test_names_of_files_are_those_of_cnmf(tmp_path):
    paths = CnmfPaths(tmp_path, "run")
    names = {
        paths.counts: "cnmf_tmp/run.norm_counts.h5ad",
        paths.tpm: "cnmf_tmp/run.tpm.h5ad",
        paths.replicates: "cnmf_tmp/run.nmf_params.df.npz",
        paths.parameters: "cnmf_tmp/run.nmf_idvrun_params.yaml",
        paths.genes: "run.overdispersed_genes.txt",
        paths.spectra(7, 12): "cnmf_tmp/run.spectra.k_7.iter_12.df.npz",
        paths.merged_spectra(7): "cnmf_tmp/run.spectra.k_7.merged.df.npz",
        paths.local_density(7): "cnmf_tmp/run.local_density_cache.k_7.merged.df.npz",
        paths.k_selection: "run.k_selection_stats.df.npz",
        paths.k_selection_plot: "run.k_selection.png",
        paths.clustering(7, 0.01): "run.clustering.k_7.dt_0_01.png",
        paths.result("spectra.consensus", 7, 0.01)[0]: (
            "cnmf_tmp/run.spectra.k_7.dt_0_01.consensus.df.npz"
        ),
        paths.result("usages.consensus", 7, 2.0)[1]: "run.usages.k_7.dt_2_0.consensus.txt",
        paths.result("gene_spectra_tpm", 7, 0.5)[0]: (
            "cnmf_tmp/run.gene_spectra_tpm.k_7.dt_0_5.df.npz"
        ),
        paths.result("starcat_spectra", 7, 0.5)[1]: "run.starcat_spectra.k_7.dt_0_5.txt",
    }
    for path, name in names.items():
        assert path == tmp_path / "run" / name
