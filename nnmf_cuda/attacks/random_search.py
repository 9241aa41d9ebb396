"""Square Attack for feature vectors and random models: random search over sets of features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import Box, Threat
from nnmf_cuda.attacks.objectives import ExpectedLoss
from nnmf_cuda.graphs import Repeated
from nnmf_cuda.models.networks import frozen, isolated

# The share of features that change at once, halved at these shares of the queries: Andriushchenko
# et al. (2020), section 4, whose schedule is for 10,000 queries.
_HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def vector_square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    n_queries: int = 1000,
    eot_iter: int = 1,
    first_share: float = 0.8,
    seed: int = 0,
) -> Tensor:
    """Search the ball around each sample for the largest mean margin loss, without gradients.

    A query changes a random set of features of each sample: under Linf to one end of what the ball
    allows, under L2 to random values, after which the perturbation is brought to full length. Every
    feature may be chosen, and no layout as an image plays a part.

    Parameters
    ----------
    model, x, y, attack_eps, norm, box
        As for `vector_apgd`; the model need not be differentiable.
    n_queries : int, default=1000
        Proposals for each sample.
    eot_iter : int, default=1
        Answers of a random model over which the margin is averaged. The point that is held is asked
        again beside every proposal, on as many answers: else it would keep the luck of the draw
        that it was accepted by.
    first_share : float, default=0.8
        Share of the features that the first queries change.
    seed : int, default=0
        Seeds torch's generators, which are put back afterwards.

    Returns
    -------
    Tensor of shape (n_samples, n_features)

    Raises
    ------
    ValueError
        If x leaves the box, or settings do not fit.

    References
    ----------
    .. [1] Andriushchenko, Croce, Flammarion & Hein (2020), Square Attack: a query-efficient
       black-box adversarial attack via random search, ECCV.
    """
    threat = Threat(attack_eps, norm, box)
    threat.check_features(x)
    if n_queries < 1 or not 0 < first_share <= 1:
        raise ValueError(
            f"n_queries={n_queries} must be at least 1, first_share={first_share} in (0, 1]"
        )
    with frozen(model), isolated(seed), torch.no_grad():
        ball = threat.ball(x)
        points = ball.random_corner()
        loss = ExpectedLoss(model, y, "margin", eot_iter)
        paired = ExpectedLoss(model, y.repeat(2), "margin", eot_iter)
        held = loss(points)

        def query(mask: Tensor, values: Tensor) -> None:
            proposed = ball.changed(points, mask, values)
            if eot_iter > 1:
                of_held, found = paired(torch.cat((points, proposed))).chunk(2)
                held.copy_(of_held)
            else:
                found = loss(proposed)
            # A NaN is never larger: such a point is not taken.
            better = found > held
            torch.where(better.unsqueeze(1), proposed, points, out=points)
            torch.where(better, found, held, out=held)

        ask = Repeated(query, x.device, name="a query of Square", asked=model)
        for i in range(n_queries):
            n_halvings = sum(i / n_queries > at for at in _HALVED_AT)
            ask(*ball.draw_change(first_share / 2**n_halvings))
    return points
