"""`CnmfRun` on the files that cNMF leaves, against the plain steps with pandas and scikit-learn."""

from __future__ import annotations

import shutil
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy.optimize import nnls
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning

from bench.plain_consensus import matched_correlation, plain_consensus
from nnmf_cuda import NNMF
from nnmf_cuda.consensus import CnmfRun
from tests.consensus.prepared import PARAMETERS, load_frame, planted_cells, prepare, save_frame

KS, N_ITER = (2, 3), 8


@pytest.fixture(scope="module")
def counts():
    return planted_cells(np.random.default_rng(5))


@pytest.fixture(scope="module")
def prepared(counts, tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cnmf"), counts, ks=KS, n_iter=N_ITER)


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory):
    """A folder in which all steps have been run here."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("done"), dirs_exist_ok=True)
    run = CnmfRun(folder, "run")
    run.factorize()
    run.combine()
    run.k_selection_plot()
    run.consensus(3)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A prepared folder of the test's own."""
    return shutil.copytree(prepared, tmp_path / "cnmf")


def inner(folder, name):
    return load_frame(folder / "run" / "cnmf_tmp" / f"run.{name}.df.npz")


def scaled(counts, n_genes=50):
    chosen = counts.iloc[:, :n_genes]
    return chosen / chosen.std(ddof=1)


def refit(X, spectra):
    return np.stack([nnls(spectra.T, row)[0] for row in X])


# --- prepare --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False])
def test_prepare_leaves_what_cnmf_does(counts, tmp_path, sparse):
    """The expected files are written with pandas and h5py."""
    counts.to_csv(tmp_path / "counts.txt", sep="\t")
    (tmp_path / "genes.txt").write_text("\n".join(counts.columns[:50]) + "\n")
    expected = prepare(tmp_path / "expected", counts, ks=KS, n_iter=N_ITER, sparse=sparse)
    CnmfRun(tmp_path / "found", "run").prepare(
        tmp_path / "counts.txt",
        [3, 2, 3],
        N_ITER,
        densify=not sparse,
        seed=14,
        genes_file=tmp_path / "genes.txt",
    )
    found = tmp_path / "found"
    files = {path.relative_to(found) for path in found.rglob("*")}
    assert files == {path.relative_to(expected) for path in expected.rglob("*")}
    name = "run/cnmf_tmp/run.nmf_idvrun_params.yaml"
    assert (found / name).read_text() == (expected / name).read_text()
    name = "run/run.overdispersed_genes.txt"
    assert (found / name).read_text() == (expected / name).read_text()
    pd.testing.assert_frame_equal(inner(found, "tpm_stats"), inner(expected, "tpm_stats"))
    replicates = inner(found, "nmf_params")
    np.random.seed(14)  # noqa: NPY002  (as cNMF does)
    seeds = np.random.randint(low=1, high=(2**31) - 1, size=2 * N_ITER)  # noqa: NPY002
    expected_replicates = inner(expected, "nmf_params").assign(nmf_seed=seeds.tolist())
    pd.testing.assert_frame_equal(replicates, expected_replicates.astype(object))
    for what in ("norm_counts", "tpm"):
        name = f"run/cnmf_tmp/run.{what}.h5ad"
        with h5py.File(found / name) as ours, h5py.File(expected / name) as theirs:
            assert_same_elements(ours, theirs)


def assert_same_elements(ours, theirs):
    """Compare two HDF5 files, but for the groups that anndata always has and needs not."""
    names: dict[str, set[str]] = {}
    for file in (ours, theirs):
        names[file.filename] = set()
        file.visit(names[file.filename].add)
    here, there = names.values()
    assert here - there <= {"layers", "obsm", "varm", "obsp", "varp", "uns"}
    assert there <= here
    for name in there:
        for key, value in theirs[name].attrs.items():
            np.testing.assert_array_equal(ours[name].attrs[key], value)
        if isinstance(theirs[name], h5py.Dataset) and theirs[name].dtype == object:
            assert ours[name][()].tolist() == theirs[name][()].tolist()
        elif isinstance(theirs[name], h5py.Dataset):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12)


def test_prepare_takes_tpm_that_is_given_and_knows_what_has_been_run(counts, tmp_path):
    counts.to_csv(tmp_path / "counts.txt", sep="\t")
    tpm = counts.div(counts.sum(axis=1), axis=0) * 1e4
    save_frame(tmp_path / "tpm.df.npz", tpm)
    run = CnmfRun(tmp_path, "run")
    options = {"tpm": tmp_path / "tpm.df.npz", "num_highvar_genes": 40}
    run.prepare(tmp_path / "counts.txt", 3, 2, beta_loss="kullback-leibler", **options)
    np.testing.assert_allclose(inner(tmp_path, "tpm_stats")["__mean"], tpm.mean())
    assert len(run.paths.genes.read_text().split("\n")) == 40
    run.factorize(1, 2)
    run.prepare(tmp_path / "counts.txt", [2, 3], 2, **options)
    assert inner(tmp_path, "nmf_params")["completed"].tolist() == [False, False, False, True]


def test_what_cannot_be_prepared_is_named(counts, tmp_path):
    path = tmp_path / "counts.txt"
    run = CnmfRun(tmp_path, "run")
    with pytest.raises(FileNotFoundError, match=r"counts\.txt"):
        run.prepare(path, [2])
    counts.to_csv(path, sep="\t")
    with pytest.raises(ValueError, match="init='nndsvd' gives one start"):
        run.prepare(path, [2], init="nndsvd")
    with pytest.raises(ValueError, match="each of components must be an integer >= 1, got 0"):
        run.prepare(path, [2, 0])
    (tmp_path / "genes.txt").write_text("gene0\nGAPDH")
    with pytest.raises(ValueError, match="1 of 2 genes are not among the .* 'GAPDH'"):
        run.prepare(path, [2], genes_file=tmp_path / "genes.txt")
    counts.iloc[:, 1:].to_csv(tmp_path / "tpm.txt", sep="\t")
    with pytest.raises(ValueError, match="give the same cells and genes"):
        run.prepare(path, [2], tpm=tmp_path / "tpm.txt")
    counts = counts.copy()
    counts.iloc[3] = 0
    counts.to_csv(path, sep="\t")
    with pytest.raises(ValueError, match="1 cells have no counts of the 20 genes .* 'cell3'"):
        run.prepare(path, [2], num_highvar_genes=20)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "components", [{3, 2}, iter([2, 3]), np.array([3, 2, 2]), [np.int64(2), 3]]
)
def test_numbers_of_components_come_in_any_collection(counts, tmp_path, components):
    counts.to_csv(tmp_path / "counts.txt", sep="\t")
    run = CnmfRun(tmp_path, "run")
    run.prepare(tmp_path / "counts.txt", components, 2)
    assert run.prepared_ks() == [2, 3]
    assert run.prepared_ks(np.int64(3)) == [3]


@pytest.mark.parametrize("components", [2.7, [2, 2.7], "23", True])
def test_what_is_no_number_of_components_is_not_rounded_to_one(tmp_path, components):
    with pytest.raises(TypeError, match="each of components must be an integer >= 1, got"):
        CnmfRun(tmp_path).prepare(tmp_path / "counts.txt", components)
    with pytest.raises(ValueError, match="components is empty"):
        CnmfRun(tmp_path).prepare(tmp_path / "counts.txt", [])


def test_counts_of_which_no_genes_can_be_chosen_are_named(counts, tmp_path):
    path = tmp_path / "counts.txt"
    twice = counts.rename(columns={counts.columns[5]: counts.columns[3]})
    for wrong, message in (
        (twice, f"1 names of genes stand .* more than once, the first is '{counts.columns[3]}'"),
        (0 * counts, f"counts of {len(counts)} cells, up to 0, have no genes that vary"),
        (counts[:1], "counts of 1 cells, up to .* at least 2 cells"),
    ):
        wrong.to_csv(path, sep="\t")
        for densify in (False, True):
            with pytest.raises(ValueError, match=message):
                CnmfRun(tmp_path).prepare(path, 2, 2, densify=densify)


# --- factorize and combine ------------------------------------------------------------------------


def test_spectra_of_each_run_are_those_of_its_seed(done, counts):
    X = scaled(counts).to_numpy()
    for k, number in ((2, 0), (3, 7)):
        found = inner(done, f"spectra.k_{k}.iter_{number}")
        assert found.index.tolist() == list(range(1, k + 1))
        assert found.columns.tolist() == counts.columns[:50].tolist()
        alone = NNMF(
            k, beta_loss="frobenius", solver="hals", max_iter=1000, random_state=1000 * k + number
        ).fit(X)
        np.testing.assert_allclose(found.to_numpy(), alone.components_, rtol=1e-6, atol=1e-9)


def test_merged_spectra_stand_run_by_run_under_the_names_of_cnmf(done):
    merged = inner(done, "spectra.k_3.merged")
    assert merged.index[:4].tolist() == [
        "iter0_topic1",
        "iter0_topic2",
        "iter0_topic3",
        "iter1_topic1",
    ]
    of_one = merged.loc[[f"iter5_topic{t}" for t in (1, 2, 3)]].to_numpy()
    np.testing.assert_array_equal(of_one, inner(done, "spectra.k_3.iter_5").to_numpy())
    assert len(merged) == 3 * N_ITER


def test_workers_share_the_runs_out_as_those_of_cnmf(folder, done):
    run = CnmfRun(folder, "run")
    written = [run.factorize(worker_i, 3) for worker_i in range(3)]
    names = [{path.name for path in paths} for paths in written]
    assert [len(paths) for paths in written] == [6, 5, 5]
    assert names[1] == {
        f"run.spectra.k_{k}.iter_{i}.df.npz" for k, i in ((2, 1), (2, 4), (2, 7), (3, 2), (3, 5))
    }
    assert len(set.union(*names)) == len(KS) * N_ITER
    for k, number in ((2, 3), (3, 6)):
        name = f"spectra.k_{k}.iter_{number}"
        np.testing.assert_allclose(inner(folder, name), inner(done, name), rtol=1e-9, atol=1e-12)


def test_runs_that_are_there_are_skipped_where_it_is_asked_for(folder):
    run = CnmfRun(folder, "run")
    mine = run.factorize(0, 2)
    assert run.factorize(0, 2, skip_completed_runs=True) == []
    mine[3].unlink()
    assert run.factorize(0, 2, skip_completed_runs=True) == [mine[3]]
    assert run.factorize(0, 2) == mine


def test_combine_wants_all_runs_or_leave_to_do_without(folder):
    run = CnmfRun(folder, "run")
    with pytest.raises(FileNotFoundError, match=r"k_3\.iter_0\.df\.npz .*`factorize` writes it"):
        run.combine(3)
    with pytest.raises(FileNotFoundError, match="no run with k=2 has left"):
        run.combine(2, skip_missing_files=True)
    run.factorize(1, 2)
    with pytest.raises(FileNotFoundError, match=r"spectra\.k_2\.iter_0"):
        run.combine()
    run.combine([3], skip_missing_files=True)
    merged = inner(folder, "spectra.k_3.merged")
    assert merged.index[::3].tolist() == [f"iter{i}_topic1" for i in (1, 3, 5, 7)]
    with pytest.raises(
        ValueError, match="components contains 9, but the run was prepared with 2, 3"
    ):
        run.combine([2, 9])


def test_a_density_of_former_spectra_is_not_left_to_cnmf(folder):
    run = CnmfRun(folder, "run")
    stale = run.paths.local_density(3)
    stale.write_bytes(b"of other spectra")
    run.factorize()
    run.combine(2)
    assert stale.exists()
    run.combine(3)
    assert not stale.exists()


def test_kullback_leibler_and_penalties_are_those_of_the_file(counts, tmp_path):
    options = {"beta_loss": "kullback-leibler", "solver": "mu", "alpha_H": 0.01, "l1_ratio": 0.5}
    prepare(tmp_path, counts, ks=[2], n_iter=2, **options)
    run = CnmfRun(tmp_path, "run")
    run.factorize()
    alone = NNMF(
        2,
        beta_loss="kullback-leibler",
        solver="accelerated-mu",
        alpha_H=0.01,
        l1_ratio=0.5,
        max_iter=1000,
        random_state=2001,
    ).fit(scaled(counts).to_numpy())
    found = inner(tmp_path, "spectra.k_2.iter_1").to_numpy()
    np.testing.assert_allclose(found, alone.components_, rtol=1e-6, atol=1e-9)


# --- k_selection and consensus --------------------------------------------------------------------


def test_k_selection_is_that_of_the_plain_steps(done, counts):
    stats = load_frame(done / "run" / "run.k_selection_stats.df.npz")
    assert stats["k"].tolist() == [2, 3]
    X = scaled(counts).to_numpy()
    for row, k in enumerate(KS):
        merged = inner(done, f"spectra.k_{k}.merged").to_numpy()
        plain = plain_consensus(X, merged, k, density_threshold=2)
        assert stats["silhouette"][row] == pytest.approx(plain.silhouette)
        assert stats["prediction_error"][row] == pytest.approx(plain.prediction_error)
    assert (done / "run" / "run.k_selection.png").read_bytes().startswith(b"\x89PNG")


def test_the_consensus_is_that_of_the_plain_steps(done, counts):
    """cNMF's steps from the merged spectra on, with pandas."""
    merged = inner(done, "spectra.k_3.merged")
    plain = plain_consensus(scaled(counts).to_numpy(), merged.to_numpy(), 3)
    density = inner(done, "local_density_cache.k_3.merged")
    assert density.index.tolist() == merged.index.tolist()
    np.testing.assert_allclose(density["local_density"], plain.local_density, rtol=1e-6, atol=1e-7)
    spectra = inner(done, "spectra.k_3.dt_0_5.consensus")
    np.testing.assert_allclose(spectra, plain.spectra, rtol=1e-9)
    assert spectra.index.tolist() == [1, 2, 3]

    tpm = counts.div(counts.sum(axis=1), axis=0) * 1e6
    shares = plain.usages / plain.usages.sum(1, keepdims=True)
    spectra_tpm = inner(done, "gene_spectra_tpm.k_3.dt_0_5")
    np.testing.assert_allclose(
        spectra_tpm, refit(tpm.to_numpy().T, shares.T).T, rtol=1e-6, atol=1e-3
    )
    assert spectra_tpm.columns.tolist() == counts.columns.tolist()

    z_scores = ((tpm - tpm.mean()) / tpm.std(ddof=0)).to_numpy()
    scores = inner(done, "gene_spectra_score.k_3.dt_0_5")
    expected = np.linalg.lstsq(plain.usages, z_scores)[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)

    chosen = counts.columns[:50]
    in_units = spectra_tpm[chosen] / tpm[chosen].std(ddof=0)
    usages = inner(done, "usages.k_3.dt_0_5.consensus")
    expected = refit((tpm[chosen] / tpm[chosen].std(ddof=1)).to_numpy(), in_units.to_numpy())
    np.testing.assert_allclose(usages, expected, rtol=1e-6, atol=1e-9)
    assert usages.index.tolist() == counts.index.tolist()

    starcat = inner(done, "starcat_spectra.k_3.dt_0_5")
    of_million = spectra_tpm.div(spectra_tpm.sum(axis=1), axis=0) * 1e6
    expected = of_million[chosen] / tpm[chosen].std(ddof=0)
    np.testing.assert_allclose(starcat, expected, rtol=1e-9)
    assert starcat.index.tolist() == ["GEP1", "GEP2", "GEP3"]


def test_every_table_is_there_as_text_too(done):
    folder = done / "run"
    texts = sorted(path.name for path in folder.glob("*.dt_0_5*.txt"))
    assert texts == [
        "run.gene_spectra_score.k_3.dt_0_5.txt",
        "run.gene_spectra_tpm.k_3.dt_0_5.txt",
        "run.spectra.k_3.dt_0_5.consensus.txt",
        "run.starcat_spectra.k_3.dt_0_5.txt",
        "run.usages.k_3.dt_0_5.consensus.txt",
    ]
    for name in texts:
        text = pd.read_csv(folder / name, sep="\t", index_col=0)
        table = load_frame(folder / "cnmf_tmp" / name.replace(".txt", ".df.npz"))
        np.testing.assert_array_equal(text, table)
        assert text.index.astype(str).tolist() == table.index.astype(str).tolist()
        assert text.columns.astype(str).tolist() == table.columns.astype(str).tolist()


def test_spectra_that_scikit_learn_has_found_come_to_the_same_consensus(folder, done, counts):
    """The other way round: `cnmf factorize` there, the rest here."""
    X = scaled(counts).to_numpy()
    for k in KS:
        for number in range(N_ITER):
            options = PARAMETERS | {"random_state": 1000 * k + number}
            _, H, _ = non_negative_factorization(X, n_components=k, **options)
            frame = pd.DataFrame(H, index=range(1, k + 1), columns=counts.columns[:50])
            name = f"run.spectra.k_{k}.iter_{number}.df.npz"
            save_frame(folder / "run" / "cnmf_tmp" / name, frame)
    run = CnmfRun(folder, "run")
    run.combine()
    found = run.consensus(3, 0.2)
    here = inner(done, "spectra.k_3.dt_0_5.consensus").to_numpy()
    assert matched_correlation(found.spectra.values, here).min() > 0.99
    usages = inner(done, "usages.k_3.dt_0_5.consensus").to_numpy()
    assert matched_correlation(found.usages.values.T, usages.T).min() > 0.99
    assert (folder / "run" / "run.usages.k_3.dt_0_2.consensus.txt").exists()


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_sparse_counts_come_to_what_dense_ones_do(counts, tmp_path, beta_loss, monkeypatch):
    results = {}
    for kind in ("dense", "sparse"):
        folder = tmp_path / kind
        prepare(folder, counts, ks=[3], n_iter=3, sparse=kind == "sparse", beta_loss=beta_loss)
        run = CnmfRun(folder, "run")
        run.factorize()
        if kind == "sparse":  # from the same spectra, so that all that differs is rounding
            for number in range(3):
                single = f"run/cnmf_tmp/run.spectra.k_3.iter_{number}.df.npz"
                there, here = (load_frame(tmp_path / kind / single) for kind in ("dense", "sparse"))
                assert matched_correlation(there.to_numpy(), here.to_numpy()).min() > 0.99
                shutil.copy(tmp_path / "dense" / single, folder / single)
            for format_ in ("csr", "csc"):  # nothing may be made dense
                monkeypatch.setattr(getattr(scipy.sparse, f"{format_}_matrix"), "toarray", None)
        run.combine()
        results[kind] = run.consensus(3, 2.0), run.k_selection_plot()
    for name in ("usages", "spectra", "spectra_tpm", "spectra_scores"):
        dense, sparse = (getattr(results[kind][0], name).values for kind in results)
        np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6 * np.abs(dense).max())
    dense, sparse = (results[kind][1].prediction_error for kind in results)
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)


def test_the_last_refit_and_the_sum_of_spectra_are_a_choice(folder, done):
    shutil.copytree(done / "run", folder / "run", dirs_exist_ok=True)
    run = CnmfRun(folder, "run")
    found = run.consensus(3, refit_usage=False, normalize_tpm_spectra=True)
    np.testing.assert_allclose(found.spectra_tpm.values.sum(1), 1e6)
    former = inner(done, "gene_spectra_tpm.k_3.dt_0_5").to_numpy()
    np.testing.assert_allclose(
        found.spectra_tpm.values, 1e6 * former / former.sum(1, keepdims=True), rtol=1e-9
    )
    assert np.abs(found.usages.values - inner(done, "usages.k_3.dt_0_5.consensus")).max().max() > 1


# --- what stands beside ---------------------------------------------------------------------------


def test_what_is_not_there_is_named_with_the_step_that_writes_it(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nmf_params\.df\.npz .*`prepare` writes it"):
        CnmfRun(tmp_path, "other").factorize()
    run = CnmfRun(folder, "run")
    with pytest.raises(FileNotFoundError, match=r"k_3\.merged\.df\.npz .*`combine` writes it"):
        run.consensus(3)
    with pytest.raises(ValueError, match=r"worker_i must be an integer in \[0, 1\], got 2"):
        run.factorize(2, 2)
    run.paths.counts.unlink()
    with pytest.raises(FileNotFoundError, match=r"norm_counts\.h5ad .*`prepare` writes it"):
        run.factorize()


def test_spectra_of_other_genes_are_refused(folder):
    run = CnmfRun(folder, "run")
    save_frame(run.paths.merged_spectra(3), pd.DataFrame(np.eye(3), columns=["a", "b", "c"]))
    with pytest.raises(ValueError, match="is of 3 genes that are not the 50 of"):
        run.consensus(3)


def test_runs_of_no_components_are_refused(folder):
    run = CnmfRun(folder, "run")
    columns = ["n_components", "iter", "nmf_seed", "completed"]
    save_frame(run.paths.replicates, pd.DataFrame([[0, 0, 1, False]], columns=columns))
    with pytest.raises(ValueError, match=r"n_components in .*df\.npz must be .* >= 1, got 0"):
        run.factorize()


def test_one_start_for_all_runs_is_refused(counts, tmp_path):
    prepare(tmp_path, counts, ks=[2], n_iter=2, init="nndsvd")
    with pytest.raises(ValueError, match="init='nndsvd' gives one start"):
        CnmfRun(tmp_path, "run").factorize()


def test_runs_that_have_not_converged_are_told(counts, tmp_path):
    prepare(tmp_path, counts, ks=[2], n_iter=2, max_iter=10)
    with pytest.warns(ConvergenceWarning, match="100% of the runs with n_components=2"):
        CnmfRun(tmp_path, "run").factorize()


def test_no_file_is_written_in_place(counts, tmp_path):
    """A step that is killed leaves each file as it was: what has its name is a new one."""
    counts.to_csv(tmp_path / "counts.txt", sep="\t")
    run, seen = CnmfRun(tmp_path, "run"), tmp_path / "seen"

    def steps():
        run.prepare(tmp_path / "counts.txt", 2, 3, seed=0, num_highvar_genes=40)
        run.factorize()
        run.combine()
        run.k_selection_plot()
        run.consensus(2, 2.0, show_clustering=True)

    steps()
    files = [path for path in run.paths.genes.parent.rglob("*") if path.is_file()]
    seen.mkdir()
    for path in files:
        (seen / path.name).hardlink_to(path)
    steps()
    assert {path.suffix for path in files} == {".h5ad", ".npz", ".png", ".txt", ".yaml"}
    assert [path.name for path in files if path.samefile(seen / path.name)] == []
    assert len([path for path in run.paths.genes.parent.rglob("*") if path.is_file()]) == len(files)


def test_nothing_warns_on_the_way(folder):
    run = CnmfRun(folder, "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.factorize()
        run.combine()
        run.consensus(3, 2.0)
