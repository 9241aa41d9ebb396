"""Complete verification: each sample is proven, broken by a point, or, in the time given, neither.

A proof is of every number in the ball, and of the network that answers: its rounding is counted
(`rounding`), and so is that of the bounds themselves (`nnmf_cuda.reference.crown`). A point that
breaks a sample was asked of that network.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda._version import __version__
from nnmf_cuda.attacks.balls import BOX_TOLERANCE, Box
from nnmf_cuda.models.networks import FeatureCNN, FeatureMLP, frozen
from nnmf_cuda.robustness.branch_and_bound import Boxes, Goal, search
from nnmf_cuda.robustness.rounding import (
    inward,
    logit_errors,
    outward,
    real_logits,
    within_l2,
    within_linf,
)

PHASES = ("attack", "bounds", "search")
"""Where time goes: points are tried, all balls are bounded at once, and some are cut up."""

_N_STARTS, _N_STEPS = 40, 30
_ROWS = 8192
"""Points that the network is asked about at once."""


class Status(StrEnum):
    """What is known of a sample."""

    PROVEN = "proven"
    BROKEN = "broken"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verification:
    """What is known of every sample.

    Attributes
    ----------
    status : array of shape (n,)
        A `Status` of each.
    lower_bound : array of shape (n,)
        Nowhere in the ball is the margin of the label over the next class less, in exact
        arithmetic. Of a broken sample what was known when the point was found.
    rounding : array of shape (n,)
        By how much the margin of the network that answers can differ from that: a sample is proven
        where the margin is larger everywhere.
    counterexample : array of shape (n, n_features)
        The point that breaks a sample, exactly within ball and box; NaN where there is none.
    n_boxes : array of shape (n,)
        Boxes that were bounded.
    seconds : mapping of str to array of shape (n,)
        Of each of `PHASES`; what was done for many samples at once is shared out evenly.
    eps : float or list of float
    norm : str
    """

    status: NDArray[np.str_]
    lower_bound: NDArray[np.float64]
    rounding: NDArray[np.float64]
    counterexample: NDArray[np.float64]
    n_boxes: NDArray[np.int64]
    seconds: Mapping[str, NDArray[np.float64]]
    eps: float | list[float]
    norm: str

    @property
    def proven(self) -> NDArray[np.bool_]:
        """Which samples (n,) no point of the ball breaks."""
        return np.asarray(self.status == Status.PROVEN)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which samples (n,) a known point breaks, their own features among them."""
        return np.asarray(self.status == Status.BROKEN)

    @property
    def undecided(self) -> NDArray[np.bool_]:
        """Which samples (n,) are neither."""
        return np.asarray(self.status == Status.UNDECIDED)

    @property
    def proven_accuracy(self) -> float:
        """Share of samples that are proven."""
        return float(self.proven.mean())

    @property
    def undecided_accuracy(self) -> float:
        """Share of samples that are undecided."""
        return float(self.undecided.mean())

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the points as JSON has it."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "n": len(self.status),
            "proven_accuracy": self.proven_accuracy,
            "undecided_accuracy": self.undecided_accuracy,
            "broken_share": float(self.broken.mean()),
            "status": self.status.tolist(),
            "lower_bound": [v if math.isfinite(v) else None for v in self.lower_bound.tolist()],
            "rounding": [v if math.isfinite(v) else None for v in self.rounding.tolist()],
            "n_boxes": self.n_boxes.tolist(),
            "seconds": {name: values.tolist() for name, values in self.seconds.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write all of it as .npz."""
        arrays: dict[str, Any] = {f"seconds_{name}": v for name, v in self.seconds.items()}
        np.savez(
            path,
            status=self.status,
            lower_bound=self.lower_bound,
            rounding=self.rounding,
            counterexample=self.counterexample,
            n_boxes=self.n_boxes,
            eps=np.asarray(self.eps),
            norm=np.asarray(self.norm),
            **arrays,
        )


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
    model = getattr(model, "defended", model)
    weights = weights_to_verify(model)
    task = _Task.of(model, weights, x, y, eps=eps, norm=norm, box=box)
    if not (seconds >= 0 and total_seconds >= 0):
        raise ValueError(f"seconds={seconds}, total_seconds={total_seconds}: both must be >= 0")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    journal = None if resume is None else _Journal(Path(resume), task.key())
    with frozen(model), torch.no_grad():
        return _Run(task, journal, seconds, total_seconds, batch_size, progress).done(points)


def right_answers(model: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.bool_]:
    """Say which samples (n,) a network answers rightly as they are, as `verify` asks it."""
    with frozen(model), torch.no_grad():
        right: NDArray[np.bool_] = (model(x).argmax(1) == y).cpu().numpy()
    return right


def weights_to_verify(model: nn.Module) -> list[Tensor]:
    """Return the weights of a network that can be verified, detached; raise ValueError of others.

    Its answers are those of the weights alone: nothing is hooked to it or overridden.
    """
    name = type(model).__name__
    why, weights = "it is no FeatureCNN or MLP", list[Tensor]()
    layers = model.layers if type(model) is FeatureMLP else model
    if isinstance(model, FeatureCNN):
        why, weights = model.why_modules(), model.weights()
    elif type(layers) is nn.Sequential:
        linear, between = list(layers)[::2], list(layers)[1::2]
        if (
            all(type(layer) is nn.Linear and len(list(layer.parameters())) == 2 for layer in linear)
            and all(type(layer) is nn.ReLU for layer in between)
            and len(linear) == len(between) + 1 >= 2
        ):
            why = ""
            weights = [t for layer in linear for t in layer.parameters()]  # weight, bias
    if not why and {w.dtype for w in weights} - {torch.float32, torch.float64}:
        why = f"it answers in {weights[0].dtype}"
    if not why:
        watched = [
            m
            for m in model.modules()
            if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
        ]
        why = f"{type(watched[0]).__name__} has a hook or another forward" if watched else ""
    if why:
        raise ValueError(
            f"a {name} cannot be verified ({why}): give a FeatureCNN or an MLP of linear layers"
            " with ReLU between them, in float32 or float64; a random defence has the certificate"
            " of smoothing instead"
        )
    return [w.detach() for w in weights]


@dataclass(frozen=True)
class _Task:
    """What is to be verified: the network, the samples, and the ball around each.

    `lower` and `upper` (n, n_features) are around the ball of the proof, in float64; `inner_lower`
    and `inner_upper` are in the ball and in the network's type.
    """

    model: nn.Module
    weights: list[Tensor]
    x: Tensor
    y: Tensor
    eps: Tensor  # (n_features,), float64
    radius: float  # of the proof's ball
    norm: str
    box: tuple[Tensor, Tensor]
    lower: Tensor
    upper: Tensor
    inner_lower: Tensor
    inner_upper: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: list[Tensor],
        x: Tensor,
        y: Tensor,
        *,
        eps: float | Tensor,
        norm: str,
        box: Box,
    ) -> _Task:
        if norm not in ("Linf", "L2"):
            raise ValueError(f"norm must be Linf or L2, got {norm!r}")
        first = weights[0]
        if x.dim() != 2 or x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"x must be {first.dtype} of shape (n, n_features) on {first.device}, as the model"
                f" has it, got {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        n, n_features = x.shape
        n_classes = len(weights[-1])
        if y.shape != (n,) or y.dtype != torch.int64 or y.device != x.device:
            raise ValueError(
                f"y must be int64 of shape ({n},) on {x.device}, got {tuple(y.shape)} {y.dtype} on"
                f" {y.device}"
            )
        if bool(((y < 0) | (y >= n_classes)).any()):
            raise ValueError(f"y must be within 0..{n_classes - 1}, got {y.unique().tolist()}")
        wide = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
        if wide.dim() and (norm == "L2" or tuple(wide.shape) != (n_features,)):
            raise ValueError(
                "eps must be a number, or with norm Linf of shape (n_features,) ="
                f" ({n_features},); got shape {tuple(wide.shape)} with norm {norm}"
            )
        if not bool((wide.isfinite() & (wide >= 0)).all()) or float(wide.max()) == 0:
            raise ValueError(f"eps must be finite and > 0, got {wide.tolist()}")
        low, high = (
            torch.as_tensor(edge, dtype=torch.float64, device=x.device).expand(n_features)
            for edge in box
        )
        exact = x.double()
        inside = (exact >= low) & (exact <= high)
        if not bool(inside.all()):
            raise ValueError(
                f"x must be inside the box, {int((~inside).sum())} of {x.numel()} entries are not:"
                " clamp them, or widen the box"
            )
        reach = (wide + BOX_TOLERANCE) * (1 + 2.0**-50)  # the sum was rounded
        lower, upper = outward(exact - reach, exact + reach)
        inner = inward((exact - wide).clamp(min=low), (exact + wide).clamp(max=high), x.dtype)
        return cls(
            model=model,
            weights=weights,
            x=x,
            y=y,
            eps=wide.expand(n_features),
            radius=float(reach.max()),
            norm=norm,
            box=(low, high),
            lower=torch.maximum(lower, low),
            upper=torch.minimum(upper, high),
            inner_lower=inner[0],
            inner_upper=inner[1],
        )

    @property
    def shown_eps(self) -> float | list[float]:
        """The radius, one number where it is the same for all features."""
        values: list[float] = self.eps.tolist()
        return values[0] if len(set(values)) == 1 else values

    def key(self) -> str:
        """Return what tells this task from others, and from proofs of another version."""
        digest = hashlib.sha256(f"{__version__} {self.norm}".encode())
        for tensor in (*self.weights, self.x, self.y, self.eps, *self.box):
            digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def answers(self, points: Tensor) -> Tensor:
        """Return the classes (n,) that the network answers."""
        logits = [self.model(part) for part in points.split(_ROWS)]
        return torch.cat(logits).argmax(1)

    def into_ball(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return points (k, n_features) near the given ones in the balls of samples `rows` (k,)."""
        if self.norm == "L2":
            center = self.x[rows].double()
            step = points.double() - center
            # Rounding to the network's type moves a point out by that much at most.
            unit = torch.finfo(self.x.dtype).eps
            moved = unit * (center.abs() + step.abs()).norm(dim=1, keepdim=True)
            most = (self.eps.max() - moved).clamp(min=0)
            length = step.norm(dim=1, keepdim=True)
            points = center + step * (most / length.clamp(min=1e-300)).clamp(max=1)
        kept = torch.maximum(points.to(self.x.dtype), self.inner_lower[rows])
        return torch.minimum(kept, self.inner_upper[rows])

    def breaks(self, points: Tensor, rows: Tensor) -> Tensor:
        """Say which points (k, n_features) break the samples `rows` (k,): exactly in the ball."""
        exact = points.double()
        inside = ((exact >= self.box[0]) & (exact <= self.box[1])).all(1)
        if self.norm == "Linf":
            inside &= within_linf(points, self.x[rows], self.eps)
        else:
            inside &= within_l2(points, self.x[rows], self.eps[0])
        wrong = inside & (self.answers(points) != self.y[rows])
        # What rounding decides may be decided otherwise where it is asked about alone.
        for k in wrong.nonzero().flatten().tolist():
            wrong[k] = int(self.model(points[k : k + 1]).argmax(1)) != int(self.y[rows[k]])
        return wrong

    def first_breaking(self, points: Tensor, row: int) -> Tensor | None:
        """Return the first of points (k, n_features), put into the ball, that breaks a sample."""
        rows = torch.full((len(points),), row, device=points.device)
        near = self.into_ball(points, rows)
        wrong = self.answers(near) != self.y[row]
        if not bool(wrong.any()):
            return None
        near = near[wrong]
        broken = self.breaks(near, rows[wrong])
        return near[broken][0] if bool(broken.any()) else None

    def check_answers(self) -> None:
        """Raise ValueError unless the network answers as its weights say, up to rounding."""
        wide = self.x.double()
        off = (self.model(self.x).double() - real_logits(self.weights, self.x)).abs()
        allowed = logit_errors(self.weights, wide, wide)
        # What is not a number is never proven, and needs no error.
        if bool((off > allowed).any()):
            raise ValueError(
                f"the model's answers differ from those of its weights by {float(off.max()):.3g},"
                " more than rounding can explain: switch off TF32 and other narrow sums"
                " (torch.set_float32_matmul_precision('highest'))"
            )


class _Journal:
    """A file with a line for each sample that is done; the first line says of which task."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.known = path, dict[int, dict[str, Any]]()
        head = json.dumps({"nnmf-cuda": "verification", "of": key})
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if not lines or lines == [b""]:
            path.write_text(head + "\n", encoding="utf-8")
            return
        if lines[0].decode("utf-8", "replace") != head:
            raise ValueError(
                f"{path} is the record of another verification (another model, eps, norm, box,"
                " samples or version), or of none: give another file to resume, or remove it"
            )
        # What was cut short while it was written is done again.
        whole = lines[:-1]
        for line in whole[1:]:
            entry = json.loads(line)
            self.known[entry["sample"]] = entry
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in whole))

    def note(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


@dataclass
class _Run:
    """Verification under way: what is known so far."""

    task: _Task
    journal: _Journal | None
    seconds: float
    total_seconds: float
    batch_size: int
    progress: bool
    status: list[Status | None] = field(init=False)

    def __post_init__(self) -> None:
        n, n_features = self.task.x.shape
        self.status = [None] * n
        self.lower_bound = np.full(n, -np.inf)
        self.rounding = np.full(n, np.inf)
        self.counterexample = np.full((n, n_features), np.nan)
        self.n_boxes = np.zeros(n, np.int64)
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
            finite = math.isfinite
            low, off = float(self.lower_bound[row]), float(self.rounding[row])
            self.journal.note(
                {
                    "sample": row,
                    "status": str(status),
                    "lower_bound": low if finite(low) else None,
                    "rounding": off if finite(off) else None,
                    "n_boxes": int(self.n_boxes[row]),
                    "seconds": {name: float(v[row]) for name, v in self.spent.items()},
                    "counterexample": None if point is None else point.double().tolist(),
                }
            )
        counts = {s: sum(found is s for found in self.status) for s in Status}
        self.bar.set_postfix({str(s): k for s, k in counts.items()}, refresh=False)
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
            for name in ("lower_bound", "rounding"):
                value = entry[name]
                unknown = -np.inf if name == "lower_bound" else np.inf
                getattr(self, name)[row] = unknown if value is None else value
            self.n_boxes[row] = entry["n_boxes"]
            for phase in PHASES:
                self.spent[phase][row] = entry["seconds"][phase]
            if point is not None:
                self.counterexample[row] = point
            self.status[row] = status
            self.bar.update()

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
                    if not bound > threshold:
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
            points = points - move * (0.1 * (1 - step / _N_STEPS))
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
        for row in sorted(left, key=lambda row: -self.lower_bound[row]):
            started = time.monotonic()
            until = min(end, started + self.seconds)
            status, point = Status.PROVEN, None
            lows = []
            for goal, root in roots[row]:
                found = search(
                    goal,
                    root,
                    partial(self.task.first_breaking, row=row),
                    until=until,
                    batch_size=self.batch_size,
                )
                self.n_boxes[row] += found.n_boxes
                lows.append(found.lower_bound)
                if found.point is not None:
                    status, point = Status.BROKEN, found.point
                    break
                if not found.proven:
                    status = Status.UNDECIDED
            self.lower_bound[row] = max(self.lower_bound[row], min(lows))
            self.spent["search"][row] += time.monotonic() - started
            self._settle(row, status, point)


def _margin_gradient(model: nn.Module, points: Tensor, label: Tensor) -> Tensor:
    """Return the gradients (k, n_features) of the label's margin over the best other class."""
    found = []
    for part, own in zip(points.split(_ROWS), label.split(_ROWS), strict=True):
        with torch.enable_grad():
            leaf = part.detach().requires_grad_()
            logits = model(leaf)
            mine = logits.gather(1, own[:, None])
            best = logits.scatter(1, own[:, None], -torch.inf).amax(1, keepdim=True)
            found.append(torch.autograd.grad((mine - best).sum(), leaf)[0])
    return torch.cat(found)
