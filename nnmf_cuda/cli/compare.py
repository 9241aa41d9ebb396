"""The command `nnmf-cuda compare`: systems side by side, on the same images and under attack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from nnmf_cuda.cli.options import DeviceOption, OptionParser, parser_of, say, show
from nnmf_cuda.pipeline.config import DataConfig
from nnmf_cuda.pipeline.places import Place, remove, write_text

_RESULTS = ("compare.html", "compare.json")


@dataclass(frozen=True, kw_only=True)
class Compare(DeviceOption):
    """Compare the systems that the paper stands beside, and your own, under one evaluation.

    Each is trained on the training images, measured on clean test images, and attacked in pixels:
    through its gradients where it has them, by its answers alone where not. What was found against
    one is tried on all others. Writes compare.json, a page compare.html, and compare.jsonl, a line
    a result, from which --resume goes on.
    """

    data: str | None = None
    """Class folders, a table (CSV), DICOM, NIfTI, masks beside images, stacks or archives
    (docs/from_your_files.md); default: the synthetic phantom."""
    out: str = "nnmf-cuda-compare"
    """Directory of the results."""
    systems: str | None = None
    """Names of systems with commas between them, as --list prints them; default: all."""
    list: bool = False
    """Print the names of the systems, whose they are and what they are, and end."""
    model: tuple[str, ...] = ()
    """Models of your own, not trained here: "package.module:name" of a function from float32 images
    (n, height, width) in [0, 1] to logits, or of a torch module that is one, which is attacked
    through its gradients; or an ONNX file. As in '[mine:net, other.onnx]'."""
    classifier: tuple[str, ...] = ()
    """Classifiers in scikit-learn's manner, "package.module:name" of a class or a function that
    makes one, to be trained on NNMF features; as in '[sklearn.svm:SVC]'."""
    folds: bool = False
    """Beside the data's own split, train and test fold by fold (patient_fold, else patient, else
    series; or what --split_by says)."""
    seed: NonNegativeInt = 0
    """Of the trainings and attacks, and of a split that is made here."""
    seeds: PositiveInt = 1
    """Number of trainings of each system, from --seed upwards."""
    random_labels: bool = False
    """Train each system on random labels too, given to single images and to whole patients or
    series, and say what it scores above chance: leakage. Four more trainings a system."""
    n_images: PositiveInt | None = None
    """Test images that are attacked, the same of every system; default: 100."""
    eps_255: tuple[float, ...] | None = None
    """Radii of the attacks in 1/255 of the range of pixels, Linf; default: '[1, 2, 4, 8]'."""
    n_iter: PositiveInt | None = None
    """Steps of APGD from each of its starts; default: 20."""
    n_queries: PositiveInt | None = None
    """Of Square at each radius, of systems without a gradient; default: 100."""
    smoke: bool = False
    """Only show that it works, in two minutes: few images, small systems, short attacks."""
    resume: bool = False
    """Go on where a comparison in --out was stopped, which was started with the same options. Its
    trained systems are read by pickle: go on only with what you have started yourself."""
    overwrite: bool = False
    """Replace results in --out."""


def compare_parser() -> OptionParser:
    """Return the parser of `compare`, which reads images as `run` does."""
    parser = parser_of(Compare, "compare")
    parser.add_class_arguments(DataConfig, skip={"path"})
    return parser


def compare(options: Compare, data: DataConfig) -> None:
    """Run or go on with a comparison."""
    from dataclasses import replace

    from nnmf_cuda.comparison.compare import compare as run_comparison
    from nnmf_cuda.comparison.journal import JOURNAL, WORK
    from nnmf_cuda.comparison.pixels import Spending
    from nnmf_cuda.comparison.plan import (
        SMOKE,
        Plan,
        check_place,
        chosen_systems,
        planned_splits,
    )
    from nnmf_cuda.comparison.users import user_systems
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.report.comparison import comparison_page, comparison_text

    names = [name.strip() for name in (options.systems or "").split(",") if name.strip()]
    if options.list:
        for system in chosen_systems(names):
            show(f"{system.name:<28}{system.authors}: {system.title}")
        return
    given = {
        name: getattr(options, name)
        for name in ("n_images", "eps_255", "n_iter", "n_queries")
        if getattr(options, name) is not None
    }
    plan = Plan(
        systems=chosen_systems(names, user_systems(options.model, options.classifier)),
        data=data,
        splits=planned_splits(data, folds=options.folds, seed=options.seed),
        seeds=range(options.seed, options.seed + options.seeds),
        spending=replace(SMOKE if options.smoke else Spending(), **given),
        device=resolve_device(options.device),
        smoke=options.smoke,
        random_labels=options.random_labels,
    )
    out = Path(options.out)
    with Place(out).held(f"--out {out}") as place:
        all_names = (*_RESULTS, JOURNAL, WORK)
        present = check_place(
            out, resume=options.resume, overwrite=options.overwrite, names=all_names
        )
        for name in present if options.overwrite else ():
            remove(out / name)
            say(f"{out / name} is replaced")
        found = run_comparison(plan, out, say=say, progress=True)
        show(comparison_text(found))
        with place.staged(_RESULTS) as folder:
            write_text(folder / _RESULTS[0], comparison_page(found, home=out))
            write_text(folder / _RESULTS[1], json.dumps(found.as_dict(), indent=2) + "\n")
    show("\n" + "\n".join(f"{name}: {out / name}" for name in _RESULTS))
    if found.failed:
        say(
            f"{len(found.failed)} results are missing, as the table says: --resume tries them"
            f" again. Until they are there, trained systems stay in {out / WORK}, some with what"
            " they remember of the training images: remove it if you do not go on, or share --out"
        )
