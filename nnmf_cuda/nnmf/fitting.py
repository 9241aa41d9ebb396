"""A fit from record to record: what its user is told and may stop, and what its file keeps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from nnmf_cuda.nnmf.checkpoint import Checkpoint
from nnmf_cuda.nnmf.inputs import check_real
from nnmf_cuda.nnmf.minimisation import CHECK_EVERY, Minimisation, Run


@dataclass(frozen=True)
class FitRecord:
    """Where a fit stands; what the `callback` of `NNMF.fit` is given.

    Attributes
    ----------
    iteration : int
        Iterations done, from 0.
    objective : float
        Divergence plus regularisation of the best start; inf where all have overflowed.
    objectives : tuple of float
        Of each of the `n_init` starts; of one that has converged, where it ended.
    running : tuple of int
        The starts, counted from 0, that have not yet converged.
    """

    iteration: int
    objective: float
    objectives: tuple[float, ...]
    running: tuple[int, ...]


Callback = Callable[[FitRecord], bool | None]


@dataclass(frozen=True)
class Watch:
    """What the user gives a fit to be watched by."""

    callback: Callback | None
    checkpoint: str | os.PathLike[str] | None
    every: float  # seconds between two writings of the checkpoint

    def __post_init__(self) -> None:
        if self.callback is not None and not callable(self.callback):
            raise TypeError(
                "callback must be a function of a FitRecord that returns True to stop, got "
                f"{self.callback!r}"
            )
        check_real("checkpoint_every", self.every, low=0)


@dataclass(frozen=True)
class Outcome:
    """The best run of a fit, and whether the user stopped it."""

    run: Run
    stopped: bool


def fit_to_end(
    minimisation: Minimisation,
    best: Run | None,
    *,
    max_iter: int,
    callback: Callback | None,
    checkpoint: Checkpoint | None,
    progress: Callable[[int], object],
) -> Outcome:
    """Go on to convergence of all starts, `max_iter`, or until the user stops.

    `best` is the best run that has ended before. A checkpoint holds a state at a multiple of
    `CHECK_EVERY` iterations, the last of which a fit with a larger `max_iter` passes too.
    """
    X = minimisation.problem.X

    def reached() -> bool:
        """Do what is due at a record; return whether the user stops here."""
        if checkpoint is not None and minimisation.iteration % CHECK_EVERY == 0:
            checkpoint.note(minimisation.state(best))
        stop = callback is not None and _answer(callback(_record_of(minimisation)))
        answers = X.gathered((stop, checkpoint is not None and checkpoint.due))
        if checkpoint is not None and answers[0][1]:  # by one clock
            checkpoint.write()
        return any(stops for stops, _ in answers)

    try:
        # What a file was read from has been told of its last record.
        stopped = minimisation.iteration == 0 and reached()
        while minimisation.running and minimisation.iteration < max_iter and not stopped:
            n_iter = min(CHECK_EVERY, max_iter - minimisation.iteration)
            for run in minimisation.advance(n_iter):
                best = run if best is None else min(best, run, key=Run.order)
            progress(n_iter)
            stopped = reached()
    except BaseException:
        # Also where Ctrl-C or the callback's own error ends the fit, but for processes that write
        # together, of which the others are elsewhere.
        if checkpoint is not None and X.own is X:
            checkpoint.write()
        raise
    if checkpoint is not None:
        checkpoint.write()
    ended = () if best is None else (best,)
    return Outcome(min(chain(ended, minimisation.rest()), key=Run.order), stopped)


def _record_of(minimisation: Minimisation) -> FitRecord:
    objectives = tuple(objectives[-1] for objectives in minimisation.objectives)
    lowest = min((one for one in objectives if math.isfinite(one)), default=math.inf)
    return FitRecord(minimisation.iteration, lowest, objectives, tuple(minimisation.running))


def _answer(answer: object) -> bool:
    """Return whether a callback's answer says to stop; not every value that is true does."""
    if answer is None or isinstance(answer, bool | np.bool_):
        return bool(answer)
    raise TypeError(f"callback must return True to stop, False or None to go on, got {answer!r}")
