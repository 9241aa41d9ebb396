"""The command `nnmf-cuda cnmf`: the steps of cNMF under the options that they have there."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from nnmf_cuda.cli.options import OptionParser, show

_STEPS = {
    "prepare": "choose genes, scale their counts, deal out seeds",
    "factorize": "run NMF from each seed",
    "combine": "merge the spectra of all runs",
    "k_selection_plot": "stability and error of each number of components",
    "consensus": "cluster the spectra, refit usages and spectra of all genes",
}

_ABOUT = """\
Consensus NMF on the files of dylkot/cNMF: take its command line and write nnmf-cuda before it.
Steps of either may follow those of the other. Not there: batch correction
and counts in .mtx.
"""


def cnmf_parser() -> OptionParser:
    """Return the parser, whose options are spelt as those of cNMF."""
    parser = OptionParser(description=_ABOUT, usage="nnmf-cuda cnmf STEP [options]")
    steps = "; ".join(f"{name}: {about}" for name, about in _STEPS.items())
    parser.add_argument("step", choices=tuple(_STEPS), metavar="STEP", help=steps)
    add = parser.add_argument
    add("--output-dir", type=str, default=".", help="[all] Where the folder of the run is.")
    add("--name", type=str, default="cNMF", help="[all] Of the folder, and of all files in it.")
    add("-k", "--components", type=int, nargs="+", help="[all] Numbers of components, as in 7 8 9.")
    add("-c", "--counts", type=str, help="[prepare] Cells by genes: .h5ad, .npz or tab-delimited.")
    add("-n", "--n-iter", type=int, default=100, help="[prepare] Runs of each number.")
    add("--seed", type=int, help="[prepare] Of the seeds.")
    add("--genes-file", type=str, help="[prepare] Genes to take, one a line.")
    add("--numgenes", type=int, default=2000, help="[prepare] How many genes to choose otherwise.")
    add("--tpm", type=str, help="[prepare] Transcripts per million, in a format of counts.")
    add("--max-nmf-iter", type=int, default=1000, help="[prepare] Most iterations of a run.")
    losses = ("frobenius", "kullback-leibler", "itakura-saito")
    add("--beta-loss", choices=losses, default=losses[0], help="[prepare] What is minimised.")
    add("--init", choices=("random", "nndsvdar"), default="random", help="[prepare] Starts.")
    add("--densify", type=bool, help="[prepare] Store dense arrays.")
    add("--worker-index", type=int, default=0, help="[factorize] Which worker this is, from 0.")
    add("--total-workers", type=int, default=1, help="[factorize] Workers that share the runs.")
    add("--skip-completed-runs", type=bool, help="[factorize] Leave out what is there.")
    text = "[consensus] Leave out spectra whose neighbours are as far; 2 keeps all."
    add("--local-density-threshold", type=float, default=0.5, help=text)
    text = "[consensus] How many neighbours, as a share of the runs."
    add("--local-neighborhood-size", type=float, default=0.3, help=text)
    text = "[consensus] Draw the clusters and densities, to choose the threshold by."
    add("--show-clustering", type=bool, help=text)
    add("--device", type=str, default="auto", help="[all] auto, cpu or cuda.")
    return parser


def cnmf(options: Namespace) -> None:
    """Take one step of a run of cNMF."""
    from nnmf_cuda.consensus import CnmfRun

    run = CnmfRun(options.output_dir, options.name, device=options.device, verbose=1)
    match options.step:
        case "prepare":
            if options.counts is None or options.components is None:
                missing = "counts" if options.counts is None else "components"
                raise ValueError(f"prepare needs --{missing}")
            run.prepare(
                options.counts,
                options.components,
                options.n_iter,
                densify=options.densify,
                tpm=options.tpm,
                seed=options.seed,
                beta_loss=options.beta_loss,
                num_highvar_genes=options.numgenes,
                genes_file=options.genes_file,
                init=options.init,
                max_iter=options.max_nmf_iter,
            )
            _tell([run.paths.counts, run.paths.replicates])
        case "factorize":
            written = run.factorize(
                options.worker_index,
                options.total_workers,
                skip_completed_runs=options.skip_completed_runs,
            )
            show(f"{len(written)} runs written to {run.paths.counts.parent}")
        case "combine":
            _tell(run.combine(options.components))
        case "k_selection_plot":
            curves = run.k_selection_plot(options.components)
            show(f"{'k':>4}{'stability':>12}{'error':>14}")
            rows = zip(curves.k, curves.silhouette, curves.prediction_error, strict=True)
            for k, stability, error in rows:
                show(f"{k:>4}{stability:>12.3f}{error:>14.6g}")
            _tell([run.paths.k_selection, run.paths.k_selection_plot])
        case "consensus":
            for k in run.prepared_ks(options.components):
                found = run.consensus(
                    k,
                    options.local_density_threshold,
                    options.local_neighborhood_size,
                    show_clustering=options.show_clustering,
                )
                show(f"k={k}: {found.n_kept} of {found.n_spectra} spectra clustered")
                what = ("usages.consensus", "gene_spectra_tpm", "gene_spectra_score")
                threshold = options.local_density_threshold
                _tell([run.paths.result(one, k, threshold)[1] for one in what])
                if options.show_clustering:
                    _tell([run.paths.clustering(k, threshold)])


def _tell(paths: list[Path]) -> None:
    for path in paths:
        show(f"wrote {path}")
