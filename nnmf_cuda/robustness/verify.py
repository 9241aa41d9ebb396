"""Complete verification: each sample is proven, broken by a point, or, in the time given, neither.

A proof is of every number in the ball, and of the network that answers: its rounding is counted
(`rounding`), and so is that of the bounds themselves (`nnmf_cuda.reference.crown`). A point that
breaks a sample was asked of that network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.attacks.balls import Box
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.models.networks import frozen
from nnmf_cuda.robustness.branch_and_bound import Boxes, Goal, search
from nnmf_cuda.robustness.rounding import logit_errors
from nnmf_cuda.robustness.verification import PHASES, Journal, Status, Verification
from nnmf_cuda.robustness.verification_task import ROWS, Task, network_of, weights_to_verify

_N_STARTS, _N_STEPS = 40, 30


def verify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    seconds: float = 10.0,
    total_seconds: float = math.inf,
    batch_size: int = 64,
    points: Sequence[Tensor] = (),
    progress: bool = False,
    resume: str | Path | None = None,
    crew: Crew = ALONE,
) -> Verification:
    """Prove of each sample that no point of its ball is answered wrongly, or find one that is.

    Parameters
    ----------
    model : nn.Module
        A `FeatureCNN`, a `FeatureMLP` or an `nn.Sequential` of linear layers with ReLU between
        them, in float32 or float64; or a `TrainedModel` whose defence is one.
    x : Tensor of shape (n, n_features)
        Features, inside the box, in the model's type and on its device.
    y : Tensor of shape (n,)
        int64 labels.
    eps : float or Tensor of shape (n_features,)
        Radius of the ball, in units of the features; one for each feature with norm "Linf" alone.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    box : pair of float or Tensor of shape (n_features,), default=(0, 1)
        Lowest and highest value of each feature.
    seconds : float, default=10
        For the search on each sample, after points were tried and the whole ball was bounded.
    total_seconds : float, default=inf
        For all searches together; those that seem easiest come first.
    batch_size : int, default=64
        Boxes that a search bounds at once.
    points : sequence of Tensor of shape (n, n_features)
        Points that attacks have found: where, put into the ball, they are answered wrongly, nothing
        else is done.
    progress : bool, default=False
        Show a bar where the output is no terminal too.
    resume : path, optional
        A file in which each sample is noted as it is done, and of which those noted are taken.
        Undecided ones are tried again where there is more time than before.
    crew : Crew, optional
        Processes that are given the same, and search in turn, each with `total_seconds`; all return
        all. While they search each notes what it finds in a file of its own beside `resume`.

    Returns
    -------
    Verification

    Raises
    ------
    TypeError, ValueError
        If the model is random or another than these, arguments do not fit, or `resume` is the
        record of something else.

    Notes
    -----
    The ball of a proof is larger than `eps` by `BOX_TOLERANCE`, by which attacks may leave theirs
    through rounding; the point of a broken sample is within `eps` exactly.

    A proof holds on any machine, whatever the order of sums, but not for sums in a narrower type
    than that of the weights: not where torch was told that float32 may be TF32.

    Examples
    --------
    >>> import torch
    >>> from nnmf_cuda.models import FeatureCNN
    >>> model, x = FeatureCNN(15, 2), torch.rand(4, 15)
    >>> found = verify(model, x, model(x).argmax(1), eps=1e-4)
    >>> found.proven.tolist()
    [True, True, True, True]
    """
    model = network_of(model)
    weights = weights_to_verify(model)
    task = Task.of(model, weights, x, y, eps=eps, norm=norm, box=box)
    if not (seconds >= 0 and total_seconds >= 0):
        raise ValueError(f"seconds={seconds}, total_seconds={total_seconds}: both must be >= 0")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    journal = None if resume is None else Journal(Path(resume), task.key(), *x.shape, crew=crew)
    # Attacks need gradients, also of a caller in inference mode.
    with torch.inference_mode(False), frozen(model), torch.no_grad():
        return _Run(task, journal, seconds, total_seconds, batch_size, progress, crew).done(points)


@dataclass
class _Run:
    """Verification under way: what is known so far."""

    task: Task
    journal: Journal | None
    seconds: float
    total_seconds: float
    batch_size: int
    progress: bool
    crew: Crew
    status: list[Status | None] = field(init=False)

    def __post_init__(self) -> None:
        n, n_features = self.task.x.shape
        self.status = [None] * n
        self.counts = dict.fromkeys(Status, 0)
        self.lower_bound = np.full(n, -np.inf)
        self.rounding = np.full(n, np.inf)
        self.counterexample = np.full((n, n_features), np.nan)
        self.n_boxes = np.zeros(n, np.int64)
        # Least bound of those classes over which the bounds of whole balls have proven the margin.
        self.proven_bound = np.full(n, np.inf)
        self.spent = {phase: np.zeros(n) for phase in PHASES}

    def done(self, points: Sequence[Tensor]) -> Verification:
        """Do all there is to do."""
        from tqdm import tqdm

        task, n = self.task, len(self.task.x)
        with tqdm(
            total=n, desc="verify", unit="sample", disable=None if not self.progress else False
        ) as self.bar:
            if n:
                task.check_answers()
                self._take_known()
                self._try(task.x)
                for known in points:
                    if known.shape != task.x.shape:
                        raise ValueError(
                            f"points must have the shape of x, {tuple(task.x.shape)}, got"
                            f" {tuple(known.shape)}"
                        )
                    every = torch.arange(n, device=task.x.device)
                    self._try(task.into_ball(known.to(task.x.device), every))
                roots = self._bound_all()
                self._timed("attack", self._open(), self._attack)
                self._search_all(roots)
        return Verification(
            status=np.array([str(status) for status in self.status], dtype=str),
            lower_bound=self.lower_bound,
            rounding=self.rounding,
            counterexample=self.counterexample,
            n_boxes=self.n_boxes,
            seconds=self.spent,
            eps=task.shown_eps,
            norm=task.norm,
        )

    def _open(self) -> Tensor:
        """Return the samples of which nothing is known yet."""
        rows = [i for i, status in enumerate(self.status) if status is None]
        return torch.tensor(rows, dtype=torch.int64, device=self.task.x.device)

    def _timed(self, phase: str, rows: Tensor, run: Callable[[Tensor], None]) -> None:
        """Run something for many samples, and share out its time; nothing for none."""
        if not len(rows):
            return
        started = time.monotonic()
        shared = rows.tolist()
        run(rows)
        self.spent[phase][shared] += (time.monotonic() - started) / len(shared)

    def _settle(self, row: int, status: Status, point: Tensor | None = None) -> None:
        """Note what a sample is."""
        self.status[row] = status
        if point is not None:
            self.counterexample[row] = point.double().cpu().numpy()
        if self.journal is not None:
            self.journal.note(self._entry(row))
        self._count(status)

    def _entry(self, row: int) -> dict[str, Any]:
        """Return what is known of a sample that is settled, as its line in the journal has it."""
        finite = math.isfinite
        low, off = float(self.lower_bound[row]), float(self.rounding[row])
        broken = self.status[row] is Status.BROKEN
        return {
            "sample": row,
            "status": str(self.status[row]),
            "lower_bound": low if finite(low) else None,
            "rounding": off if finite(off) else None,
            "n_boxes": int(self.n_boxes[row]),
            "seconds": {name: float(v[row]) for name, v in self.spent.items()},
            "counterexample": self.counterexample[row].tolist() if broken else None,
        }

    def _count(self, status: Status) -> None:
        self.counts[status] += 1
        self.bar.set_postfix({str(s): k for s, k in self.counts.items()}, refresh=False)
        self.bar.update()

    def _take_known(self) -> None:
        """Take from the journal what need not be done again; a point that it has is asked anew."""
        task = self.task
        for row, entry in (self.journal.known if self.journal is not None else {}).items():
            status, point = Status(entry["status"]), entry["counterexample"]
            if status is Status.UNDECIDED and entry["seconds"]["search"] < self.seconds:
                continue
            if status is Status.BROKEN:
                at = torch.tensor([point], dtype=torch.float64).to(task.x)
                if not bool(task.breaks(at, torch.tensor([row], device=at.device))[0]):
                    continue
            self._take(entry)
            self._count(status)

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Take what is known of a sample from its line."""
        row = entry["sample"]
        for name in ("lower_bound", "rounding"):
            value = entry[name]
            unknown = -np.inf if name == "lower_bound" else np.inf
            getattr(self, name)[row] = unknown if value is None else value
        self.n_boxes[row] = entry["n_boxes"]
        for phase in PHASES:
            self.spent[phase][row] = entry["seconds"][phase]
        if entry["counterexample"] is not None:
            self.counterexample[row] = entry["counterexample"]
        self.status[row] = Status(entry["status"])

    def _try(self, points: Tensor) -> None:
        """Try one of points (n, n_features) for each open sample."""

        def run(rows: Tensor) -> None:
            broken = self.task.breaks(points[rows], rows)
            for row in rows[broken].tolist():
                self._settle(row, Status.BROKEN, points[row])

        self._timed("attack", self._open(), run)

    def _bound_all(self) -> dict[int, list[tuple[Goal, Boxes]]]:
        """Bound the whole ball of each open sample; return what is not proven by that."""
        roots: dict[int, list[tuple[Goal, Boxes]]] = {}

        def run(rows: Tensor) -> None:
            task = self.task
            lower, upper = task.lower[rows], task.upper[rows]
            center, radius = None, None
            if task.norm == "L2":
                center = task.x[rows].double()
                radius = lower.new_full((len(rows),), task.radius)
            one = torch.eye(len(task.weights[-1]), dtype=torch.float64, device=lower.device)
            label = task.y[rows]
            errors: Tensor | None = None
            for shift in range(1, len(one)):
                other = (label + shift) % len(one)
                objective = one[label] - one[other]
                found = ops.crown_bounds(
                    lower, upper, task.weights, objective, center=center, radius=radius
                )
                if errors is None:
                    errors = logit_errors(
                        task.weights, lower, upper, hidden_upper=found.hidden_upper
                    )
                # The sum of the two is rounded as well.
                both = errors.gather(1, torch.stack((label, other), 1)).sum(1) * (1 + 2.0**-50)
                for k, row in enumerate(rows.tolist()):
                    threshold, bound = float(both[k]), float(found.bound[k])
                    goal = Goal(
                        task.weights,
                        objective[k],
                        threshold,
                        None if center is None else center[k],
                        task.radius,
                    )
                    root = Boxes(lower, upper, *found)[torch.tensor([k], device=lower.device)]
                    first = shift == 1
                    self.lower_bound[row] = min(bound, np.inf if first else self.lower_bound[row])
                    self.rounding[row] = max(threshold, 0 if first else self.rounding[row])
                    self.n_boxes[row] += 1
                    if bound > threshold:
                        self.proven_bound[row] = min(self.proven_bound[row], bound)
                    else:
                        roots.setdefault(row, []).append((goal, root))

        rows = self._open()
        self._timed("bounds", rows, run)
        for row in rows.tolist():
            if row not in roots:
                self._settle(row, Status.PROVEN)
        return roots

    def _attack(self, rows: Tensor) -> None:
        """Climb from many starts in the balls of open samples."""
        task = self.task
        n, m = len(rows), task.x.shape[1]
        generator = torch.Generator().manual_seed(0)
        # Drawn on the CPU: the same on every device.
        share = torch.rand(_N_STARTS, n, m, generator=generator).to(task.x)
        owner = rows.repeat(_N_STARTS)
        low, high = task.inner_lower[owner], task.inner_upper[owner]
        width = high - low
        points = task.into_ball(low + width * share.flatten(0, 1), owner)
        label = task.y[owner]
        for step in range(_N_STEPS):
            gradient = _margin_gradient(task.model, points, label)
            if task.norm == "Linf":
                move = gradient.sign() * width
            else:
                length = gradient.norm(dim=1, keepdim=True).clamp(min=1e-30)
                move = gradient / length * (2 * task.radius)
            points = points + move * (0.1 * (1 - step / _N_STEPS))
            points = task.into_ball(points, owner)
        wrong = task.answers(points) != label
        for k, row in enumerate(rows.tolist()):
            mine = points[k::n][wrong[k::n]]
            if len(mine) and (point := task.first_breaking(mine, row)) is not None:
                self._settle(row, Status.BROKEN, point)

    def _search_all(self, roots: Mapping[int, list[tuple[Goal, Boxes]]]) -> None:
        """Cut up the balls of the samples that are still open, those nearest to a proof first."""
        end = time.monotonic() + self.total_seconds
        left = [row for row in roots if self.status[row] is None]
        # Where machines round otherwise, what is open for one counts.
        order = self.crew.first(lambda: sorted(left, key=lambda row: -self.lower_bound[row]))
        if self.journal is not None:
            self.journal.divide()

        def searched(row: int) -> dict[str, Any]:
            if self.status[row] is None:
                self._search(row, roots[row], end)
            return self._entry(row)

        found = list(self.crew.each([partial(searched, row) for row in order]))
        if self.crew.size > 1:
            for entry in found:
                if self.status[entry["sample"]] is None:
                    self._take(entry)
                    self._count(Status(entry["status"]))
        if self.journal is not None:
            self.journal.unite(found)

    def _search(self, row: int, roots: Sequence[tuple[Goal, Boxes]], end: float) -> None:
        """Cut up the ball of a sample until it is decided, or its time is over."""
        started = time.monotonic()
        until = min(end, started + self.seconds)
        status, point = Status.PROVEN, None
        lows = [float(root.bound[0]) for _, root in roots]
        for k, (goal, root) in enumerate(roots):
            found = search(
                goal,
                root,
                partial(self.task.first_breaking, row=row),
                until=until,
                batch_size=self.batch_size,
            )
            self.n_boxes[row] += found.n_boxes
            lows[k] = max(lows[k], found.lower_bound)
            if found.point is not None:
                status, point = Status.BROKEN, found.point
                break
            if not found.proven:
                status = Status.UNDECIDED
        self.lower_bound[row] = min(self.proven_bound[row], *lows)
        self.spent["search"][row] += time.monotonic() - started
        self._settle(row, status, point)


def _margin_gradient(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
    """Return the gradients (k, n_features) of `margin_loss`: towards wrong answers."""
    found = []
    for part, own in zip(points.split(ROWS), label.split(ROWS), strict=True):
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            found.append(torch.autograd.grad(margin_loss(model(leaf), own).sum(), leaf)[0])
    return torch.cat(found)
