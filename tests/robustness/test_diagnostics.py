"""What diagnoses an attack, on models whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import Threat
from nnmf_cuda.evaluation.robustness import FLAT, Curve
from nnmf_cuda.robustness import EvaluationBudget, diagnostics


class Line(nn.Module):
    """Two logits, 0 and the first feature less a half, behind noise."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        score = x[:, 0] - 0.5 + self.noise * torch.randn(len(x))
        return torch.stack((torch.zeros_like(score), score), 1)


def attacker(model: nn.Module, target: nn.Module | None = None) -> diagnostics.Attacker:
    x = torch.zeros(20, 3)
    x[:, 0] = torch.linspace(0.525, 0.975, 20)  # 0.025 to 0.475 from the boundary
    return diagnostics.Attacker(
        model=model,
        target=target or model,
        x=x,
        y=torch.ones(20, dtype=torch.int64),
        threat=Threat(0.1),
        seed=0,
        evaluation_seed=1,
    )


def test_accuracy_against_eps_is_the_distance_from_the_boundary() -> None:
    found = attacker(Line()).curve("attack_eps", (0.0, 0.1, 0.25, 0.5), n_iter=20)
    # 4 of the 20 samples are nearer than 0.1, 10 nearer than 0.25.
    assert found.robust_accuracy == pytest.approx([1.0, 0.8, 0.5, 0.0], abs=0.051)


def test_masked_gradients_do_not_reach_zero() -> None:
    class Steps(Line):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.round(x, decimals=2)) + 0 * x[:, :1]

    found = attacker(Steps()).curve("attack_eps", (0.0, 0.1), n_iter=5)
    assert min(found.robust_accuracy) > 0


def test_a_falling_curve_has_not_converged() -> None:
    """Each step of PGD's kind reaches further: the last increase still finds more."""
    falling = Curve("n_iter", (1, 2, 3), (0.9, 0.7, 0.5))
    assert not falling.converged
    assert falling.as_dict() == {"n_iter": [1, 2, 3], "robust_accuracy": [0.9, 0.7, 0.5]}
    assert Curve("n_iter", (1, 2, 3), (0.9, 0.5, 0.5 - FLAT / 2)).converged
    assert not Curve("n_iter", (1,), (0.9,)).converged


def test_more_steps_and_starts_find_no_less() -> None:
    for setting, values in (("n_iter", (1, 20)), ("n_restarts", (1, 2))):
        first, last = attacker(Line()).curve(setting, values).robust_accuracy
        assert last <= first
        assert last == pytest.approx(0.8, abs=0.051)


def test_draws_are_not_averaged_where_there_is_no_noise() -> None:
    budget = EvaluationBudget(
        curve_iter=2, attack_eps=(0.0, 0.1), n_iter=(1, 2), n_restarts=(1, 2), eot_iter=(1, 8, 9)
    )
    assert diagnostics.draw_curves(attacker(Line()), budget).draws is None
    found = diagnostics.draw_curves(attacker(Line(0.1)), budget)
    assert found.draws is not None
    assert [len(c.robust_accuracy) for c in (found.eps, found.draws)] == [2, 3]


def test_gradients_agree_more_the_more_answers_are_averaged() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x * (1 + 3 * torch.randn_like(x))).sum(1)
            return torch.stack((torch.zeros_like(score), score), 1)

    x, y = torch.rand(30, 6), torch.ones(30, dtype=torch.int64)
    state = torch.get_rng_state()
    cosines = diagnostics.gradient_agreement(Noisy(), x, y, (1, 16, 400), seed=0)
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.5 < 0.9 < cosines[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_are_compared_with_finite_differences() -> None:
    x, y = torch.rand(30, 3), torch.ones(30, dtype=torch.int64)

    class Curved(nn.Module):
        def __init__(self, kept: float) -> None:
            super().__init__()
            self.kept = kept

        def forward(self, x: Tensor) -> Tensor:
            x = self.kept * x + (1 - self.kept) * x.detach()
            score = x.square().sum(1)
            return torch.stack((score, -score), 1)

    assert diagnostics.check_gradients(Curved(1.0), x, y).largest_error < 1e-6
    found = diagnostics.check_gradients(Curved(0.5), x, y)
    assert found.median_error > 0.01
    assert found.report.zero_gradient_share == 0
