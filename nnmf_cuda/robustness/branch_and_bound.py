"""Branch and bound over boxes of the input: one sample, one other class.

The margin of a sample's label over another class is bounded from below on a box (`crown_bounds`).
Where the bound is not above the threshold, the linear function that gave it still is on a part of
the box, mostly a large one: what is left is a smaller box, which is cut in two where the function
falls most, and so on, worst boxes first. A proof is complete when no box is left.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda import ops

_UNIT = 2.0**-53
_HALVINGS = 40
"""Of the interval in which a Lagrange multiplier is searched."""


@dataclass(frozen=True)
class Goal:
    """What is to be proved: a functional of the logits is above a threshold in a ball.

    Attributes
    ----------
    weights : sequence of Tensor
        As for `ops.crown_bounds`.
    objective : Tensor of shape (n_classes,)
        float64.
    threshold : float
    center : Tensor of shape (n_features,) or None
        With `radius`, of an L2 ball; without, the ball is a box.
    radius : float
    """

    weights: Sequence[Tensor]
    objective: Tensor
    threshold: float
    center: Tensor | None = None
    radius: float = 0.0


@dataclass(frozen=True)
class Boxes:
    """Boxes (B, n_features) with what is known of them: nothing of a box cut off is lost.

    Attributes
    ----------
    lower, upper : Tensor of shape (B, n_features)
    bound : Tensor of shape (B,)
        Of the functional on each box.
    slope : Tensor of shape (B, n_features)
        Of the linear function that gave it.
    hidden_lower, hidden_upper : Tensor of shape (B, n_hidden)
        Bounds of the last hidden layer.
    """

    lower: Tensor
    upper: Tensor
    bound: Tensor
    slope: Tensor
    hidden_lower: Tensor
    hidden_upper: Tensor

    def __getitem__(self, rows: Tensor) -> Boxes:
        return Boxes(*(tensor[rows] for tensor in self._tensors()))

    def __len__(self) -> int:
        return len(self.bound)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (
            self.lower,
            self.upper,
            self.bound,
            self.slope,
            self.hidden_lower,
            self.hidden_upper,
        )

    def joined(self) -> Tensor:
        """Return all of it as rows of one matrix."""
        return torch.cat([t if t.dim() == 2 else t[:, None] for t in self._tensors()], 1)

    @classmethod
    def parted(cls, rows: Tensor, n: int, n_hidden: int) -> Boxes:
        """Undo `joined`."""
        lower, upper, bound, slope, low, high = rows.split((n, n, 1, n, n_hidden, n_hidden), 1)
        return cls(lower, upper, bound[:, 0], slope, low, high)


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes
    ----------
    proven : bool
        Whether no box is left.
    lower_bound : float
        The functional is at least that large in the whole ball.
    n_boxes : int
        Boxes that were bounded.
    point : Tensor of shape (n_features,) or None
        One that breaks the network, where one was found.
    """

    proven: bool
    lower_bound: float
    n_boxes: int
    point: Tensor | None = None


def search(
    goal: Goal,
    root: Boxes,
    broken_among: Callable[[Tensor], Tensor | None],
    *,
    until: float,
    batch_size: int,
) -> Found:
    """Try to prove a goal, or to find a point that breaks the network.

    Parameters
    ----------
    goal : Goal
    root : Boxes
        One box around the ball, bounded.
    broken_among : callable
        Takes points (k, n_features) in float64 and returns one near them that the network answers
        wrongly, or None.
    until : float
        Of `time.monotonic`, when to give up.
    batch_size : int
        Boxes that are bounded at once.
    """
    frontier, n_boxes = _Frontier(root), 0
    least = goal.threshold  # of what is closed: what was cut off is above the threshold
    stuck = torch.inf
    point = broken_among(_candidates(root))
    if point is not None:
        return Found(False, float(root.bound[0]), n_boxes, point)
    if not goal.threshold < torch.inf:  # out of reach, however small the boxes
        return Found(False, float(root.bound[0]), n_boxes)
    frontier.push(_trimmed(goal, root))
    while len(frontier):
        if time.monotonic() > until:
            return Found(False, min(frontier.least(), stuck), n_boxes)
        parents = frontier.pop(max(1, batch_size // 2))
        can = _can_be_cut(parents).any(1)
        if not can.all():
            stuck = min(stuck, float(parents.bound[~can].amin()))
            parents = parents[can]
        if not len(parents):
            continue
        children = bounded(goal, _halves(goal, parents))
        n_boxes += len(children)
        # Not (bound <= threshold), so that what is not a number stays open.
        children = children[~(children.bound > goal.threshold)]
        if not len(children):
            continue
        point = broken_among(_candidates(children))
        if point is not None:
            lowest = min(frontier.least(), stuck, float(children.bound.amin()))
            return Found(False, lowest, n_boxes, point)
        frontier.push(_trimmed(goal, children))
    if stuck < torch.inf:
        return Found(False, stuck, n_boxes)
    return Found(True, least, n_boxes)


def bounded(goal: Goal, boxes: Boxes) -> Boxes:
    """Return the boxes with bounds of their own, none looser than those they came with."""
    n_boxes = len(boxes)
    center, radius = None, None
    if goal.center is not None:
        center = goal.center.expand(n_boxes, -1).contiguous()
        radius = boxes.bound.new_full((n_boxes,), goal.radius)
    objective = goal.objective.expand(n_boxes, -1).contiguous()
    found = ops.crown_bounds(
        boxes.lower,
        boxes.upper,
        goal.weights,
        objective,
        center=center,
        radius=radius,
        hidden=(boxes.hidden_lower, boxes.hidden_upper),
    )
    bound = found.bound
    if goal.center is not None:
        gain = _gain_in_both(boxes, found.slope, goal.center, goal.radius)
        bound = torch.nextafter(bound + gain, torch.full_like(bound, -torch.inf))
    return Boxes(boxes.lower, boxes.upper, bound, *found[1:])


def _minima(boxes: Boxes, slope: Tensor, center: Tensor, radius: float) -> tuple[Tensor, ...]:
    """Return the minima of slope . x over boxes and over the ball, and by how much they may be off.

    Each (B,).
    """
    box = torch.where(slope > 0, boxes.lower, boxes.upper)
    size = torch.maximum(boxes.lower.abs(), boxes.upper.abs()) + center.abs() + radius
    over_box = (slope * box).sum(1)
    over_ball = slope @ center - radius * slope.norm(dim=1)
    doubt = (4 * slope.shape[1] + 32) * _UNIT * (slope.abs() * size).sum(1)
    return over_box, over_ball, doubt


def _gain_in_both(boxes: Boxes, slope: Tensor, center: Tensor, radius: float) -> Tensor:
    """Return by how much the minimum of slope . x over box and ball exceeds either's, from below.

    For any multiplier > 0 the minimum of slope . x + multiplier (|x - center|^2 - radius^2) over
    the box, which each feature has for itself, is at most that over what box and ball share.
    """
    over_box, over_ball, doubt = _minima(boxes, slope, center, radius)

    def nearest(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        x = (center - slope / (2 * multiplier[:, None])).clamp(boxes.lower, boxes.upper)
        return x, (x - center).square().sum(1)

    steepest = slope.norm(dim=1).clamp(min=1e-300) / (2 * max(radius, 1e-300))
    low, high = steepest * 2.0**-_HALVINGS, steepest * 2.0
    for _ in range(_HALVINGS):
        middle = (low * high).sqrt()
        far = nearest(middle)[1] > radius * radius
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    x, squares = nearest(high)
    value = (slope * x).sum(1) + high * (squares - radius * radius)
    doubt = doubt + (8 * slope.shape[1] + 64) * _UNIT * high * (squares + radius * radius)
    gain: Tensor = value - 4 * doubt - torch.maximum(over_box, over_ball)
    # nan_to_num: a slope of zeros has nothing to gain.
    return gain.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


def _candidates(boxes: Boxes) -> Tensor:
    """Return where the network may be wrong: minimisers of the linear functions, and middles."""
    ends = torch.where(boxes.slope > 0, boxes.lower, boxes.upper)
    return torch.cat((ends, (boxes.lower + boxes.upper) / 2))


def _trimmed(goal: Goal, boxes: Boxes) -> Boxes:
    """Cut off where the linear function is above the threshold, and what lies beyond the ball.

    On the box the functional is at least bound + sum_i |slope_i| d_i, where d_i is the distance
    from the end at which feature i is least good.
    """
    lower, upper, slope = boxes.lower, boxes.upper, boxes.slope
    gap = (goal.threshold - boxes.bound) * (1 + 2.0**-48) + 1e-300
    if goal.center is not None:
        # The bound may be the minimum over the ball; distances are from that over the box.
        over_box, over_ball, doubt = _minima(boxes, slope, goal.center, goal.radius)
        gain = _gain_in_both(boxes, slope, goal.center, goal.radius)
        least = torch.maximum(over_box, over_ball) + gain
        gap = gap + (least - over_box).clamp(min=0) + 2 * doubt
    reach = gap[:, None] / slope.abs() * (1 + 2.0**-48)
    far = torch.full_like(lower, torch.inf)
    # Slopes of zero, and what is not a number, cut nothing.
    from_low = torch.nextafter(lower + reach, far)
    from_high = torch.nextafter(upper - reach, -far)
    new_upper = torch.where((slope > 0) & (from_low < upper), from_low, upper)
    new_lower = torch.where((slope < 0) & (from_high > lower), from_high, lower)
    keep = torch.ones(len(lower), dtype=torch.bool, device=lower.device)
    if goal.center is not None:
        new_lower, new_upper, keep = _within_ball(new_lower, new_upper, goal.center, goal.radius)
    trimmed = Boxes(new_lower, new_upper, *boxes._tensors()[2:])
    return trimmed[keep]


def _within_ball(
    lower: Tensor, upper: Tensor, center: Tensor, radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Narrow boxes (B, n) to what the ball reaches; also say of which it reaches any."""
    doubt = 1 + (lower.shape[1] + 16) * 2.0**-50
    apart = torch.maximum(lower - center, center - upper).clamp(min=0).square()
    total = apart.sum(1, keepdim=True)
    edge = radius * radius * doubt + 1e-300  # a square may underflow
    # What the other features leave of the radius.
    left = (edge - (total - apart) + total * (doubt - 1)).clamp(min=0).sqrt() * doubt
    slack = (center.abs() + radius) * 2.0**-50
    low, high = center - left - slack, center + left + slack
    # fmax: squares that overflow narrow nothing.
    low, high = torch.fmax(lower, low), torch.fmin(upper, high)
    return low, high, (total <= edge * doubt)[:, 0] & (low <= high).all(1)


def _can_be_cut(boxes: Boxes) -> Tensor:
    """Say of each feature (B, n) whether float64 has a number between its ends."""
    middle = boxes.lower / 2 + boxes.upper / 2
    return (middle > boxes.lower) & (middle < boxes.upper)


def _halves(goal: Goal, boxes: Boxes) -> Boxes:
    """Return both halves of each box, cut where the linear function falls most."""
    lower, upper = boxes.lower, boxes.upper
    middle = lower / 2 + upper / 2
    falls = boxes.slope.abs() * (upper - lower)
    # Where the function is flat, any feature will do: the widest.
    flat = (falls <= 0).all(1, keepdim=True)
    score = torch.where(flat, upper - lower, falls).masked_fill(~_can_be_cut(boxes), -1)
    cut = score.argmax(1, keepdim=True)
    at = middle.gather(1, cut)
    rest = boxes._tensors()[2:]
    halves = Boxes(
        torch.cat((lower, lower.scatter(1, cut, at))),
        torch.cat((upper.scatter(1, cut, at), upper)),
        *(torch.cat((tensor, tensor)) for tensor in rest),
    )
    if goal.center is None:
        return halves
    low, high, keep = _within_ball(halves.lower, halves.upper, goal.center, goal.radius)
    return Boxes(low, high, *halves._tensors()[2:])[keep]


class _Frontier:
    """Open boxes, worst first: rows of one matrix, which grows, and a heap of their places."""

    def __init__(self, like: Boxes) -> None:
        self._n, self._n_hidden = like.lower.shape[1], like.hidden_lower.shape[1]
        self._rows = like.joined().new_empty(1024, like.joined().shape[1])
        self._free = list(range(len(self._rows)))
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def least(self) -> float:
        """Return the least bound; infinite where no box is open."""
        return self._heap[0][0] if self._heap else torch.inf

    def push(self, boxes: Boxes) -> None:
        while len(self._free) < len(boxes):
            size = len(self._rows)
            self._rows = torch.cat((self._rows, torch.empty_like(self._rows)))
            self._free += range(size, 2 * size)
        places = [self._free.pop() for _ in range(len(boxes))]
        self._rows[places] = boxes.joined()
        for bound, place in zip(boxes.bound.tolist(), places, strict=True):
            heapq.heappush(self._heap, (bound, place))

    def pop(self, count: int) -> Boxes:
        count = min(count, len(self._heap))
        places = [heapq.heappop(self._heap)[1] for _ in range(count)]
        self._free += places
        return Boxes.parted(self._rows[places], self._n, self._n_hidden)
