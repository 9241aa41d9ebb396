"""The command `nnmf-cuda verify`: what of a saved run's answers is proven robust."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnmf_cuda.cli.options import DeviceOption, say, show
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.pipeline.places import Place, write_text

_RESULTS = ("verification.json", "verification.npz")
_JOURNAL = "verification.jsonl"


@dataclass(frozen=True, kw_only=True)
class Verify(DeviceOption):
    """Prove, sample by sample, that no point of the ball changes a saved model's answer.

    Or find the point that does. Each sample is proven, broken or, where the time was too short,
    undecided. Writes verification.json, verification.npz with the points, and verification.jsonl,
    a line a sample, from which --resume goes on. Random defences cannot be verified.
    """

    model: str
    """The --out directory of `nnmf-cuda run`."""
    eps: float | None = None
    """Radius of the ball; default: that of the run's attack."""
    norm: Literal["Linf", "L2"] | None = None
    """Norm of the ball; default: that of the run's attack."""
    seconds: float = 10.0
    """Of search for each sample that bounds of its whole ball do not decide."""
    split: Literal["train", "valid", "test"] = "test"
    """Which features."""
    undefended: bool = False
    """Verify the classifier without the defence."""
    out: str | None = None
    """Where to write; default: the directory of the run."""
    resume: bool = False
    """Keep what verification.jsonl knows, and try again what had less time."""
    overwrite: bool = False
    """Replace an earlier verification."""


def verify(options: Verify, crew: Crew = ALONE) -> None:
    """Verify the answers of a saved run; of a crew rank 0 writes what all have found."""
    from nnmf_cuda.pipeline.artifacts import find_model

    find_model(Path(options.model))  # before anything is made
    out = Path(options.model if options.out is None else options.out)
    place = Place(out)
    with ExitStack() as stack:
        if crew.leads:
            place = stack.enter_context(place.held(f"--out {out}"))
        _verify(options, out, place, crew)


def _verify(options: Verify, out: Path, place: Place, crew: Crew) -> None:
    from nnmf_cuda import robustness
    from nnmf_cuda.evaluation.headline import Headline, Proof
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.robustness import SavedRun, ceiling
    from nnmf_cuda.robustness.verification import BRANCH_AND_BOUND
    from nnmf_cuda.robustness.verification_task import checked_ball

    home = Path(options.model)
    device = resolve_device(options.device)
    run = SavedRun.load(home, device=device)
    model = run.model.classifier if options.undefended else run.defended
    x, y = run.x[options.split].clamp(0, 1), run.y[options.split]
    eps = run.attack.radius if options.eps is None else options.eps
    norm = run.attack.norm if options.norm is None else options.norm
    # All that can be refused is, before anything is removed or made.
    if not options.seconds >= 0:
        raise ValueError(f"--seconds must be >= 0, got {options.seconds}")
    robustness.weights_to_verify(model)
    checked_ball(x, eps=eps, norm=norm, box=(0.0, 1.0))
    if crew.leads:
        # Started again it goes on with what it has found itself. Results are of another command:
        # that is why the start before has failed.
        again = crew.restarted and not any((out / name).exists() for name in _RESULTS)
        resume = options.resume or (again and not options.overwrite)
        _make_way(out, resume=resume, overwrite=options.overwrite)
    crew.gathered(None)
    ball: dict[str, Any] = {"eps": eps, "norm": norm}
    found = robustness.verify(
        *(model, x, y), **ball, seconds=options.seconds, resume=out / _JOURNAL, crew=crew
    )
    if not crew.leads:
        return
    clean = robustness.right_answers(model, x, y)
    labels = y.cpu().numpy()
    line = Headline.of(
        (~found.broken).astype(np.float64),
        clean.astype(np.float64),
        labels,
        Proof(found.proven, BRANCH_AND_BOUND),
        ceiling=ceiling(x, y, eps, norm).accuracy,
    )
    content = {
        "model": str(home),
        "of": "the undefended classifier" if options.undefended else "the defence",
        "split": options.split,
        **line.as_dict(),
        **found.as_dict(),
    }
    spent = {phase: float(values.sum()) for phase, values in found.seconds.items()}
    show(f"{home}, {options.split} split, {norm} ball of {eps:g}: {line.line}")
    show(
        f"proven {found.proven.sum()}, broken {found.broken.sum()}, undecided"
        f" {found.undecided.sum()} of {len(labels)} samples in {sum(spent.values()):.1f} s (points"
        f" {spent['attack']:.1f}, bounds {spent['bounds']:.1f}, search {spent['search']:.1f}) and"
        f" {found.n_boxes.sum():,} boxes"
    )
    if found.undecided.any():
        named = ", ".join(map(str, np.flatnonzero(found.undecided)[:10]))
        more = " and more" if found.undecided.sum() > 10 else ""
        show(f"undecided: sample {named}{more}; --resume with more --seconds goes on with them")
    with place.staged(_RESULTS[::-1]) as folder:
        found.save(folder / _RESULTS[1])
        write_text(folder / _RESULTS[0], json.dumps(content, indent=2) + "\n")
    show("\n" + "\n".join(f"{name}: {out / name}" for name in (*_RESULTS, _JOURNAL)))


def _make_way(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise where a verification is there and is neither gone on with nor replaced."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one")
    parts = [part.name for part in out.glob(f"{_JOURNAL}.rank-*")]  # of several processes
    present = [name for name in (*_RESULTS, _JOURNAL, *parts) if (out / name).exists()]
    if not present or resume:
        return
    if not overwrite:
        raise ValueError(
            f"{out} already holds {', '.join(present)}: give --resume to go on, --overwrite to"
            " replace them, or another --out"
        )
    for name in present:
        (out / name).unlink()
        say(f"{out / name} is replaced")
