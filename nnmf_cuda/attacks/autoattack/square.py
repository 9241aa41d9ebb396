"""Square Attack on feature vectors: a random search that needs no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.attacks.objectives import LogitsOf, margin_loss
from nnmf_cuda.graphs import Repeated

# Random numbers that place the square. It has one place only here, but they are drawn all the same,
# so that those after them are the authors'.
_N_PLACES = 2
# Queries about the same samples before one is recorded: as many as without a broken sample lead to
# 16 between two looks (1 + 2 + 4 + 8).
_PLAIN_QUERIES = 15


def square_attack(
    logits_of: LogitsOf,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float,
    n_queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Search the Linf ball around each sample of x (n, n_features) for a point of negative margin.

    Returns (n, n_features): points that were wrong at a last look, the other samples as they are in
    x. A feature vector is laid out as one pixel of n_features channels. The square is that pixel at
    any size, so every query proposes a step of all features, by 2 attack_eps up or down, the same
    for all samples, and each sample takes it where its margin falls; a broken one is not asked
    about again. Andriushchenko, Croce, Flammarion & Hein (2020), Square Attack: a query-efficient
    black-box adversarial attack via random search, ECCV.

    Random numbers are the authors', as in `apgd_attack`, and the model is asked about the same
    points at every query: the points are equal bit for bit. A GPU is waited for once in up to 16
    queries, which are taken back from the first on that broke a sample: the next is about fewer.
    """
    with torch.no_grad():
        x_adv = x.clone()
        right = logits_of(x).argmax(1) == y
        torch.manual_seed(seed)
        rows = right.nonzero().squeeze(1)
        if len(rows) > 0:
            points = _search(logits_of, x[rows], y[rows], attack_eps, n_queries)
            broken = logits_of(points).argmax(1) != y[rows]
            x_adv[rows[broken]] = points[broken]
    return x_adv


def _search(logits_of: LogitsOf, x: Tensor, y: Tensor, attack_eps: float, n_queries: int) -> Tensor:
    """Return the points (n, M) of smallest margin that were found."""
    start = _draw_signs_(torch.empty(x.shape)).to(x.device)
    start = start.mul_(attack_eps).add_(x).clamp_(0, 1)
    active = _Active(
        logits_of,
        2 * attack_eps,
        torch.arange(len(x), device=x.device),
        y,
        start,
        _margins(logits_of(start), y),
        lower=(x - attack_eps).clamp_(min=0),
        upper=(x + attack_eps).clamp_(max=1),
        counts=(most := _queries_between_looks(x.device)) > 1,
    )
    points = start.clone()
    draw = _Signs(x.shape[1], x.device).draw
    active.retire(points)
    done, length = 0, 1
    while done < n_queries and len(active.rows) > 0:
        length = min(length, n_queries - done)
        before = _Before.of(active) if length > 1 else None
        for _ in range(length):
            active.ask(draw())
        n_held = active.n_held_all()
        if n_held == length:
            done, length = done + length, min(2 * length, most)
            continue
        if before is not None and n_held + 1 < length:
            # Those that came after were about samples that they should not have been about.
            before.put_back(active)
            for _ in range(n_held + 1):
                active.ask(draw())
        active.retire(points)
        done, length = done + n_held + 1, 1
    points[active.rows] = active.points
    return points


def _queries_between_looks(device: torch.device) -> int:
    """Return after how many queries, at most, to look for broken samples: a GPU must be waited for.

    They are fewer where samples break: one after each that broke one, then twice as many.
    """
    return 16 if device.type == "cuda" else 1


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much (n, 1) the label's logit exceeds the largest other one."""
    return -margin_loss(logits, labels).unsqueeze(1)


def _draw_signs_(tensor: Tensor) -> Tensor:
    return tensor.uniform_(-0.5, 0.5).sign_()


class _Signs:
    """Draws the signs (M,) of each query."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        self._draws = torch.empty(_N_PLACES + n_features)
        self._signs = self._draws[_N_PLACES:]
        self._pins = device.type == "cuda"

    def draw(self) -> Tensor:
        """Return new signs on the host, valid until called again.

        For a GPU they are pinned and a copy, so that the one to the device need not be waited for.
        """
        _draw_signs_(self._draws)
        return self._signs.pin_memory() if self._pins else self._signs


@dataclass
class _Active:
    """The samples that are still asked about, kept dense: the model sees no others.

    size: of a step; rows (n,) into all samples; labels (n,); margins (n, 1); points, lower, upper
    (n, M); counts: whether there may be several queries between two looks.
    """

    logits_of: LogitsOf
    size: float
    rows: Tensor
    labels: Tensor
    points: Tensor
    margins: Tensor
    lower: Tensor
    upper: Tensor
    counts: bool

    def __post_init__(self) -> None:
        self._count_anew()

    def _count_anew(self) -> None:
        device = self.points.device
        self._proposed = torch.empty_like(self.points)
        # The queries after which all samples held; margins only fall, so they are the first ones.
        self._held_all = torch.zeros((), dtype=torch.int64, device=device)
        self._n_known = 0
        self.ask = Repeated(
            self._ask,
            device,
            name="a query of AutoAttack's Square",
            asked=self.logits_of,
            n_plain=_PLAIN_QUERIES,
        )

    def _ask(self, signs: Tensor) -> None:
        """Propose all points a step further, in ball and box, and take over what lowers a margin.

        All margins were positive before, so a point that breaks a sample lowers its margin.
        """
        proposed = torch.add(self.points, signs, alpha=self.size, out=self._proposed)
        torch.clamp(proposed, self.lower, self.upper, out=proposed)
        margins = _margins(self.logits_of(proposed), self.labels)
        lower = margins < self.margins
        torch.where(lower, proposed, self.points, out=self.points)
        torch.where(lower, margins, self.margins, out=self.margins)
        if self.counts:
            self._held_all += self.margins.amin() > 0

    def n_held_all(self) -> int:
        """Return after how many queries since the last look no sample was broken; waits for it."""
        if not self.counts:
            return int(float(self.margins.amin()) > 0)
        known, self._n_known = self._n_known, int(self._held_all)
        return self._n_known - known

    def retire(self, points: Tensor) -> None:
        """Write the points of all into `points` (n_samples, M), and keep who is not broken."""
        points[self.rows] = self.points
        kept = (self.margins.squeeze(1) > 0).nonzero().squeeze(1)
        for name in ("rows", "labels", "points", "margins", "lower", "upper"):
            setattr(self, name, getattr(self, name)[kept])
        self._count_anew()


@dataclass(frozen=True)
class _Before:
    """Where samples and random numbers stood at a look."""

    points: Tensor
    margins: Tensor
    host: Tensor
    device: Tensor | None

    @classmethod
    def of(cls, active: _Active) -> _Before:
        """Keep where they stand."""
        device = active.points.device
        of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        points, margins = active.points.clone(), active.margins.clone()
        return cls(points, margins, torch.get_rng_state(), of_device)

    def put_back(self, active: _Active) -> None:
        """Have them stand there again."""
        active.points.copy_(self.points)
        active.margins.copy_(self.margins)
        torch.set_rng_state(self.host)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, active.points.device)
