"""Square Attack on feature vectors: a random search that needs no gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.attacks.objectives import LogitsOf, margin_loss

# Random numbers that place the square. It has one place only here, but they are drawn all the same,
# so that those after them are the authors'.
_N_PLACES = 2


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
    points at every query: the points are equal bit for bit. On a GPU a query waits for the device
    once, and once more where a margin fell: the next is about fewer samples if that broke one.
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
        torch.arange(len(x), device=x.device),
        y,
        start,
        _margins(logits_of(start), y),
        lower=(x - attack_eps).clamp_(min=0),
        upper=(x + attack_eps).clamp_(max=1),
    )
    points = start.clone()
    signs = _Signs(x.shape[1], x.device)
    active.retire(points)
    for _ in range(n_queries):
        if len(active.rows) == 0:
            break
        proposed = active.propose(signs.draw(), 2 * attack_eps)
        margins = _margins(logits_of(proposed), active.labels)
        if active.accept(proposed, margins):
            active.retire(points)
    points[active.rows] = active.points
    return points


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much (n, 1) the label's logit exceeds the largest other one."""
    return -margin_loss(logits, labels).unsqueeze(1)


def _draw_signs_(tensor: Tensor) -> Tensor:
    return tensor.uniform_(-0.5, 0.5).sign_()


class _Signs:
    """Draws the signs (M,) of each query into one buffer."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        # Pinned, the copy to a GPU does not wait; `accept` has waited for it before the next draw.
        self._draws = torch.empty(_N_PLACES + n_features, pin_memory=device.type == "cuda")
        self._signs = self._draws[_N_PLACES:]
        self._device = device

    def draw(self) -> Tensor:
        """Return new signs; on the CPU valid until called again."""
        _draw_signs_(self._draws)
        return self._signs.to(self._device, non_blocking=True)


@dataclass
class _Active:
    """The samples that are still asked about, kept dense: the model sees no others.

    rows (n,) into all samples; labels (n,); margins (n, 1); points, lower, upper (n, M).
    """

    rows: Tensor
    labels: Tensor
    points: Tensor
    margins: Tensor
    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        self._proposed = torch.empty_like(self.points)

    def propose(self, signs: Tensor, size: float) -> Tensor:
        """Return all points a step further, in ball and box; valid until called again."""
        torch.add(self.points, signs, alpha=size, out=self._proposed)
        return torch.clamp(self._proposed, self.lower, self.upper, out=self._proposed)

    def accept(self, proposed: Tensor, margins: Tensor) -> bool:
        """Take over what lowers a margin; returns whether that broke a sample.

        All margins were positive before, so a point that breaks one lowers it.
        """
        lower = margins < self.margins
        if not bool(lower.any()):  # most queries, after the first few
            return False
        torch.where(lower, proposed, self.points, out=self.points)
        self.margins = torch.where(lower, margins, self.margins)
        return bool(self.margins.amin() <= 0)

    def retire(self, points: Tensor) -> None:
        """Write the points of all into `points` (n_samples, M), and keep who is not broken."""
        points[self.rows] = self.points
        kept = (self.margins.squeeze(1) > 0).nonzero().squeeze(1)
        for name in ("rows", "labels", "points", "margins", "lower", "upper"):
            setattr(self, name, getattr(self, name)[kept])
        self._proposed = self._proposed[: len(kept)]
