from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import run_autoattack
from nnmf_cuda.attacks.autoattack.backend import expected_calls
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser

# A few steps are enough to break a plain network, and keep the tests quick.
QUICK = {"n_iter": 10, "n_restarts": 2, "n_queries": 50}


class Linear(nn.Module):
    """Logits (0, w x + b): right for label 1 where w x + b > 0."""

    def __init__(self, weight: list[float], bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        score = x @ self.weight + self.bias
        return torch.stack((torch.zeros_like(score), score), 1)


class Noisy(nn.Module):
    """A classifier with noise added to its input from the global generator."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x + 0.05 * torch.randn_like(x))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def test_breaks_a_plain_classifier(classifier, samples):
    x, y = samples
    result = run_autoattack(classifier, x, y, attack_eps=0.1, **QUICK)
    assert result.clean_accuracy == pytest.approx(accuracy(classifier, x, y))
    assert result.clean_accuracy > 0.9
    assert result.accuracy_after["square"] < 0.1
    assert list(result.accuracy_after) == list(result.seconds) == ["apgd-ce", "square"]
    assert result.seconds["apgd-ce"] > 0
    # A deterministic model: its fresh predictions are what AutoAttack counted.
    assert result.accuracy_after["square"] == int(result.robust_flags.sum()) / len(x)
    assert result.accuracy_after["square"] == pytest.approx(accuracy(classifier, result.x_adv, y))
    assert result.warnings == []
    assert result.layout == "(N, M, 1, 1), the weakest for Square"
    assert result.zero_gradient_share < 1
    assert result.grad_norm_mean > 0


@pytest.mark.parametrize(
    ("norm", "attacks", "order"),
    [("Linf", ("apgd-ce", "square"), float("inf")), ("L2", ("apgd-ce", "fab"), 2)],
)
def test_stays_in_the_ball_and_the_box(classifier, samples, norm, attacks, order):
    x, y = samples
    result = run_autoattack(classifier, x, y, norm=norm, attacks=attacks, attack_eps=0.15, **QUICK)
    distance = (result.x_adv - x).norm(p=order, dim=1)
    assert float(distance.max()) <= 0.15 + 1e-6
    assert result.max_perturbation == pytest.approx(float(distance.max()), rel=1e-5)
    assert float(result.x_adv.min()) >= 0
    assert float(result.x_adv.max()) <= 1
    assert result.x_adv.dtype == torch.float32
    assert result.x_adv.shape == x.shape
    # Points that held keep their clean position.
    assert torch.equal(result.x_adv[result.robust_flags], x[result.robust_flags])


@pytest.mark.parametrize("attack", ["apgd-ce", "square", "fab", "fab-t"])
def test_every_attack_finds_the_exact_boundary_of_a_linear_model(attack):
    # x = (0.5, 0.5), score x0 - x1 + margin: eps moves the score by at most 2 eps, so exactly
    # the samples with margin < 0.2 can be broken.
    margins = torch.tensor([0.05, 0.15, 0.25, 0.35])
    x = torch.full((4, 2), 0.5)
    x[:, 0] += margins
    result = run_autoattack(
        Linear([1.0, -1.0], 0.0),
        x,
        torch.ones(4).long(),
        attacks=(attack,),
        attack_eps=0.1,
        **QUICK,
    )
    assert result.robust_flags.tolist() == [False, False, True, True]
    assert result.accuracy_after == {attack: 0.5}


@pytest.mark.parametrize("attack", ["apgd-ce", "square"])
def test_agrees_with_autoattack_itself(classifier, samples, attack):
    # The adapter changes nothing but the layout and the budget.
    from pyautoattack import AutoAttack

    x, y = samples
    budget = {"n_restarts": 1, "n_queries": 100}
    result = run_autoattack(classifier, x, y, attacks=(attack,), attack_eps=0.05, **budget)

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return classifier(images.flatten(1))

    attacker = AutoAttack(Flat(), eps=0.05, seed=0, version="custom", attacks=[attack])
    attacker.apgd.n_restarts, attacker.square.n_queries = 1, 100
    x_adv, y_adv = attacker.run_standard_evaluation(x[:, :, None, None], y)
    assert torch.equal(result.x_adv, x_adv.flatten(1))
    assert torch.equal(result.robust_flags, y_adv == y)


@pytest.mark.parametrize("attack", ["apgd-ce", "square"])
def test_the_budget_is_spent(attack):
    # On a sample that cannot be broken every call is made: APGD asks once at first and then
    # eot_iter times at each restart's start and at each of its steps; Square twice at first, once
    # a query and once at the end.
    class Counted(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return super().forward(x)

    def calls(n_iter: int, n_restarts: int, n_queries: int, eot_iter: int) -> int:
        Counted.calls = 0
        budget = dict(zip(names, (n_iter, n_restarts, n_queries, eot_iter), strict=True))
        model = Counted([1.0, -1.0], 1.0)
        x, y = torch.full((1, 2), 0.5), torch.ones(1).long()
        run_autoattack(model, x, y, attacks=(attack,), attack_eps=0.1, **budget)
        own = expected_calls(**budget)[attack]
        by_hand = 1 + n_restarts * (n_iter + 1) * eot_iter if attack != "square" else n_queries + 3
        assert own == by_hand
        return Counted.calls - own

    names = ("n_iter", "n_restarts", "n_queries", "eot_iter")
    others = calls(1, 1, 1, 1)  # AutoAttack's checks and ours
    assert (
        calls(7, 1, 1, 1) == calls(1, 3, 1, 1) == calls(1, 1, 9, 1) == calls(2, 2, 2, 4) == others
    )


def test_same_seed_same_points(classifier, samples):
    noisy = Noisy(classifier)

    def points(seed: int) -> Tensor:
        return run_autoattack(noisy, *samples, seed=seed, **QUICK).x_adv

    torch.manual_seed(1)
    first = points(0)
    torch.manual_seed(2)  # must not matter
    assert torch.equal(points(0), first)
    assert not torch.equal(points(1), first)


def test_leaves_no_trace(classifier, samples):
    def trace(frame, event, argument):
        return None

    classifier.train()
    first, *others = classifier.parameters()
    first.requires_grad_(False)
    before = torch.get_rng_state()
    old = sys.gettrace()
    sys.settrace(trace)
    try:
        run_autoattack(classifier, *samples, attacks=("apgd-ce", "fab"), **QUICK)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(old)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.requires_grad
    assert all(p.requires_grad and p.grad is None for p in others)
    assert all(module.training for module in classifier.modules())


def test_random_models_are_flagged_by_autoattack(classifier, samples):
    result = run_autoattack(Noisy(classifier), *samples, **QUICK)
    assert any("randomized defense" in warning for warning in result.warnings)


def test_probabilities_are_flagged_by_autoattack(classifier, samples):
    model = nn.Sequential(classifier, nn.Softmax(1))
    result = run_autoattack(model, *samples, **QUICK)
    assert any("probability distribution" in warning for warning in result.warnings)


def test_dynamic_models_are_flagged_and_later_ones_are_not(classifier, samples):
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                torch.autograd.grad(self.classifier(leaf).sum(), leaf)
            return self.classifier(x)

    flagged = run_autoattack(Dynamic(), *samples, **QUICK).warnings
    assert any("dynamic defense" in warning for warning in flagged)
    later = run_autoattack(classifier, *samples, **QUICK).warnings
    assert not any("dynamic defense" in warning for warning in later)


def test_warnings_are_kept_not_logged(classifier, samples, caplog, capsys):
    with caplog.at_level(logging.INFO):
        run_autoattack(Noisy(classifier), *samples, progress=True, **QUICK)
    assert caplog.records == []
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_defended_model_is_attacked_through_its_purifier(defended, samples):
    x, y = samples
    result = run_autoattack(defended, x, y, eot_iter=2, attack_eps=0.2, **QUICK)
    assert result.zero_gradient_share == 0
    # Nothing of the purifier looks like an optimisation inside the model.
    assert not any("dynamic" in warning for warning in result.warnings)
    torch.manual_seed(0)
    clean, attacked = (
        np.mean([accuracy(defended, points, y) for _ in range(20)]) for points in (x, result.x_adv)
    )
    assert clean > 0.8
    assert attacked < 0.5


def _copying_denoiser(n_features: int) -> FeatureDenoiser:
    """Return the identity as an MLP: x = relu(x) - relu(-x)."""
    denoiser = FeatureDenoiser(n_features, hidden=2 * n_features, embedding_dim=2)
    eye = torch.eye(n_features)
    first, _, second, _, third = denoiser.layers
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
        first.weight[:, :n_features] = torch.cat((eye, -eye))
        second.weight.copy_(torch.eye(2 * n_features))
        third.weight.copy_(torch.cat((eye, -eye), 1))
    return denoiser


def test_a_planted_direction_is_found_through_the_defence():
    # 60 features, of which any direction of signs moves the score by 0.1 times a sum of 60 signs.
    # It takes -36 to flip a label: the planted direction gives -60, random ones 0 +- 8.
    n_features, attack_eps = 60, 0.1
    generator = torch.Generator().manual_seed(0)
    planted = torch.randint(0, 2, (n_features,), generator=generator) * 2.0 - 1
    x = 0.4 + 0.2 * torch.rand(8, n_features, generator=generator)
    x -= ((x - 0.5) @ planted - -3.6).unsqueeze(1) * planted / n_features  # scores of 3.6
    model = Linear((-planted).tolist(), float(planted.sum()) / 2)
    schedule = NoiseSchedule.linear(50, 1e-4, 1e-3)
    purifier = DiffusionPurifier(
        _copying_denoiser(n_features), schedule, timesteps=(0,), n_draws=16
    )
    defended = DefendedClassifier(purifier, model)
    y = torch.ones(8).long()
    assert accuracy(defended, x, y) == 1
    assert accuracy(defended, x + attack_eps * planted, y) == 0
    random = torch.randint(0, 2, (500, n_features), generator=generator) * 2.0 - 1
    assert accuracy(defended, (x + attack_eps * random[:, None]).flatten(0, 1), y.repeat(500)) == 1

    result = run_autoattack(defended, x, y, attacks=("apgd-ce",), attack_eps=attack_eps, **QUICK)
    assert not bool(result.robust_flags.any())
    assert accuracy(defended, result.x_adv, y) == 0
    assert bool((((result.x_adv - x) @ planted) > 0.9 * attack_eps * n_features).all())


@pytest.mark.parametrize("all_wrong", [False, True])
def test_one_sample(classifier, samples, all_wrong):
    x, y = samples[0][:1], samples[1][:1]
    label = 1 - classifier(x).argmax(1) if all_wrong else classifier(x).argmax(1)
    result = run_autoattack(classifier, x, label, **QUICK)
    assert result.x_adv.shape == (1, 6)
    assert result.clean_accuracy == float(not all_wrong)
    assert result.robust_flags.shape == y.shape


def test_all_misclassified_from_the_start(classifier, samples):
    x, _ = samples
    wrong = 1 - classifier(x).argmax(1)
    result = run_autoattack(classifier, x, wrong, **QUICK)
    assert result.clean_accuracy == 0
    assert result.accuracy_after == {"apgd-ce": 0.0, "square": 0.0}
    assert result.seconds == {"apgd-ce": 0.0, "square": 0.0}
    assert not bool(result.robust_flags.any())
    assert torch.equal(result.x_adv, x)
    assert result.max_perturbation == 0


def test_batches_are_counted_together(classifier, samples):
    x, y = samples
    whole = run_autoattack(classifier, x, y, attack_eps=0.1, **QUICK)
    parts = run_autoattack(classifier, x, y, attack_eps=0.1, batch_size=7, **QUICK)
    assert parts.clean_accuracy == whole.clean_accuracy
    assert parts.accuracy_after["square"] == int(parts.robust_flags.sum()) / len(x)


def test_numpy_and_float64(classifier, samples):
    x, y = samples
    expected = run_autoattack(classifier, x, y, **QUICK)
    result = run_autoattack(classifier, x.numpy().astype(np.float64), y.int().numpy(), **QUICK)
    assert torch.equal(result.x_adv, expected.x_adv)
    torch.manual_seed(0)
    double = FeatureCNN(6, 2).double()
    assert run_autoattack(double, x, y, **QUICK).x_adv.dtype == torch.float32


def test_more_classes_allow_dlr():
    torch.manual_seed(0)
    x = torch.rand(40, 6)
    model = nn.Linear(6, 4)
    y = model(x).argmax(1)
    result = run_autoattack(
        model, x, y, attacks=("apgd-dlr", "apgd-t", "fab-t"), attack_eps=0.1, **QUICK
    )
    assert list(result.accuracy_after) == ["apgd-dlr", "apgd-t", "fab-t"]
    assert 0 < result.accuracy_after["fab-t"] <= result.accuracy_after["apgd-dlr"] < 1
    # The checks on the number of classes have nothing to say: the targets were adapted.
    assert not any("classes" in warning for warning in result.warnings)


@pytest.mark.needs_cuda
def test_on_the_gpu(classifier, samples):
    x, y = samples
    on_gpu = FeatureCNN(6, 2).cuda()
    on_gpu.load_state_dict(classifier.state_dict())
    before = torch.cuda.get_rng_state()
    result = run_autoattack(on_gpu, x, y, attack_eps=0.1, **QUICK)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert result.x_adv.device.type == "cpu"
    assert result.accuracy_after["square"] < 0.1
    again = run_autoattack(on_gpu, x.cuda(), y.cuda(), attack_eps=0.1, **QUICK)
    assert again.x_adv.device.type == "cuda"
    assert torch.equal(again.x_adv.cpu(), result.x_adv)
