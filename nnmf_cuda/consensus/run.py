"""A run of dylkot/cNMF in its folder: factorised and brought to a consensus by this package."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.consensus.clustergram import draw_clustergram
from nnmf_cuda.consensus.counts import (
    MILLION,
    mean_and_variance,
    overdispersed,
    per_million,
    read_counts,
    scaled_to_unit_variance,
    z_score_effects,
)
from nnmf_cuda.consensus.estimator import (
    KEEP_ALL,
    ConsensusNNMF,
    KSelection,
    most_used_first,
    replicate_seeds,
    usage_shares,
)
from nnmf_cuda.consensus.files import (
    CnmfPaths,
    Frame,
    read_frame,
    write_frame,
    write_text_frame,
)
from nnmf_cuda.consensus.h5ad import Annotated, read_h5ad, write_h5ad
from nnmf_cuda.consensus.spectra import consensus_spectra
from nnmf_cuda.nnmf.inputs import check_integer
from nnmf_cuda.ops import beta_loss_to_float
from nnmf_cuda.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

_PARAMETERS = ("alpha_W", "alpha_H", "l1_ratio", "beta_loss", "tol", "max_iter", "init")
"""What is taken from a run's parameters; its solver is one of scikit-learn's."""


@dataclass(frozen=True)
class CnmfResults:
    """What `CnmfRun.consensus` finds and writes; rows of spectra are GEPs, from 1.

    Attributes
    ----------
    usages : Frame
        Usage of each GEP in each cell, not normalised.
    spectra : Frame
        Consensus spectra of the genes that vary most, each with the sum 1.
    spectra_tpm : Frame
        Spectra of all genes, in transcripts per million.
    spectra_scores : Frame
        How many standard deviations a unit of usage adds to each gene (z-scores).
    n_spectra, n_kept : int
        Spectra of all runs, and those that were clustered.
    """

    usages: Frame
    spectra: Frame
    spectra_tpm: Frame
    spectra_scores: Frame
    n_spectra: int
    n_kept: int


@dataclass(frozen=True)
class _Replicate:
    """One run that is asked for."""

    k: int
    number: int  # among those of this k
    seed: int


class CnmfRun:
    """The steps of cNMF [1]_ on the files of cNMF 1.4 to 1.7, which may change hands between steps.

    What `cnmf prepare` has written is factorised here, and `cnmf consensus` goes on from that; or
    the other way round, step by step. Steps and files have the names that they have there.

    Parameters
    ----------
    output_dir : path, default="."
        cNMF's ``--output-dir``.
    name : str, default="cNMF"
        cNMF's ``--name``: of the folder in it, and the beginning of the name of each file.
    device : None, "auto", str or torch.device, default=None
        Where to compute, see :class:`NNMF`; None is the CPU.
    verbose : int, default=0
        Above 0, a progress bar of the runs is shown, where stderr is a terminal.

    Notes
    -----
    The loss, penalties, `tol` and `max_iter` are those that `cnmf prepare` has written. In place of
    scikit-learn's solvers stand "hals" for the Frobenius norm, "accelerated-mu" for a `beta_loss`
    in [1, 2) and "mu" for others. A seed means another start here than there, so that single runs
    differ and what they agree on does not.

    Tables are read without executing what is pickled in them. The counts are read with h5py.

    References
    ----------
    .. [1] https://github.com/dylkot/cNMF
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = ".",
        name: str = "cNMF",
        *,
        device: str | torch.device | None = None,
        verbose: int = 0,
    ) -> None:
        self.paths = CnmfPaths(Path(output_dir), name)
        self.device = device
        self.verbose = verbose

    def prepare(
        self,
        counts: str | os.PathLike[str],
        components: Any,
        n_iter: int = 100,
        *,
        densify: bool = False,
        tpm: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        beta_loss: str = "frobenius",
        num_highvar_genes: int = 2000,
        genes_file: str | os.PathLike[str] | None = None,
        alpha_usage: float = 0.0,
        alpha_spectra: float = 0.0,
        init: str = "random",
        max_iter: int = 1000,
    ) -> None:
        """Choose the genes that vary most, scale their counts, and deal out seeds of runs.

        Parameters
        ----------
        counts : path
            Counts, cells by genes: an .h5ad file, a table of cNMF's (.npz) or a tab-delimited one,
            names of genes in its first line and of cells in its first column.
        components : int or iterable of int
            Numbers of components to run.
        n_iter : int, default=100
            Runs of each.
        densify : bool, default=False
            Store all as dense arrays.
        tpm : path, optional
            Transcripts per million of the same cells and genes, in one of the formats of counts; by
            default the counts of each cell scaled to the sum 1e6.
        seed : int, optional
            Of the seeds; the same gives the seeds that cNMF deals out.
        beta_loss : {"frobenius", "kullback-leibler", "itakura-saito"}, default="frobenius"
            Divergence that is minimised.
        num_highvar_genes : int, default=2000
            How many genes to choose.
        genes_file : path, optional
            The genes to choose instead, one a line.
        alpha_usage, alpha_spectra : float, default=0.0
            Regularisation of usages and spectra.
        init : {"random", "nndsvdar"}, default="random"
            Kind of start.
        max_iter : int, default=1000
            Most iterations of each run.

        Raises
        ------
        FileNotFoundError
            If a file is not there.
        ValueError
            If a file is not what it should be, or a cell has no counts of the genes chosen.
        """
        import yaml  # type: ignore[import-untyped]

        ks = _ascending(components)
        check_integer("n_iter", n_iter, low=1)
        check_integer("num_highvar_genes", num_highvar_genes, low=1)
        parameters = {
            "alpha_W": alpha_usage,
            "alpha_H": alpha_spectra,
            "l1_ratio": 0.0,
            "beta_loss": beta_loss,
            "solver": "cd" if beta_loss == "frobenius" else "mu",  # of scikit-learn
            "tol": 1e-4,
            "max_iter": max_iter,
            "init": init,
        }
        self._model(parameters)._check_parameters()
        read = read_counts(Path(counts), dense=densify)
        _check_counts(read)
        in_tpm = per_million(read.X) if tpm is None else read_counts(Path(tpm), dense=densify).X
        if in_tpm.shape != read.X.shape:
            raise ValueError(
                f"tpm has the shape {in_tpm.shape}, but the counts {read.X.shape}: give the same "
                "cells and genes in the same order"
            )
        mean, variance = mean_and_variance(in_tpm)
        if genes_file is None:
            places = overdispersed(mean, variance, num_highvar_genes)
            chosen = read.genes[places]
        else:
            chosen = np.array(Path(genes_file).read_text(encoding="utf-8").split("\n"))
            chosen = chosen[chosen != ""]
            places = np.array(read.places(chosen))
        scaled = scaled_to_unit_variance(read.X[:, places])
        silent = np.flatnonzero(np.asarray(scaled.sum(1)).ravel() == 0)
        if len(silent):
            raise ValueError(
                f"{len(silent)} cells have no counts of the {len(chosen)} genes chosen, the first "
                f"is {str(read.cells[silent[0]])!r}: leave such cells out, or choose more genes"
            )
        seeds = replicate_seeds(seed, len(ks) * n_iter).tolist()
        rows = [(k, number) for k in ks for number in range(n_iter)]
        there = [self.paths.spectra(*row).exists() for row in rows]
        columns = zip(rows, seeds, there, strict=True)
        replicates = np.array([[*row, one, done] for row, one, done in columns], dtype=object)
        self.paths.make()
        write_h5ad(self.paths.tpm, Annotated(in_tpm, read.cells, read.genes))
        stats = np.stack([mean, np.sqrt(variance)], 1)
        write_frame(self.paths.tpm_stats, Frame(stats, read.genes, np.array(["__mean", "__std"])))
        write_h5ad(self.paths.counts, Annotated(scaled, read.cells, chosen))
        with whole_file(self.paths.genes) as partial:
            partial.write_text("\n".join(chosen.tolist()), encoding="utf-8")
        names = np.array(["n_components", "iter", "nmf_seed", "completed"])
        write_frame(self.paths.replicates, Frame(replicates, np.arange(len(rows)), names))
        with whole_file(self.paths.parameters) as partial:
            partial.write_text(yaml.dump(parameters), encoding="utf-8")

    def factorize(
        self, worker_i: int = 0, total_workers: int = 1, *, skip_completed_runs: bool = False
    ) -> list[Path]:
        """Run NMF from the seeds that `prepare` has dealt out, and write their spectra.

        Parameters
        ----------
        worker_i, total_workers : int, default=0, 1
            Runs are shared out to workers, which are counted from 0.
        skip_completed_runs : bool, default=False
            Leave out runs whose spectra are there.

        Returns
        -------
        list of Path
            The files written.

        Raises
        ------
        FileNotFoundError
            If `prepare` has not written its files here.
        ValueError
            If a file is not what cNMF writes, or for parameters that NMF cannot be run with.

        Warns
        -----
        ConvergenceWarning
            If some runs have not converged.
        """
        check_integer("total_workers", total_workers, low=1)
        check_integer("worker_i", worker_i, low=0, high=total_workers - 1)
        of_k: dict[int, list[_Replicate]] = defaultdict(list)
        for one in self._replicates()[worker_i::total_workers]:
            if not (skip_completed_runs and self.paths.spectra(one.k, one.number).exists()):
                of_k[one.k].append(one)
        counts = read_h5ad(_existing(self.paths.counts))
        model = self._model()
        matrix = model._read_training(counts.X)
        problem, written = model._problem(matrix), []
        for k, replicates in of_k.items():
            check_integer(f"n_components in {self.paths.replicates}", k, low=1)
            seeds = np.array([one.seed for one in replicates], dtype=np.int64)
            runs = model._runs(matrix, problem, k, seeds)
            converged = 0
            with model._progress(f"k={k}", "run", runs, total=len(seeds)) as shown:
                for run in shown:
                    spectra = Frame(run.H.double().cpu().numpy(), np.arange(1, k + 1), counts.genes)
                    path = self.paths.spectra(k, replicates[run.restart].number)
                    write_frame(path, spectra)
                    written.append(path)
                    converged += run.converged
            model._warn_unless_converged(k, converged / len(seeds))
        return sorted(written)

    def combine(self, components: Any = None, *, skip_missing_files: bool = False) -> list[Path]:
        """Merge the spectra of all runs of each number of components.

        Parameters
        ----------
        components : int or iterable of int, optional
            Numbers of components; by default all that `prepare` was given.
        skip_missing_files : bool, default=False
            Take the runs that are there, if some are not.

        Returns
        -------
        list of Path
            The files written.

        Raises
        ------
        FileNotFoundError
            If the spectra of a run are not there.
        ValueError
            If the run was not prepared with one of `components`, or a file is not what cNMF writes.
        """
        replicates, written = self._replicates(), []
        for k in self.prepared_ks(components):
            values, index, genes = [], [], None
            for one in sorted(
                (one for one in replicates if one.k == k), key=lambda one: one.number
            ):
                path = self.paths.spectra(k, one.number)
                if skip_missing_files and not path.exists():
                    continue
                spectra = read_frame(_existing(path, "factorize"))
                values.append(spectra.values)
                index += [f"iter{one.number}_topic{t}" for t in range(1, k + 1)]
                genes = spectra.columns
            if genes is None:
                raise FileNotFoundError(
                    f"no run with k={k} has left {self.paths.spectra(k, 0)} or others: factorize"
                )
            path = self.paths.merged_spectra(k)
            write_frame(path, Frame(np.concatenate(values), np.array(index), genes))
            # cNMF would take the density of what was merged before for that of this.
            self.paths.local_density(k).unlink(missing_ok=True)
            written.append(path)
        return written

    def k_selection_plot(self, components: Any = None) -> KSelection:
        """Compare numbers of components by stability and error; write both, and their plot.

        Parameters
        ----------
        components : int or iterable of int, optional
            Numbers of components; by default all that `prepare` was given.

        Returns
        -------
        KSelection
            As written to ``NAME.k_selection_stats.df.npz`` and drawn in ``NAME.k_selection.png``.

        Raises
        ------
        FileNotFoundError
            If a step before has not written its files.
        ValueError
            If the run was not prepared with one of `components`, or a file is not what cNMF writes.
        """
        counts = read_h5ad(_existing(self.paths.counts))
        ks, rows = self.prepared_ks(components), []
        model = self._model()
        problem = model._problem(model._read_training(counts.X))
        for k in ks:
            merged = self._merged(k, counts)
            rows.append((k, KEEP_ALL, *model._stability_and_error(problem, merged.values, k)))
        table = np.array(rows, dtype=np.float64)
        names = np.array(["k", "local_density_threshold", "silhouette", "prediction_error"])
        write_frame(self.paths.k_selection, Frame(table, np.arange(len(ks)), names))
        selection = KSelection(np.array(ks), table[:, 2], table[:, 3])
        _save(self.paths.k_selection_plot, lambda figure: selection.plot(figure.subplots()))
        return selection

    def consensus(
        self,
        k: int,
        density_threshold: float = 0.5,
        local_neighborhood_size: float = 0.3,
        *,
        show_clustering: bool = False,
        refit_usage: bool = True,
        normalize_tpm_spectra: bool = False,
    ) -> CnmfResults:
        """Cluster the merged spectra, refit usages and spectra of all genes, and write them.

        Parameters
        ----------
        k : int
            Number of components.
        density_threshold, local_neighborhood_size : float, default=0.5, 0.3
            See :class:`ConsensusNNMF`. As in cNMF the threshold is part of the files' names.
        show_clustering : bool, default=False
            Draw the distances between spectra and their local densities, to choose the threshold
            by: ``NAME.clustering.k_K.dt_THRESHOLD.png``.
        refit_usage : bool, default=True
            Fit the usages a last time, to the TPM of the genes that vary most, in units of their
            standard deviations.
        normalize_tpm_spectra : bool, default=False
            Scale each spectrum of all genes to the sum 1e6.

        Returns
        -------
        CnmfResults
            As written: usages, consensus spectra, spectra in TPM and scores, and the reference that
            starCAT takes.

        Raises
        ------
        FileNotFoundError
            If a step before has not written its files.
        ValueError
            As :meth:`ConsensusNNMF.fit`, or where a file is not what cNMF writes.
        """
        counts, tpm = read_h5ad(_existing(self.paths.counts)), read_h5ad(_existing(self.paths.tpm))
        merged = self._merged(k, counts)
        found = consensus_spectra(
            merged.values,
            k,
            density_threshold=density_threshold,
            local_neighborhood_size=local_neighborhood_size,
        )
        density = Frame(found.local_density[:, None], merged.index, np.array(["local_density"]))
        write_frame(self.paths.local_density(k), density)
        if show_clustering:
            _save(
                self.paths.clustering(k, density_threshold),
                lambda figure: draw_clustergram(
                    figure, merged.values, found.labels, found.local_density, density_threshold
                ),
            )
        found, usages = most_used_first(found, self._usages(counts.X, found.spectra))
        geps = np.arange(1, k + 1)
        spectra_tpm = self._usages(tpm.X.T, usage_shares(usages).T).T
        if normalize_tpm_spectra:
            spectra_tpm *= MILLION / spectra_tpm.sum(1, keepdims=True)
        mean, variance = mean_and_variance(tpm.X)
        scores = z_score_effects(usages, tpm.X, mean, variance)
        names_of_genes = _existing(self.paths.genes).read_text(encoding="utf-8")
        chosen = np.array(names_of_genes.rstrip("\n").split("\n"))
        places = tpm.places(chosen)
        if refit_usage:
            scaled = scaled_to_unit_variance(tpm.X[:, places])
            usages = self._usages(scaled, spectra_tpm[:, places] / np.sqrt(variance[places]))
        results = CnmfResults(
            usages=Frame(usages, counts.cells, geps),
            spectra=Frame(found.spectra, geps, counts.genes),
            spectra_tpm=Frame(spectra_tpm, geps, tpm.genes),
            spectra_scores=Frame(scores, geps, tpm.genes),
            n_spectra=len(found.labels),
            n_kept=int((found.labels >= 0).sum()),
        )
        of_million = spectra_tpm[:, places] * (MILLION / spectra_tpm.sum(1, keepdims=True))
        names = np.array([f"GEP{gep}" for gep in geps])
        files = {
            "usages.consensus": results.usages,
            "spectra.consensus": results.spectra,
            "gene_spectra_tpm": results.spectra_tpm,
            "gene_spectra_score": results.spectra_scores,
            "starcat_spectra": Frame(of_million / np.sqrt(variance[places]), names, chosen),
        }
        for what, frame in files.items():
            for_programs, as_text = self.paths.result(what, k, density_threshold)
            write_frame(for_programs, frame)
            write_text_frame(as_text, frame)
        return results

    def prepared_ks(self, components: Any = None) -> list[int]:
        """Return the numbers of components that a step is to be taken for.

        Parameters
        ----------
        components : int or iterable of int, optional
            Those asked for; by default all that `prepare` was given.

        Returns
        -------
        list of int
            Ascending, each once.

        Raises
        ------
        FileNotFoundError
            If `prepare` has not written its files here.
        ValueError
            If the run was not prepared with one of them.
        """
        prepared = sorted({one.k for one in self._replicates()})
        if components is None:
            return prepared
        ks = _ascending(components)
        unknown = [k for k in ks if k not in prepared]
        if unknown:
            raise ValueError(
                f"components contains {unknown[0]}, but the run was prepared with "
                f"{', '.join(map(str, prepared))}"
            )
        return ks

    def _usages(self, X: Any, spectra: FloatArray) -> FloatArray:
        """Return what minimises the run's objective with these spectra (k, f) held."""
        model = self._model()
        problem = model._problem(model._read_training(X))
        return model._usages(problem, spectra).double().cpu().numpy()

    def _model(self, parameters: dict[str, Any] | None = None) -> ConsensusNNMF:
        """Return an estimator with the parameters of this run, by default as they are on disk.

        It is never fitted: its parts are told the number of components and the seeds.
        """
        known = self._parameters() if parameters is None else parameters
        given = {name: known[name] for name in _PARAMETERS if name in known}
        beta_loss = beta_loss_to_float(given.get("beta_loss", "frobenius"))
        solver = "hals" if beta_loss == 2 else "accelerated-mu" if 1 <= beta_loss < 2 else "mu"
        return ConsensusNNMF(
            1, n_init=2, solver=solver, device=self.device, verbose=self.verbose, **given
        )

    def _parameters(self) -> dict[str, Any]:
        """Return what `prepare` has written for all runs."""
        import yaml

        path = _existing(self.paths.parameters)
        try:
            known = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} holds no parameters: {error}") from error
        if not isinstance(known, dict):
            raise ValueError(f"{path} holds no parameters, but {known!r:.40}")
        return known

    def _replicates(self) -> list[_Replicate]:
        """Return the runs that `prepare` has asked for, in its order."""
        frame = read_frame(_existing(self.paths.replicates))
        columns = [frame.column(name) for name in ("n_components", "iter", "nmf_seed")]
        rows = zip(*columns, strict=True)
        return [_Replicate(int(k), int(number), int(seed)) for k, number, seed in rows]

    def _merged(self, k: int, counts: Annotated) -> Frame:
        """Return the merged spectra, of the genes of the counts."""
        path = self.paths.merged_spectra(k)
        merged = read_frame(_existing(path, "combine"))
        if merged.columns.tolist() != counts.genes.tolist():
            raise ValueError(
                f"{path} is of {len(merged.columns)} genes that are not the {len(counts.genes)} of "
                f"{self.paths.counts}: factorize and combine after `prepare`"
            )
        return merged


def _existing(path: Path, step: str = "prepare") -> Path:
    """Return the path of a file that a step has written."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: `{step}` writes it")
    return path


def _ascending(components: Any) -> list[int]:
    """Return the numbers of components that a user asks for, each once."""
    ks = [components] if np.ndim(components) == 0 else components
    if isinstance(components, Iterable) and not isinstance(components, str | np.ndarray):
        ks = list(components)
    if len(ks) == 0:
        raise ValueError("components is empty; give numbers of components, such as range(5, 10)")
    for k in ks:
        check_integer("each of components", k, low=1)
    return sorted({int(k) for k in ks})


def _check_counts(counts: Annotated) -> None:
    """Raise for counts of which no genes can be chosen by name and variance."""
    names, times = np.unique(counts.genes, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"{(times > 1).sum()} names of genes stand in the counts more than once, the first is "
            f"{str(names[times > 1][0])!r}: make them unique, as AnnData.var_names_make_unique does"
        )
    if len(counts.cells) < 2 or counts.X.max() <= 0:
        raise ValueError(
            f"counts of {len(counts.cells)} cells, up to {counts.X.max():g}, have no genes that "
            "vary: give counts >= 0 of at least 2 cells"
        )


def _save(path: Path, draw: Callable[[Figure], object]) -> None:
    """Write a figure apart from pyplot, whose backend and open figures are the user's."""
    from matplotlib.figure import Figure

    figure = Figure()
    draw(figure)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=250)
