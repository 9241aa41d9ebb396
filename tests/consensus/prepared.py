"""What `cnmf prepare` (1.7) leaves on disk, written with pandas and h5py, and what it means."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import scipy.sparse
import yaml

PARAMETERS = {
    "alpha_H": 0.0,
    "alpha_W": 0.0,
    "beta_loss": "frobenius",
    "init": "random",
    "l1_ratio": 0.0,
    "max_iter": 1000,
    "solver": "cd",
    "tol": 1e-4,
}


def planted_cells(rng, *, n_cells=120, n_genes=80, k=3):
    """Counts (cells by genes) of programs that cells mix, as integers with names."""
    programs = rng.lognormal(0, 1, n_genes) * rng.lognormal(0, 1.2, (k, n_genes))
    programs /= programs.sum(1, keepdims=True)
    usages = rng.dirichlet(np.full(k, 0.3), n_cells)
    depths = 4 * n_genes * rng.lognormal(0, 0.3, (n_cells, 1))
    counts = pd.DataFrame(
        rng.poisson(depths * usages @ programs),
        index=[f"cell{i}" for i in range(n_cells)],
        columns=[f"gene{i}" for i in range(n_genes)],
    )
    return counts.loc[:, counts.sum() > 0]


def save_frame(path, frame):
    """Write a table as cNMF does."""
    np.savez_compressed(
        path, data=frame.to_numpy(), index=objects(frame.index), columns=objects(frame.columns)
    )


def objects(names):
    """Return names as cNMF's pandas has them."""
    return np.array(names, dtype=None if pd.api.types.is_numeric_dtype(names) else object)


def load_frame(path):
    """Read a table as cNMF does."""
    with np.load(path, allow_pickle=True) as file:
        return pd.DataFrame(**file)


def save_h5ad(path, X, cells, genes, *, index="string-array"):
    """Write what anndata 0.12 does for X, an array or a CSR or CSC matrix."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        if scipy.sparse.issparse(X):
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{X.format}_matrix", "encoding-version": "0.1.0"})
            group.attrs["shape"] = X.shape
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(X, name)
        else:
            file["X"] = X
            file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for table, names in (("obs", cells), ("var", genes)):
            group = file.create_group(table)
            group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
            group.attrs.update({"_index": "_index", "column-order": np.array([])})
            strings = np.array(list(names), dtype=object)
            if index == "string-array":
                group["_index"] = strings
            else:  # of a pandas with strings of its own
                group.create_group("_index")["values"] = strings
                group["_index"]["mask"] = np.zeros(len(strings), dtype=bool)
            group["_index"].attrs.update({"encoding-type": index, "encoding-version": "0.2.0"})


def prepare(folder, counts, *, ks, n_iter, name="run", sparse=False, n_genes=50, **parameters):
    """Write the files of `cnmf prepare` for these counts, the first `n_genes` being chosen."""
    inner = folder / name / "cnmf_tmp"
    inner.mkdir(parents=True)
    tpm = counts.div(counts.sum(axis=1), axis=0) * 1e6
    chosen = counts.columns[:n_genes]
    scaled = counts[chosen] / counts[chosen].std(ddof=1)
    as_stored = scipy.sparse.csr_matrix if sparse else np.asarray
    for what, frame in (("norm_counts", scaled), ("tpm", tpm)):
        X = as_stored(frame.to_numpy())
        save_h5ad(inner / f"{name}.{what}.h5ad", X, counts.index, frame.columns)
    stats = pd.DataFrame({"__mean": tpm.mean(), "__std": tpm.std(ddof=0)})
    save_frame(inner / f"{name}.tpm_stats.df.npz", stats)
    (folder / name / f"{name}.overdispersed_genes.txt").write_text("\n".join(chosen))
    rows = [[k, i, 1000 * k + i, False] for k in ks for i in range(n_iter)]
    columns = ["n_components", "iter", "nmf_seed", "completed"]
    save_frame(inner / f"{name}.nmf_params.df.npz", pd.DataFrame(rows, columns=columns))
    with (inner / f"{name}.nmf_idvrun_params.yaml").open("w") as file:
        yaml.dump(PARAMETERS | parameters, file)
    return folder
