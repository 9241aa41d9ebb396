"""Attacks whose steps are recorded find the points that they find step by step, bit for bit.

On the CPU an `OpRecorder` stands for the CUDA graph; on a device that is not there (torch's "meta")
it is seen that a step asks it nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import run_autoattack, run_suite, vector_apgd, vector_square
from nnmf_cuda.attacks.autoattack import square
from nnmf_cuda.attacks.autoattack.square import square_attack
from nnmf_cuda.attacks.balls import BALLS, BALLS_ON_SPHERE
from nnmf_cuda.attacks.gradient_ascent import Ascent, pgd
from nnmf_cuda.attacks.objectives import ExpectedLoss
from nnmf_cuda.attacks.suite import Budget
from nnmf_cuda.attacks.surrogates import BPDAIdentity, PurifierShift
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser, FeatureMLP, frozen
from tests.attacks.test_loops import package_square
from tests.helpers import DEVICES
from tests.op_recorder import NoHost, OpRecorder, recorded_on_the_cpu

N, M = 14, 6


def built(kind: str, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """Return an untrained model, and features that it is right on, some of them by little."""
    torch.manual_seed(0)
    classifier = FeatureMLP(M, 2, (9,)) if kind == "mlp" else FeatureCNN(M, 2)
    model: nn.Module = classifier
    if kind == "defended":
        schedule = NoiseSchedule.linear(60)
        purifier = DiffusionPurifier(
            FeatureDenoiser(M, hidden=17), schedule, timesteps=(30, 9), n_draws=3, eta=0.5
        )
        model = DefendedClassifier(purifier, classifier)
    x = torch.rand(N, M)
    with torch.no_grad():
        logits = classifier(x)
        last = classifier.layers[-1] if kind == "mlp" else classifier.head[-1]
        last.bias -= logits.mean(0)
        y = classifier(x).argmax(1)
    return model.eval().to(device), x.to(device), y.to(device)


@contextlib.contextmanager
def recorded(device: str) -> Iterator[None]:
    """Have steps recorded inside the block; it is an error if none is."""
    if device == "cuda":
        yield
        return
    with recorded_on_the_cpu() as recorder:
        yield
    assert recorder.n_recorded > 0
    assert recorder.n_replayed > 10


def apgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return vector_apgd(model, x, y, attack_eps=0.1, n_iter=25, n_restarts=2, eot_iter=2)


def apgd_in_l2(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return vector_apgd(model, x, y, attack_eps=0.2, norm="L2", loss="ce", n_iter=12, n_restarts=2)


def apgd_on_the_sphere(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return vector_apgd(model, x, y, attack_eps=0.1, keeps_length=True, n_iter=12, starts=[x])


def searched(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return vector_square(model, x, y, attack_eps=0.1, n_queries=40)


def searched_in_l2(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return vector_square(model, x, y, attack_eps=0.2, norm="L2", n_queries=40, eot_iter=3)


def stepped(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    ball = BALLS["Linf"](x, 0.1)
    with frozen(model):
        return pgd(ExpectedLoss(model, y, "margin", 2), ball, x, n_iter=17, asked=model)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["cnn", "mlp", "defended"])
@pytest.mark.parametrize(
    "attack", [apgd, apgd_in_l2, apgd_on_the_sphere, searched, searched_in_l2, stepped]
)
def test_recorded_steps_find_the_same_points(attack, kind, device, monkeypatch, caplog):
    model, x, y = built(kind, device)
    with recorded(device):
        torch.manual_seed(5)
        found = attack(model, x, y)
    assert "no CUDA graph" not in caplog.text
    monkeypatch.setenv("NNMF_CUDA_GRAPHS", "0")
    torch.manual_seed(5)
    plain = attack(model, x, y)
    assert torch.equal(found, plain)
    assert float((found != x).any(1).float().mean()) > 0.5


def test_a_model_of_the_users_own_is_asked_step_by_step():
    class Own(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Own.calls += 1
            return torch.stack((x[:, 0], x[:, 1]), 1) * Own.calls

    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    with recorded_on_the_cpu() as recorder:
        vector_apgd(Own(), x, y, attack_eps=0.1, n_iter=9, n_restarts=1)
    assert recorder.n_recorded == 0
    assert Own.calls > 9


@pytest.mark.parametrize("kind", ["cnn", "defended"])
def test_a_recorded_suite_is_the_suite(kind):
    model, x, y = built(kind)
    x = x / x.norm(dim=1, keepdim=True)
    budget = Budget(
        n_iter=8,
        n_restarts=2,
        n_cheap_restarts=2,
        eot_iter=3,
        surrogate_draws=5,
        pgd_iter=9,
        n_queries=15,
    )
    options = {"attack_eps": 0.1, "budget": budget, "n_rounds": 2}
    plain = run_suite(model, x, y, **options)
    with recorded("cpu"):
        found = run_suite(model, x, y, **options)
    assert found.calls == plain.calls
    assert [o.name for o in found.outcomes] == [o.name for o in plain.outcomes]
    for mine, other in zip(found.outcomes, plain.outcomes, strict=True):
        assert torch.equal(mine.points, other.points), mine.name
        assert torch.equal(mine.right, other.right), mine.name


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["cnn", "defended"])
def test_a_recorded_autoattack_is_autoattack(kind, norm):
    model, x, y = built(kind)
    options = {"norm": norm, "attack_eps": 0.05, "n_iter": 15, "n_restarts": 2, "n_queries": 90}
    options["attacks"] = ("apgd-ce", "square") if norm == "Linf" else ("apgd-ce",)
    plain = run_autoattack(model, x, y, **options)
    with recorded("cpu"):
        found = run_autoattack(model, x, y, **options)
    assert torch.equal(found.x_adv, plain.x_adv)
    assert torch.equal(found.robust_flags, plain.robust_flags)
    for result in (found, plain):
        result.seconds.clear()
    others = [
        {k: v for k, v in dataclasses.asdict(r).items() if k not in ("x_adv", "robust_flags")}
        for r in (found, plain)
    ]
    assert others[0] == others[1]


# A random model draws other noise as soon as it is asked about other samples.
@pytest.mark.parametrize("kind", ["cnn", "defended"])
@pytest.mark.parametrize("most", [2, 16])
@pytest.mark.parametrize("is_recorded", [False, True])
def test_square_that_seldom_looks_is_the_packages(
    kind, most, is_recorded, defended, samples, monkeypatch
):
    model, (x, y) = defended if kind == "defended" else defended.classifier, samples
    monkeypatch.setattr(square, "_queries_between_looks", lambda device: most)
    retired, n_recorded = [], 0
    retire = square._Active.retire

    def counted(active: square._Active, points: Tensor) -> None:
        retire(active, points)
        retired.append(len(active.rows))

    monkeypatch.setattr(square._Active, "retire", counted)
    for attack_eps, n_queries in ((0.04, 120), (0.06, 119), (0.3, 100)):
        options = {"attack_eps": attack_eps, "n_queries": n_queries, "seed": 4}
        with recorded_on_the_cpu() if is_recorded else contextlib.nullcontext():
            torch.manual_seed(9)
            found = square_attack(model, x, y, **options)
            state = torch.get_rng_state()
        n_recorded += OpRecorder.n_recorded
        torch.manual_seed(9)
        of_images = nn.Sequential(nn.Flatten(), model)
        assert torch.equal(found, package_square(of_images, x, y, **options))
        if len(retired) and retired[-1] > 0:  # the package draws for one query more if all broke
            assert torch.equal(state, torch.get_rng_state())
    assert len(set(retired)) > 4
    assert n_recorded > 0 or not is_recorded


def test_a_gpu_is_looked_at_seldom():
    assert square._queries_between_looks(torch.device("cuda", 0)) == 16
    assert square._queries_between_looks(torch.device("cpu")) == 1


# What a step asks of the device ------------------------------------------------------------------

Ball = Callable[..., object]


def objectives(kind: str) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    model, _, y = built(kind, "meta")
    model.requires_grad_(False)
    for loss in ("margin", "ce"):
        yield loss, ExpectedLoss(model, y, loss, 3, 0.6)
    if isinstance(model, DefendedClassifier):
        yield "BPDA", ExpectedLoss(BPDAIdentity(model), y, "margin", 2)


@pytest.mark.parametrize("keeps_length", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["mlp", "defended"])
def test_ascents_need_nothing_of_the_host(kind, norm, keeps_length):
    x = torch.empty(N, M, device="meta")
    for name, objective in objectives(kind):
        with NoHost():
            ball = (BALLS_ON_SPHERE if keeps_length else BALLS)[norm](x, 0.1)

            def evaluate(leaf: Tensor, gradient: Tensor, of=objective) -> Tensor:
                with torch.enable_grad():
                    losses = of(leaf)
                    (found,) = torch.autograd.grad(losses.sum(), leaf)
                gradient.copy_(found)
                return losses.detach().unsqueeze(1)

            points = Ascent(evaluate, ball, n_iter=3).climb(x)
            assert points.device.type == "meta", name
            assert pgd(objective, ball, x, n_iter=2).shape == x.shape


@pytest.mark.parametrize("every_step", [False, True])
def test_the_purifiers_shift_needs_nothing_of_the_host_once_it_has_its_noise(every_step):
    model, x, _ = built("defended")
    model.requires_grad_(False)
    shift = PurifierShift(model.purifier, x, 0, every_step)
    chains = shift._clean  # drawn on the host at the first step, which is made as it is
    away = PurifierShift(model.purifier.to("meta"), x.to("meta"), 0, every_step)
    away.__dict__["_clean"] = [tuple(tensor.to("meta") for tensor in chain) for chain in chains]
    x = x.to("meta")
    with NoHost():
        pgd(away, BALLS["Linf"](x, 0.1), x, n_iter=2)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["cnn", "defended"])
def test_a_query_needs_nothing_but_its_draws(kind, norm):
    model, x, y = built(kind, "meta")
    model.requires_grad_(False)
    on_host = BALLS[norm](torch.rand(N, M), 0.1)
    mask, values = (tensor.to("meta") for tensor in on_host.draw_change(0.4))
    with NoHost(), torch.no_grad():
        changed = BALLS[norm](x, 0.1).changed(x, mask, values)
        assert ExpectedLoss(model, y.repeat(2), "margin", 3)(torch.cat((x, changed))).shape == (
            2 * N,
        )


@pytest.mark.parametrize("kind", ["cnn", "defended"])
def test_a_query_of_autoattacks_square_needs_nothing_but_its_signs(kind):
    model, x, y = built(kind, "meta")
    active = square._Active(
        model, 0.2, torch.arange(N, device="meta"), y, x, x[:, :1], x - 0.1, x + 0.1, True
    )
    with NoHost(), torch.no_grad():
        active._ask(torch.empty(M, device="meta"))
    assert active._held_all.device.type == "meta"
