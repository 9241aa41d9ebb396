"""`nnmf-cuda cnmf`: options as cNMF spells them, and one line for what cannot be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.cli.main import main

pytest.importorskip("h5py")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    from tests.consensus.prepared import planted_cells, prepare

    monkeypatch.chdir(tmp_path)
    counts = planted_cells(rng, n_cells=60, n_genes=40)
    counts.to_csv("counts.txt", sep="\t")
    return prepare(tmp_path, counts, ks=[2, 3], n_iter=3, name="run", n_genes=30)


def test_workers_share_what_prepare_has_dealt_out(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for worker in range(2):
        shared = ["--worker-index", str(worker), "--total-workers", "2"]
        assert main(["cnmf", "factorize", "--name", "run", *shared]) == 0
        assert "3 runs written to run/cnmf_tmp" in capsys.readouterr().out
    assert main(["cnmf", "factorize", "--name=run", "--skip-completed-runs"]) == 0
    assert "0 runs written" in capsys.readouterr().out
    assert main(["cnmf", "combine", "--name", "run", "-k", "2", "3"]) == 0
    assert capsys.readouterr().out.count("wrote ") == 2


def test_prepare_takes_the_options_of_cnmf(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "cnmf prepare --output-dir other --name it -c counts.txt -k 4 2 -n 5 --seed 1"
    options = "--numgenes 20 --beta-loss kullback-leibler --max-nmf-iter 300 --densify"
    assert main([*command.split(), *options.split()]) == 0
    from tests.consensus.prepared import load_frame

    folder = prepared / "other" / "it"
    assert len((folder / "it.overdispersed_genes.txt").read_text().split()) == 20
    replicates = load_frame(folder / "cnmf_tmp" / "it.nmf_params.df.npz")
    assert replicates["n_components"].tolist() == [2] * 5 + [4] * 5
    parameters = (folder / "cnmf_tmp" / "it.nmf_idvrun_params.yaml").read_text()
    assert "beta_loss: kullback-leibler" in parameters
    assert "max_iter: 300" in parameters


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("prepar", "invalid choice: 'prepar'"),
        ("prepare -k 3", "prepare needs --counts"),
        ("prepare -c counts.txt", "prepare needs --components"),
        ("prepare -c none.txt -k 3", "none.txt"),
        ("factorize --name other", "other.nmf_params.df.npz is not there: `prepare` writes it"),
        ("combine --name run", "run.spectra.k_2.iter_0.df.npz"),
        ("consensus --name run -k 2", "k_2.merged.df.npz is not there: `combine` writes it"),
        ("consensus --name run -k 7", "contains 7, but the run was prepared with 2, 3"),
        ("factorize --name run --worker-index 3", "worker_i must be an integer in [0, 0], got 3"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    prepared: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cnmf", *command.split()]) == 2
    line = capsys.readouterr().err
    assert line.startswith("nnmf-cuda: error: ")
    assert line.count("\n") == 1
    assert message in line
