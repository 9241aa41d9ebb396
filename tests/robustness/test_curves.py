"""Curves of an evaluation on models whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.robustness import diagnostics as curves


class Line(nn.Module):
    """Two logits, 0 and the first feature less a half, behind noise."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0] - 0.5 + self.noise * torch.randn(len(x))
        return torch.stack((torch.zeros_like(score), score), 1)


def attacker(model: nn.Module, target: nn.Module | None = None) -> curves.Attacker:
    x = torch.zeros(20, 3)
    x[:, 0] = torch.linspace(0.525, 0.975, 20)  # 0.025 to 0.475 from the boundary
    return curves.Attacker(
        model=model,
        target=target or model,
        x=x,
        y=torch.ones(20, dtype=torch.int64),
        attack_eps=0.1,
        norm="Linf",
        seed=0,
        evaluation_seed=1,
    )


def test_accuracy_against_eps_is_the_distance_from_the_boundary() -> None:
    found = curves.eps_curve(attacker(Line()), (0.0, 0.1, 0.25, 0.5), n_iter=20)
    # 4 of the 20 samples are nearer than 0.1, 10 nearer than 0.25.
    assert found["robust_accuracy"] == pytest.approx([1.0, 0.8, 0.5, 0.0], abs=0.051)
    assert found["reaches_zero"]


def test_masked_gradients_do_not_reach_zero() -> None:
    class Steps(Line):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.round(x, decimals=2)) + 0 * x[:, :1]

    found = curves.eps_curve(attacker(Steps()), (0.0, 0.1), n_iter=5)
    assert not found["reaches_zero"]


def test_a_falling_curve_has_not_converged() -> None:
    """Each step of PGD's kind reaches further: the last increase still finds more."""
    accuracies = iter((0.9, 0.7, 0.5))
    found = curves._curve("n_iter", (1, 2, 3), lambda _: next(accuracies))
    assert found == {"n_iter": [1, 2, 3], "robust_accuracy": [0.9, 0.7, 0.5], "converged": False}
    accuracies = iter((0.9, 0.5, 0.495))
    assert curves._curve("n_iter", (1, 2, 3), lambda _: next(accuracies))["converged"]


def test_draws_are_not_averaged_where_there_is_no_noise() -> None:
    assert "note" in curves.eot_curve(attacker(Line()), (1, 8), n_iter=5)
    found = curves.eot_curve(attacker(Line(0.1)), (1, 8), n_iter=5)
    assert len(found["robust_accuracy"]) == 2


def test_gradients_agree_more_the_more_answers_are_averaged() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x * (1 + 3 * torch.randn_like(x))).sum(1)
            return torch.stack((torch.zeros_like(score), score), 1)

    x, y = torch.rand(30, 6), torch.ones(30, dtype=torch.int64)
    state = torch.get_rng_state()
    cosines = curves.gradient_agreement(Noisy(), x, y, (1, 16, 400), seed=0)["cosine"]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.5 < 0.9 < cosines[2]
    assert torch.equal(torch.get_rng_state(), state)
