from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import Threat, gradient_report, run_autoattack
from nnmf_cuda.models.networks import FeatureCNN

QUICK = {"n_iter": 2, "n_restarts": 1, "n_queries": 2}


class Wrapped(nn.Module):
    """Applies a function to the features, then the classifier to that."""

    def __init__(self, classifier: nn.Module, change) -> None:
        super().__init__()
        self.classifier = classifier
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.change(x))


class Constant(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor):
        return self.output(x)


def test_gradient_report_of_a_linear_model():
    # Logits (0, w x) with label 1: the gradient is (p - 1) w, p = sigmoid(w x).
    weight = torch.tensor([3.0, -4.0])
    model = Constant(lambda x: torch.stack((0 * x[:, 0], x @ weight), 1))
    x = torch.tensor([[0.2, 0.1], [0.5, 0.5], [0.0, 1.0]])
    expected = 5 * (1 - (x @ weight).sigmoid())
    report = gradient_report(model, x, torch.ones(3).long(), batch_size=2)
    assert report.grad_norm_mean == pytest.approx(float(expected.mean()), rel=1e-5)
    assert report.zero_gradient_share == 0
    assert not x.requires_grad


def test_gradient_report_counts_zero_rows(classifier, samples):
    x, y = samples
    mask = torch.ones(len(x), 1)
    mask[:10] = 0
    report = gradient_report(Wrapped(classifier, lambda x: x * mask), x, y)
    assert report.zero_gradient_share == pytest.approx(10 / 40)


def test_zero_gradient_share_reaches_the_result(classifier, samples):
    x, y = samples[0].clone(), samples[1]
    x[:10] = 0.0
    model = Wrapped(classifier, lambda x: x * (x.sum(1, keepdim=True) > 0.5))
    result = run_autoattack(model, x, y, **QUICK)
    assert result.zero_gradient_share == pytest.approx(10 / 40)


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1


@pytest.mark.parametrize("change", [Tensor.detach, without_grad])
def test_a_missing_gradient_fails(classifier, samples, change):
    with pytest.raises(ValueError, match="no gradient with respect to its input: something on"):
        run_autoattack(Wrapped(classifier, change), *samples, **QUICK)


def test_a_zero_gradient_fails(classifier, samples):
    with pytest.raises(ValueError, match="exactly zero on every sample"):
        run_autoattack(Wrapped(classifier, lambda x: x.round() + 0 * x), *samples, **QUICK)


def test_an_infinite_gradient_fails(classifier, samples):
    x = samples[0].clone()
    x[0] = 0
    model = Wrapped(classifier, lambda x: x + 0.01 * (x - x.detach()).abs().sqrt())
    with pytest.raises(ValueError, match="40 of 40 gradients of the model are not finite"):
        run_autoattack(model, x, samples[1], **QUICK)


def test_modes_are_restored_after_a_failure(classifier, samples):
    model = Wrapped(classifier, Tensor.detach).train()
    with pytest.raises(ValueError, match="no gradient"):
        run_autoattack(model, *samples, **QUICK)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("value", [-2e-6, 1 + 2e-6, 5.0])
def test_features_outside_the_box_are_refused(classifier, samples, value):
    x = samples[0].clone()
    x[3, 2] = value
    with pytest.raises(ValueError, match=r"x must be within the box \[0, 1\], got values from"):
        run_autoattack(classifier, x, samples[1], **QUICK)


def test_rounding_at_the_edge_of_the_box_is_clamped(classifier, samples):
    x = samples[0].clone()
    x[0] = torch.tensor([1 + 5e-7, 0, 0, 0, 0, -5e-7])
    result = run_autoattack(classifier, x, samples[1], **QUICK)
    assert result.n_clamped == 2
    assert float(result.x_adv.max()) <= 1
    assert float(result.x_adv.min()) >= 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(40, 6, 1)}, ValueError, r"x must have shape .* got \(40, 6, 1\)"),
        ({"x": torch.rand(0, 6)}, ValueError, "at least one sample"),
        ({"x": torch.zeros(40, 6).int()}, TypeError, "x must be floating point, got torch.int32"),
        ({"x": torch.full((40, 6), float("nan"))}, ValueError, "x must be finite"),
        ({"y": torch.zeros(39).long()}, ValueError, r"y must have shape \(40,\), got \(39,\)"),
        ({"y": torch.zeros(40)}, TypeError, "y must be integers, got torch.float32"),
        ({"y": torch.zeros(40).bool()}, TypeError, "y must be integers, got torch.bool"),
        ({"y": torch.full((40,), -1)}, ValueError, "y must not be negative, got -1"),
        ({"y": torch.full((40,), 2)}, ValueError, r"y must be within 0\.\.1 .* got 2"),
        ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
        ({"norm": "L1"}, ValueError, "norm must be one of Linf, L2; got 'L1'"),
        ({"norm": "L2"}, ValueError, "'square' for norm='L2' needs two-dimensional images"),
        ({"attack_eps": 0.0}, ValueError, "attack_eps must be a finite number > 0, got 0.0"),
        ({"attack_eps": float("inf")}, ValueError, "attack_eps must be a finite number"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"n_iter": 0}, ValueError, "n_iter must be at least 1, got 0"),
        ({"eot_iter": 0}, ValueError, "eot_iter must be at least 1, got 0"),
        ({"attacks": ()}, ValueError, "attacks must name at least one attack"),
        ({"attacks": ("square", "square")}, ValueError, "each once"),
        ({"attacks": "apgd-ce"}, TypeError, "attacks must be a sequence of names"),
        ({"attacks": ("pgd",)}, ValueError, "attacks must be of apgd-ce, .* got 'pgd'"),
        (
            {"attacks": "standard"},
            ValueError,
            "'standard': AutoAttack's fixed versions use the DLR",
        ),
        ({"attacks": ("rand",)}, ValueError, "which does not exist for two classes"),
        ({"attacks": ("apgd-dlr",)}, ValueError, "'apgd-dlr' needs at least 3 classes"),
        ({"attacks": ("apgd-t",)}, ValueError, "'apgd-t' needs at least 4 classes"),
    ],
)
def test_bad_arguments_are_refused(classifier, samples, change, error, message):
    arguments = {"model": classifier, "x": samples[0], "y": samples[1], **QUICK, **change}
    model = arguments.pop("model")
    with pytest.raises(error, match=message):
        run_autoattack(model, arguments.pop("x"), arguments.pop("y"), **arguments)


def test_targeted_dlr_needs_four_classes(samples):
    x = samples[0]
    with pytest.raises(ValueError, match="'apgd-t' needs at least 4 classes .* the model has 3"):
        run_autoattack(FeatureCNN(6, 3), x, samples[1], attacks=("apgd-t",), **QUICK)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "model must return a tensor of logits, got tuple"),
        (lambda x: x[:, :1], ValueError, r"at least two classes, got \(40, 1\) for 40 samples"),
        (lambda x: x[0], ValueError, r"got \(6,\)"),
        (lambda x: x / 0, ValueError, "logits that are not finite"),
    ],
)
def test_bad_logits_are_refused(samples, output, error, message):
    with pytest.raises(error, match=message):
        run_autoattack(Constant(output), *samples, **QUICK)


@pytest.mark.parametrize(
    ("norm", "shift"),
    [("Linf", 0.11), ("L2", 0.08), ("Linf", float("nan"))],
)
def test_a_point_outside_the_ball_is_an_error(norm, shift):
    x, threat = torch.full((2, 3), 0.5), Threat(0.1, norm)
    assert threat.check_points(x + 0.05, x, attack="it") <= 0.1
    with pytest.raises(RuntimeError, match=f"it: the points broke the bound: largest {norm} dist"):
        threat.check_points(x + shift, x, attack="it")


def test_a_point_outside_the_box_is_an_error():
    x = torch.full((2, 3), 0.95)
    with pytest.raises(RuntimeError, match="inside the box: False"):
        Threat(0.1).check_points(x + 0.08, x, attack="it")
