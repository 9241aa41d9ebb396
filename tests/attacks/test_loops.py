"""Our loops against AutoAttack's own, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.attacks import AttackResult, compare_attacks, run_autoattack
from nnmf_cuda.attacks.autoattack.apgd import apgd_attack
from nnmf_cuda.attacks.autoattack.square import square_attack
from nnmf_cuda.models.networks import FeatureCNN

QUICK = {"n_iter": 20, "n_restarts": 2, "n_queries": 100}


class Spy(nn.Module):
    """Keeps what a model was asked, and where torch's generator stood then."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # AutoAttack asks about images
        self.asked.append((x.detach().clone(), torch.get_rng_state()))
        return self.model(x)


def package_points(attack_class: type, model: nn.Module, x: Tensor, y: Tensor, **options) -> Tensor:
    options["eps"] = options.pop("attack_eps")
    attack = attack_class(model, device="cpu", **options)
    with torch.no_grad():
        return attack.perturb(x[:, :, None, None], y).flatten(1)


def package_apgd(model: nn.Module, x: Tensor, y: Tensor, **options) -> Tensor:
    return package_points(APGDAttack, model, x, y, **options)


def package_square(model: nn.Module, x: Tensor, y: Tensor, **options) -> Tensor:
    return package_points(SquareAttack, model, x, y, norm="Linf", resc_schedule=False, **options)


OWN = {"apgd": apgd_attack, "square": square_attack}
PACKAGE = {"apgd": package_apgd, "square": package_square}


def assert_same(name: str, model: nn.Module, x: Tensor, y: Tensor, **options) -> Tensor:
    """Attack by both; every question to the model, and the points, must be equal. Return these."""
    points, asked = [], []
    for attack in (OWN[name], PACKAGE[name]):
        spy = Spy(model)
        torch.manual_seed(9)  # the first look comes before the attack's own seed
        points.append(attack(spy, x, y, **options))
        asked.append(spy.asked)
    assert len(asked[0]) == len(asked[1])
    for (own, own_state), (package, package_state) in zip(*asked, strict=True):
        assert torch.equal(own, package)
        assert torch.equal(own_state, package_state)
    assert torch.equal(*points)
    return points[0]


def n_moved(points: Tensor, x: Tensor) -> int:
    return int((points != x).any(1).sum())


@pytest.fixture(params=["plain", "random"])
def model(request, defended) -> nn.Module:
    """Either a CNN, or one behind a purifier that draws from torch's global generator."""
    if request.param == "plain":
        return defended.classifier
    defended.purifier.n_draws = 2
    return defended


@pytest.fixture(params=[2, 3])
def linear(request) -> Callable[[Tensor], Tensor]:
    """Logits of which the label 1 is right by x0 - x1, for two and three classes."""

    def logits(x: Tensor) -> Tensor:
        x = x.flatten(1)
        low = torch.full_like(x[:, :1], -9.0)
        return torch.cat((x[:, 1:2], x[:, :1], low), 1)[:, : request.param]

    return logits


# One step; windows of one step; windows that shrink.
@pytest.mark.parametrize("n_iter", [1, 7, 60])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack_eps", [0.03, 0.2])
def test_apgd_is_the_packages(model, samples, norm, attack_eps, n_iter):
    options = {"norm": norm, "attack_eps": attack_eps, "n_iter": n_iter, "seed": 4}
    points = assert_same("apgd", model, *samples, n_restarts=2, **options)
    assert n_moved(points, samples[0]) > 0


def test_apgd_averages_as_the_package(model, samples):
    assert_same("apgd", model, *samples, attack_eps=0.05, n_iter=10, eot_iter=3)


# The smallest breaks some at every stage, the largest all.
@pytest.mark.parametrize("attack_eps", [0.04, 0.06, 0.3])
def test_square_is_the_packages(model, samples, attack_eps):
    points = assert_same("square", model, *samples, attack_eps=attack_eps, n_queries=300, seed=4)
    assert n_moved(points, samples[0]) > 0


def test_square_drops_samples_one_by_one():
    # Enough features that queries differ, and samples that hold for different lengths.
    generator = torch.Generator().manual_seed(3)
    x = 0.3 + 0.4 * torch.rand(30, 15, generator=generator)
    weight = torch.randn(15, generator=generator)

    def logits(points: Tensor) -> Tensor:
        score = (points.flatten(1) - x.mean(0)) @ weight
        return torch.stack((-score, score), 1)

    y = logits(x).argmax(1)
    spy = Spy(logits)
    square_attack(spy, x, y, attack_eps=0.05, n_queries=400)
    sizes = [len(points) for points, _ in spy.asked[2:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 5
    assert_same("square", logits, x, y, attack_eps=0.05, n_queries=400)


@pytest.mark.parametrize("name", ["apgd", "square"])
@pytest.mark.parametrize(
    ("margin", "n_broken"), [(0.05, 4), (0.9, 0), (-0.1, 0)], ids=["all", "none", "all wrong"]
)
def test_nothing_left_and_nothing_broken(name, linear, margin, n_broken):
    x = torch.tensor([0.5 + margin / 2, 0.5 - margin / 2]).repeat(4, 1)
    y = torch.ones(4).long()
    budget = {"n_queries": 40} if name == "square" else {"n_iter": 10, "n_restarts": 2}
    points = assert_same(name, linear, x, y, attack_eps=0.1, **budget)
    assert n_moved(points, x) == n_broken


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_one_sample_at_the_corner_of_the_box(name, linear):
    x = torch.tensor([[1.0, 0.0]])  # half of the ball is outside
    budget = {"n_queries": 10} if name == "square" else {"n_iter": 10}
    points = assert_same(name, linear, x, torch.tensor([1]), attack_eps=0.6, **budget)
    assert points[0, 0] < points[0, 1]


def test_square_stops_at_a_tie(linear):
    # Both features can start at 0, where the logits are equal. The package's search then makes one
    # query more, about no sample, which ours leaves out.
    x, y = torch.tensor([[0.1, 0.05]]), torch.tensor([1])
    options = {"attack_eps": 0.1, "n_queries": 40}
    ties = 0
    for seed in range(8):
        own = square_attack(linear, x, y, seed=seed, **options)
        assert torch.equal(own, package_square(linear, x, y, seed=seed, **options))
        ties += torch.equal(own, torch.zeros_like(x))
    assert ties > 0


def test_a_flat_loss_moves_nothing():
    # No gradient, no margin that falls: step sizes are halved at every checkpoint.
    x, y = torch.rand(5, 3), torch.zeros(5).long()

    def flat(points: Tensor) -> Tensor:
        return 0 * points.flatten(1)[:, :2] + torch.tensor([2.0, 0.0])

    assert n_moved(assert_same("apgd", flat, x, y, attack_eps=0.1, n_iter=30), x) == 0
    assert n_moved(assert_same("square", flat, x, y, attack_eps=0.1, n_queries=30), x) == 0


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_the_clean_points_are_not_modified(name, classifier, samples):
    x, y = (tensor.clone() for tensor in samples)
    points = OWN[name](classifier, x, y, attack_eps=0.2)
    assert torch.equal(x, samples[0])
    assert torch.equal(y, samples[1])
    assert not points.requires_grad


def both(model: nn.Module, x: Tensor, y: Tensor, **options) -> tuple[AttackResult, AttackResult]:
    """Attack one model, computed in one way, by our loops and by the package's."""
    own = run_autoattack(model, x, y, **options)
    with pytest.MonkeyPatch.context() as patch:
        plain = SimpleNamespace(is_reference_path=lambda: True)
        patch.setattr("nnmf_cuda.attacks.autoattack.backend.ops", plain)
        return own, run_autoattack(model, x, y, **options)


def unmoving(result: AttackResult) -> dict[str, object]:
    """What of a result is neither a tensor nor a time."""
    left_out = ("x_adv", "robust_flags", "seconds")
    fields = dataclasses.fields(result)
    return {f.name: getattr(result, f.name) for f in fields if f.name not in left_out}


@pytest.mark.parametrize("batch_size", [7, 39, 250])
@pytest.mark.parametrize("attack_eps", [0.04, 0.3])
def test_a_whole_run_is_the_packages(model, samples, attack_eps, batch_size):
    options = {"attack_eps": attack_eps, "batch_size": batch_size, "seed": 2}
    own, package = both(model, *samples, **QUICK, **options)
    assert torch.equal(own.x_adv, package.x_adv)
    assert torch.equal(own.robust_flags, package.robust_flags)
    assert unmoving(own) == unmoving(package)
    assert not bool(own.robust_flags.all())


def test_a_fused_model_has_the_plain_ones_adversarial_points(model, samples):
    own = run_autoattack(model, *samples, attack_eps=0.04, **QUICK)
    with ops.reference_path():
        plain = run_autoattack(model, *samples, attack_eps=0.04, **QUICK)
    comparison = compare_attacks(own, plain)
    assert comparison.differing_decisions <= 0.05
    assert comparison.equal_points >= 0.9


def test_a_whole_run_in_l2_and_float64(samples):
    torch.manual_seed(0)
    model = FeatureCNN(6, 3).double()
    with torch.no_grad():
        model.head[-1].bias -= model(samples[0].double()).mean(0)  # no class is far from any sample
    x = samples[0]
    y = model(x.double()).argmax(1)
    own, package = both(model, x, y, norm="L2", attacks=("apgd-ce",), attack_eps=0.3, **QUICK)
    assert torch.equal(own.x_adv, package.x_adv)
    assert n_moved(own.x_adv, x) > 0


def test_the_reference_path_runs_the_packages_own(classifier, samples, monkeypatch):
    # Without this, the comparisons above could be of our loops with themselves.
    def refuse(*args, **options):
        raise AssertionError("ours")

    for name in ("apgd_attack", "square_attack"):
        monkeypatch.setattr(f"nnmf_cuda.attacks.autoattack.backend.{name}", refuse)
    with ops.reference_path():
        run_autoattack(classifier, *samples, **QUICK)
    for attack in ("apgd-ce", "square"):
        with pytest.raises(AssertionError, match="ours"):
            run_autoattack(classifier, *samples, attacks=(attack,), **QUICK)


def test_what_has_no_loop_of_ours_is_the_packages(samples):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    x = samples[0]
    options = {"attacks": ("apgd-dlr", "square"), "attack_eps": 0.05, **QUICK}
    own, package = both(model, x, model(x).argmax(1), **options)
    assert torch.equal(own.x_adv, package.x_adv)
    assert list(own.accuracy_after) == ["apgd-dlr", "square"]


def test_the_comparison_counts_samples_and_measures_features(classifier, samples):
    a = run_autoattack(classifier, *samples, attack_eps=0.04, **QUICK)
    same = compare_attacks(a, a)
    assert (same.n_samples, same.differing_decisions, same.equal_points) == (40, 0, 1)
    assert (same.max_difference, same.mean_difference) == (0, 0)

    x_adv, robust_flags = a.x_adv.clone(), a.robust_flags.clone()
    x_adv[3, 2] += 0.25
    x_adv[5, 0] -= 0.5
    robust_flags[:4] = ~robust_flags[:4]
    b = dataclasses.replace(a, x_adv=x_adv, robust_flags=robust_flags)
    for first, second in ((a, b), (b, a)):
        comparison = compare_attacks(first, second)
        assert comparison.differing_decisions == pytest.approx(0.1)
        assert comparison.equal_points == pytest.approx(38 / 40)
        assert comparison.max_difference == pytest.approx(0.5)
        assert comparison.mean_difference == pytest.approx(0.75 / 240)

    shorter = dataclasses.replace(a, x_adv=a.x_adv[:3], robust_flags=a.robust_flags[:3])
    with pytest.raises(ValueError, match=r"same samples, got .*\(40, 6\) and \(3, 6\)"):
        compare_attacks(a, shorter)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("attack_eps", [0.04, 0.3])
def test_a_whole_run_on_the_gpu_is_the_packages(model, samples, attack_eps):
    own, package = both(model.cuda(), *samples, attack_eps=attack_eps, **QUICK)
    comparison = compare_attacks(own, package)
    assert comparison.differing_decisions == 0
    assert comparison.equal_points == 1
