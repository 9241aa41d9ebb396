"""The commands `nnmf-cuda evaluate`, of a saved run, and `nnmf-cuda audit`, of a data set."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import NonNegativeInt

from nnmf_cuda.cli.options import DeviceOption, OptionParser, parser_of, say, show
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.pipeline.config import DataConfig
from nnmf_cuda.pipeline.places import Place, write_text
from nnmf_cuda.pipeline.run_directory import read_json

if TYPE_CHECKING:
    from nnmf_cuda.data import ImageDataset
    from nnmf_cuda.evaluation.compared import RandomLabels


@dataclass(frozen=True, kw_only=True)
class Evaluate(DeviceOption):
    """Say how robust a saved model is.

    Runs adaptive attacks, and takes the worst case over all of them for every sample, beside the
    paper's protocol and the constant answer. Writes robustness.json, with twenty points that an
    honest evaluation answers, robustness.npz with the attacked features, and robustness.html into
    the run's directory.
    """

    model: str
    """The --out directory of `nnmf-cuda run`."""
    preset: Literal["paper", "quick", "standard", "thorough"] = "standard"
    """How much the evaluation spends (the preset of the run's settings is another thing): paper
    counts again what the run's attack found; quick is a first look; standard takes minutes, and is
    what `run --evaluation honest` does; thorough takes several times as long."""
    data: str | None = None
    """The run's images, for the attack on pixels, which is not run without them (but for the
    built-in phantom); the other data options are the run's own."""
    overwrite: bool = False
    """Replace an earlier evaluation."""


def evaluate(options: Evaluate, crew: Crew = ALONE) -> None:
    """Evaluate a saved run; of a crew rank 0 holds it, and writes what all have found."""
    from nnmf_cuda.pipeline.artifacts import find_model
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.report.robustness_table import summary_table
    from nnmf_cuda.robustness import SavedRun, evaluate_robustness

    home = Path(options.model)
    device = resolve_device(options.device)
    find_model(home)  # before anything is made
    with ExitStack() as stack:
        if crew.leads:
            place = stack.enter_context(Place(home).held(f"--model {home}"))
            _make_way(home / "robustness.json", overwrite=options.overwrite)
        crew.gathered(None)  # what was cut short there is finished
        run = SavedRun.load(home, device=device)
        images = None
        if options.data is not None or run.model.info.synthetic:
            images = run.test_images(options.data, say=say)
        result = evaluate_robustness(run, preset=options.preset, images=images, say=say, crew=crew)
        if not crew.leads:
            return
        show(summary_table(result.report))  # whatever becomes of the files
        with place.staged(["robustness.npz", "robustness.html", "robustness.json"]) as folder:
            written = result.write(folder, named=home)
    show("\n" + "\n".join(f"{name}: {home / path.name}" for name, path in written.items()))
    if (home / "report.html").exists():
        show("report.html in the same directory still shows what the run itself has found")


def _make_way(present: Path, *, overwrite: bool) -> None:
    """Raise where an evaluation is there and must not be replaced; else say what goes."""
    if not present.exists():
        return
    if not overwrite:
        raise ValueError(f"{present} exists: give --overwrite to replace it")
    earlier = read_json(present).get("preset", "unknown")
    say(f"{present}, an evaluation of preset {earlier}, will be replaced")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Look for images that stand on both sides of a split.

    Equal ones, near ones, and what the nearest training image alone would answer.
    """

    data: str | None = None
    """Class folders, a table (CSV), DICOM, NIfTI, masks beside images, stacks or archives
    (docs/from_your_files.md); default: the synthetic phantom."""
    seed: NonNegativeInt = 0
    """Of a split that is made here, and of random labels."""
    resolution: int = 32
    """Side of the grid of block means, 2 or more."""
    threshold: float = 0.95
    """Correlation above which images are near."""
    random_labels: bool = False
    """Also train on random labels, given to single images and to whole patients or series, and say
    what that scores above chance: leakage. Minutes."""
    json: str | None = None
    """Also write JSON to this file."""


def audit_parser() -> OptionParser:
    """Return the parser of `audit`, which reads images as `run` does."""
    parser = parser_of(Audit, "audit")
    parser.add_class_arguments(DataConfig, skip={"path"})
    return parser


def audit(options: Audit, data: DataConfig) -> None:
    """Audit a data set."""
    from nnmf_cuda.data import audit_dataset, load_dataset
    from nnmf_cuda.data.leakage import check_audit
    from nnmf_cuda.report.comparison import random_labels_text

    check_audit(resolution=options.resolution, threshold=options.threshold)
    target = None if options.json is None else Path(options.json)
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise ValueError(f"--json {target}: give a file in a folder that exists")
    dataset = load_dataset(**data.of_load(), seed=options.seed, progress=True)
    for note in dataset.notes:
        say(note)
    found = audit_dataset(dataset, resolution=options.resolution, threshold=options.threshold)
    show(f"{dataset.source}: {len(dataset.images)} images\n{found.text()}")
    content = found.as_dict()
    if options.random_labels:
        drawn = _random_labels(dataset, options.seed)
        show(f"\n{random_labels_text(drawn)}")
        content["random_labels"] = [asdict(line) for line in drawn]
    if target is not None:
        write_text(target, json.dumps(content, indent=2) + "\n")


def _random_labels(dataset: ImageDataset, seed: int) -> list[RandomLabels]:
    from tqdm import tqdm

    from nnmf_cuda.comparison.random_labels import n_quick_trainings, quick_controls

    total = n_quick_trainings(dataset)
    with tqdm(total=total, desc="random labels", unit="training", disable=None) as bar:
        return quick_controls(dataset, seed=seed, each=bar.update)
