"""The command `nnmf-cuda export`: a saved run for the verifiers of others."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnmf_cuda.cli.options import show
from nnmf_cuda.pipeline.places import Place

_NETWORK, _LIST = "classifier.onnx", "instances.csv"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a saved network as ONNX and the balls of its samples as VNN-LIB.

    Whatever reads these files can check what `verify` says: a sample that is proven must be
    unsatisfiable, one that is broken satisfiable. Writes classifier.onnx, sample_*.vnnlib, and
    instances.csv, which names each pair and a time-out in seconds. Needs the extra `export`. Random
    defences cannot be exported.
    """

    model: str
    """The --out directory of `nnmf-cuda run`."""
    out: str
    """Where to write."""
    samples: int | None = None
    """So many of the first samples; default: all."""
    eps: float | None = None
    """Radius of the Linf ball; default: that of the run's attack."""
    split: Literal["train", "valid", "test"] = "test"
    """Which features."""
    undefended: bool = False
    """Export the classifier without the defence."""
    seconds: float = 60.0
    """The time-out that instances.csv names."""
    overwrite: bool = False
    """Replace what is in the directory."""


def export(options: Export) -> None:
    """Export the network and samples of a saved run."""
    from nnmf_cuda.robustness import SavedRun, export_onnx, export_vnnlib

    if options.samples is not None and options.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {options.samples}")
    run, out = SavedRun.load(options.model), Path(options.out)
    model = run.model.classifier if options.undefended else run.defended
    x = run.x[options.split].clamp(0, 1)[: options.samples]
    y = run.y[options.split][: options.samples]
    eps = run.attack.radius if options.eps is None else options.eps
    if options.eps is None and run.attack.norm != "Linf":
        raise ValueError(
            f"VNN-LIB has Linf balls alone, the run's is {run.attack.norm}: give --eps"
        )
    with Place(out).held(f"--out {out}") as place:
        if not (options.overwrite or place.is_empty()):
            raise ValueError(f"--out {out} is not empty: give another directory, or --overwrite")
        names = [f"sample_{i:05d}.vnnlib" for i in range(len(x))]
        earlier = (path.name for path in out.glob("sample_*.vnnlib"))
        results = [_NETWORK, *names, _LIST]
        with place.staged(results, replaces=lambda: earlier) as folder:
            export_onnx(model, folder / _NETWORK, n_features=x.shape[1])
            n_classes = len(run.model.label_names)
            written = export_vnnlib(x, y, folder, eps=eps, n_classes=n_classes)
            with (folder / _LIST).open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerows([_NETWORK, path.name, options.seconds] for path in written)
    show(f"{out / _NETWORK}\n{len(written)} samples, Linf ball of {eps:g}: {out / _LIST}")
