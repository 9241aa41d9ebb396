"""Verification against exact truth: no wrong "proven", no wrong "broken", and few undecided."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nnmf_cuda.attacks.balls import BOX_TOLERANCE
from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.ops import crown_bounds
from nnmf_cuda.robustness import Status, Verification, verify
from nnmf_cuda.robustness.branch_and_bound import Boxes, Goal, _within_ball, search
from nnmf_cuda.robustness.rounding import real_logits
from nnmf_cuda.robustness.verification import Journal
from tests.exact_minima import (
    box_around,
    exact_minimum,
    last_bias,
    linear_pieces,
    minimum_in_disk,
    planted_cnn,
    planted_mlp,
)


@pytest.mark.parametrize("shift", [3e-2, 1e-3, 1e-5, 1e-7, 0.0, -1e-7, -1e-5, -1e-3, -3e-2])
@pytest.mark.parametrize("build", [planted_mlp, planted_cnn])
def test_verify_agrees_with_exact_minima(build: Callable[[int], nn.Module], shift: float) -> None:
    """Planted: the margin's least value in the ball is moved to just above or below zero."""
    decided = 0
    for seed in range(8):
        model = build(seed)
        x = torch.from_numpy(np.random.default_rng(50 + seed).random((1, 2)).astype(np.float32))
        label = seed % 2
        eps = [0.1, 0.25][seed // 4]
        objective = [1, -1] if label == 0 else [-1, 1]
        weights = [p.data for p in model.parameters()]
        least = exact_minimum(weights, objective, *box_around(x[0], eps))
        last_bias(model)[label] += float(shift - least)
        # The bias was rounded: this is the truth.
        truth = exact_minimum(weights, objective, *box_around(x[0], eps))
        seconds = 60.0 if abs(shift) >= 1e-3 or shift < -1e-5 else 0.15
        found = verify(model, x, torch.tensor([label]), eps=eps, seconds=seconds)
        status = found.status[0]
        if status == Status.PROVEN:
            assert truth > 0
            more = exact_minimum(weights, objective, *box_around(x[0], eps, BOX_TOLERANCE))
            assert more >= Fraction(float(found.lower_bound[0]))
        if status == Status.BROKEN:
            # The network rounds; but not by more than that.
            assert truth <= Fraction(1e-5)
        if abs(shift) >= 1e-3:
            assert status == (Status.PROVEN if shift > 0 else Status.BROKEN)
        decided += status != Status.UNDECIDED
    if shift < -1e-5:
        assert decided == 8


@pytest.mark.parametrize("shift", [3e-3, 3e-4, -3e-4, -3e-3])
def test_verify_agrees_with_exact_minima_in_disks(shift: float) -> None:
    """The same with L2: whatever of a box is cut off was beyond the disk, or above zero."""
    for seed in range(16):
        model = planted_mlp(seed)
        x = torch.from_numpy(np.random.default_rng(80 + seed).random((1, 2)).astype(np.float32))
        label = seed % 2
        eps = [0.15, 0.4][seed // 8]
        weights = [p.data for p in model.parameters()]
        pieces = linear_pieces(weights, [1, -1] if label == 0 else [-1, 1], *box_around(x[0], 0.5))
        last_bias(model)[label] += float(shift - minimum_in_disk(pieces, x[0], eps))
        found = verify(model, x, torch.tensor([label]), eps=eps, norm="L2", seconds=3)
        assert found.status[0] == (Status.PROVEN if shift > 0 else Status.BROKEN)
        assert found.lower_bound[0] <= shift + 1e-5


def random_networks() -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    with torch.random.fork_rng():
        for n, n_classes, gain in ((4, 2, 2.0), (7, 3, 1.5), (15, 2, 2.0)):
            torch.manual_seed(n)
            networks[f"cnn {n}"] = FeatureCNN(n, n_classes)
            for weight in networks[f"cnn {n}"].parameters():
                weight.data *= gain
        torch.manual_seed(0)
        networks["mlp"] = nn.Sequential(
            nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4)
        )
        for weight in networks["mlp"].parameters():
            weight.data *= 3.0
    return networks


NETWORKS = random_networks()


def samples(model: nn.Module, n: int, seed: int) -> tuple[Tensor, Tensor]:
    n_features = getattr(model, "n_features", 6)
    x = torch.rand(n, n_features, generator=torch.Generator().manual_seed(seed))
    return x, model(x).argmax(1)


def check_points(
    found: Verification, x: Tensor, y: Tensor, model: nn.Module, box: bool = True
) -> None:
    """Check each point that breaks a sample by numpy and the model alone."""
    points = found.counterexample[found.broken]
    assert not np.isnan(points).any()
    assert np.isnan(found.counterexample[~found.broken]).all()
    at = torch.from_numpy(points).float()
    assert (at.double().numpy() == points).all()
    assert (model(at).argmax(1) != y[torch.from_numpy(found.broken)]).all()
    order = np.inf if found.norm == "Linf" else 2
    gone = np.linalg.norm(points - x.double().numpy()[found.broken], ord=order, axis=1)
    assert (gone <= np.max(found.eps)).all()
    if box:
        assert ((points >= 0) & (points <= 1)).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_verify_of_random_networks_against_points(name: str, norm: str) -> None:
    model = NETWORKS[name].requires_grad_(False)
    x, y = samples(model, 12, 1)
    shares = []
    for eps in (0.01, 0.04, 0.15) if norm == "Linf" else (0.03, 0.1, 0.4):
        found = verify(model, x, y, eps=eps, norm=norm, seconds=0.1)
        check_points(found, x, y, model)
        rng = torch.Generator().manual_seed(3)
        for _ in range(20):
            step = 2 * torch.rand(x.shape, generator=rng) - 1
            if norm == "L2":
                step = step / step.norm(dim=1, keepdim=True)
            else:
                step = torch.where(torch.rand(x.shape, generator=rng) < 0.7, step.sign(), step)
            points = (x + eps * step).clamp(0, 1)
            wrong = model(points).argmax(1) != y
            assert not (wrong.numpy() & found.proven).any()
            margin = real_logits([p.data for p in model.parameters()], points)
            own = margin.gather(1, y[:, None])
            least = (own - margin.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
            assert (least.numpy() >= found.lower_bound - 1e-9)[~found.broken].all()
        shares.append(found.proven_accuracy)
    assert shares[0] >= 0.5
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("shift", [1e-2, 1e-3, -1e-3, -1e-2])
@pytest.mark.parametrize("inside", [True, False])
def test_verify_in_an_l2_ball_agrees_with_closed_forms(shift: float, inside: bool) -> None:
    """A margin that is linear where it counts: its minimum over ball and box is known."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        w = rng.standard_normal(6).astype(np.float32)
        x = rng.uniform(0.45, 0.55, 6).astype(np.float32)
        box = (0.0, 1.0)
        eps = 0.3
        if inside:  # the ball ends inside the box
            least = float(w @ x.astype(float)) - eps * np.linalg.norm(w.astype(float))
        else:  # the box cuts the ball, and leaves half of the steepest feature
            box = (0.4, 0.6)
            step = exact_step(w.astype(float), x.astype(float), eps, box)
            least = float(w.astype(float) @ (x + step))
        model = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 2))
        model[0].weight.data = torch.from_numpy(w)[None]
        model[0].bias.data = torch.tensor([10.0])
        model[2].weight.data = torch.tensor([[1.0], [0.0]])
        model[2].bias.data = torch.tensor([float(-10.0 - least + shift), 0.0])
        found = verify(
            model,
            torch.from_numpy(x)[None],
            torch.tensor([0]),
            eps=eps,
            norm="L2",
            box=box,
            seconds=5,
        )
        assert found.status[0] == (Status.PROVEN if shift > 0 else Status.BROKEN)


def exact_step(w: np.ndarray, x: np.ndarray, eps: float, box: tuple[float, float]) -> np.ndarray:
    """Return the step in ball and box along which w . x falls most: by its multiplier."""
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        step = np.clip(x - w / middle, *box) - x
        low, high = (middle, high) if np.linalg.norm(step) > eps else (low, middle)
    return np.clip(x - w / high, *box) - x


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_verify_sees_a_spike_at_the_edge_of_the_ball(sign: int, norm: str) -> None:
    """Wrong only next to one point of the ball's edge, or only just beyond it."""
    x = torch.full((1, 5), 0.5)
    eps = 0.125
    direction = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    end = 5 * eps if norm == "Linf" else eps * 5**0.5
    for depth in (1e-2, 1e-3, 1e-4):
        model = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 2))
        model[0].weight.data = direction[None]
        start = float(direction @ x[0]) + end - sign * depth
        model[0].bias.data = torch.tensor([-start])
        model[2].weight.data = torch.tensor([[-2.0 / depth], [0.0]])
        model[2].bias.data = torch.tensor([1.0, 0.0])
        found = verify(model, x, torch.tensor([0]), eps=eps, norm=norm, seconds=5)
        assert found.status[0] == (Status.BROKEN if sign > 0 else Status.PROVEN)


def test_search_does_not_prove_what_it_cannot_cut() -> None:
    """A box of one point is left open, not dropped, where its bound is not above the threshold."""
    weights = [p.data for p in planted_mlp(0).parameters()]
    point = torch.full((1, 2), 0.5, dtype=torch.float64)
    objective = torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact = float(real_logits(weights, point)[0] @ objective)
    goal = Goal(weights, objective, exact + 1e-3)
    root = Boxes(point, point, *crown_bounds(point, point, weights, objective[None]))
    found = search(goal, root, lambda points: None, until=math.inf, batch_size=2)
    assert not found.proven
    assert found.lower_bound == float(root.bound[0])
    edge = torch.nextafter(point, point + 1)
    root = Boxes(point, edge, *crown_bounds(point, edge, weights, objective[None]))
    assert not search(goal, root, lambda points: None, until=math.inf, batch_size=2).proven


@pytest.mark.parametrize("seed", range(10))
def test_verify_does_not_prove_what_only_real_numbers_do(seed: int) -> None:
    """The real network is right by far everywhere, and float32 swallows what makes it so."""
    rng = np.random.default_rng(seed)
    size = float(2.0 ** rng.integers(26, 40))
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data = torch.eye(3)
    model[0].bias.data = torch.tensor([size, size, 0.0])
    # Logit 0 is x0 - x1 + size - size + 0.5: in float32 x0 and the half are lost, or not.
    order = rng.permutation(3)
    model[0].weight.data = model[0].weight.data[order]
    model[0].bias.data = model[0].bias.data[order]
    last = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])[:, order]
    model[2].weight.data, model[2].bias.data = last, torch.tensor([0.5, 0.0])
    x = torch.tensor([[0.8, 0.2, 0.5]])
    wide = x.double()
    objective = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    weights = [p.data for p in model.parameters()]
    real = crown_bounds(wide - 0.1, wide + 0.1, weights, objective)
    assert real.bound > 0.5
    found = verify(model, x, torch.tensor([0]), eps=0.1, seconds=0.5)
    assert found.status[0] != Status.PROVEN


def test_verify_does_not_prove_what_is_no_number() -> None:
    model = FeatureCNN(4, 2)
    model.weights()[7].data[:] = torch.tensor([1e38, -1e38])
    model.weights()[6].data *= 1e38
    model.weights()[4].data *= 1e20
    x, y = torch.rand(3, 4), torch.tensor([0, 0, 0])
    found = verify(model, x, y, eps=0.1, seconds=0.2)
    assert not found.proven.any()


def test_verify_of_float64_networks_counts_less_rounding() -> None:
    model = FeatureCNN(5, 2)
    x, y = samples(model, 4, 0)
    single = verify(model, x, y, eps=1e-3)
    double = verify(model.double(), x.double(), y, eps=1e-3)
    assert (double.rounding < 1e-6 * single.rounding).all()
    assert double.proven.any()


def test_verify_with_an_eps_for_each_feature() -> None:
    """Features that may not move do not count; those that may are found."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[100.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    model[0].bias.data = torch.tensor([-50.0 - 0.5 + 1.0, 0.0])
    model[2].weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    model[2].bias.data = torch.tensor([0.0, 0.8])
    x, y = torch.full((1, 3), 0.5), torch.tensor([0])  # margin 1 + 100 d0 + d1 - 0.8
    for eps, want in (
        ([0.0, 0.1, 0.3], "proven"),
        ([0.0, 0.3, 0.0], "broken"),
        ([0.01, 0.0, 0.0], "broken"),
    ):
        found = verify(model, x, y, eps=torch.tensor(eps, dtype=torch.float64), seconds=2)
        assert found.status[0] == want
        moved = found.counterexample[0] - x[0].double().numpy()
        assert np.isnan(moved).all() or (np.abs(moved) <= np.array(eps)).all()
    with pytest.raises(ValueError, match="eps must be a number, or with norm Linf"):
        verify(model, x, y, eps=torch.tensor([0.1, 0.1]))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("broken", [False, True])
def test_lower_bound_is_of_the_margin_over_every_class(
    order: tuple[int, int, int], broken: bool
) -> None:
    """One class is near, its logit exact; a search proves, or breaks, that over a far rough one."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    # Two equal units that cross, of which bounds do not know it, and two that rounding counts.
    model[0].weight.data = torch.ones(4, 1)
    model[0].bias.data = torch.tensor([-0.5, -0.5, 0.0, 0.0])
    rough = torch.tensor([1.0, -1.0, 3e4, -3e4])
    rough[0] += 0.5 * broken
    weight = torch.stack((torch.zeros(4), torch.zeros(4), rough))
    bias = torch.tensor([0.002, 0.0, -0.03])
    model[2].weight.data, model[2].bias.data = weight[list(order)], bias[list(order)]
    x, y = torch.tensor([[0.5]]), torch.tensor([order.index(0)])
    found = verify(model, x, y, eps=0.1, seconds=1)
    assert found.status[0] == (Status.BROKEN if broken else Status.PROVEN)
    assert found.rounding[0] > 0.004
    assert found.lower_bound[0] <= bias[0]


def test_verify_takes_wrong_samples_and_known_points_as_they_are() -> None:
    model = NETWORKS["cnn 15"].requires_grad_(False)
    x, y = samples(model, 6, 5)
    y[0] = 1 - y[0]
    plain = verify(model, x, y, eps=0.3, seconds=0.2)
    assert plain.status[0] == Status.BROKEN
    assert (plain.counterexample[0] == x[0].double().numpy()).all()
    broken = plain.broken
    assert broken[1:].any()
    # Given just outside the ball, as rounding leaves points, they are put into it.
    known = torch.from_numpy(np.where(broken[:, None], plain.counterexample, x.numpy())).float()
    found = verify(model, x, y, eps=0.3, seconds=0.2, points=[x, known])
    assert (found.n_boxes[broken] == 0).all()
    check_points(found, x, y, model)


class Interrupted(Exception):
    pass


def test_verify_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NETWORKS["cnn 15"].requires_grad_(False)
    x, y = samples(model, 12, 6)
    settings = {"eps": 0.06, "seconds": 60.0}
    whole = verify(model, x, y, **settings)
    assert whole.proven.sum() > 3
    assert whole.broken.any()
    path = tmp_path / "journal.jsonl"
    noted, note = [], Journal.note

    def stops(self: Journal, entry: dict[str, object]) -> None:
        if len(noted) == 5:
            raise Interrupted
        noted.append(entry)
        note(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "note", stops)
        with pytest.raises(Interrupted):
            verify(model, x, y, **settings, resume=path)
    with path.open("a") as file:
        file.write('{"sample": 7, "stat')  # cut short while it was written
    again = verify(model, x, y, **settings, resume=path)
    assert again.status.tolist() == whole.status.tolist()
    check_points(again, x, y, model)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["sample"] for line in lines[1:]) == list(range(12))
    # All is known now: nothing is done, and the file stays as it is.
    before = path.read_bytes()
    third = verify(model, x, y, **settings, resume=path)
    assert third.as_dict() == again.as_dict() | {"seconds": third.as_dict()["seconds"]}
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="record of another verification"):
        verify(model, x, y, eps=0.07, resume=path)
    with pytest.raises(ValueError, match="record of another verification"):
        verify(model, x, 1 - y, **settings, resume=path)


def test_verify_asks_again_about_the_points_of_a_record(tmp_path: Path) -> None:
    """A point that is wrong but out of the ball, or in the ball but right, breaks nothing."""
    model = NETWORKS["mlp"].requires_grad_(False)
    x, y = samples(model, 40, 6)
    path = tmp_path / "journal.jsonl"
    first = verify(model, x, y, eps=0.03, seconds=5, resume=path)
    proven, broken = (int(np.flatnonzero(v)[0]) for v in (first.proven, first.broken))
    far = x.flip(0)[(model(x.flip(0)).argmax(1) != y[proven])][0]
    poisoned = {proven: far.double().tolist(), broken: x[broken].double().tolist()}
    head, *lines = path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        if entry["sample"] in poisoned:
            entry |= {"status": "broken", "counterexample": poisoned[entry["sample"]]}
    path.write_text("\n".join([head, *map(json.dumps, entries)]) + "\n")
    again = verify(model, x, y, eps=0.03, seconds=5, resume=path)
    assert again.status.tolist() == first.status.tolist()
    check_points(again, x, y, model)


def test_verify_undecided_is_tried_again_with_more_time(tmp_path: Path) -> None:
    model = NETWORKS["mlp"].requires_grad_(False)
    x, y = samples(model, 60, 6)
    path = tmp_path / "journal.jsonl"
    hurried = verify(model, x, y, eps=0.1, seconds=0, resume=path)
    assert hurried.undecided.any()
    assert (hurried.lower_bound <= hurried.rounding)[hurried.undecided].all()
    longer = verify(model, x, y, eps=0.1, seconds=5, resume=path)
    assert longer.undecided.sum() < hurried.undecided.sum()
    assert (longer.proven >= hurried.proven).all()
    none = verify(model, x, y, eps=0.1, seconds=5, total_seconds=0)
    assert none.status.tolist() == hurried.status.tolist()


@contextmanager
def everywhere_removed(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def test_verify_refuses_what_it_cannot_verify() -> None:
    x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    model = FeatureCNN(4, 2)
    with pytest.raises(ValueError, match="a Linear cannot be verified"):
        verify(nn.Linear(4, 2), x, y, eps=0.1)
    with pytest.raises(ValueError, match="certificate of smoothing"):
        verify(nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)), x, y, eps=0.1)
    with pytest.raises(ValueError, match="it answers in torch.float16"):
        verify(FeatureCNN(4, 2).half(), x, y, eps=0.1)

    class Other(FeatureCNN):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    class Named(Other):
        fused_by = "feature_cnn"

    for kind in (Other, Named):
        with pytest.raises(ValueError, match="it is a subclass of FeatureCNN"):
            verify(kind(4, 2), x, y, eps=0.1)
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    other[1].forward = torch.tanh  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="another forward"):
        verify(other, x, y, eps=0.1)
    hooked = FeatureCNN(4, 2)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has a hook"):
        verify(hooked, x, y, eps=0.1)

    class Inside(FeatureCNN):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x.clamp(0.1, 0.9))

    with pytest.raises(ValueError, match="it is a subclass of FeatureCNN"):
        verify(Inside(4, 2), x, y, eps=0.1)

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.defended = model

        def forward(self, x: Tensor) -> Tensor:
            return -self.defended(x)

    with pytest.raises(ValueError, match="a Behind cannot be verified"):
        verify(Behind(), x, y, eps=0.1)
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    with everywhere_removed(everywhere), pytest.raises(ValueError, match="hook of all modules"):
        verify(model, x, y, eps=0.1)
    without = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    without[0].register_parameter("gain", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="a Sequential cannot be verified"):
        verify(without, x, y, eps=0.1)
    for given, message in (
        ({"eps": 0.0}, "eps must be finite and > 0"),
        ({"eps": math.nan}, "eps must be finite and > 0"),
        ({"eps": 0.1, "norm": "L1"}, "norm must be Linf or L2, got 'L1'"),
        ({"eps": 0.1, "box": (0.5, 1.0)}, "x must be inside the box"),
        ({"eps": 0.1, "seconds": -1}, "must be >= 0"),
        ({"eps": 0.1, "batch_size": 1}, "batch_size must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            verify(model, x, y, **given)
    with pytest.raises(ValueError, match="x must be torch.float32"):
        verify(model, x.double(), y, eps=0.1)
    with pytest.raises(ValueError, match="y must be within"):
        verify(model, x, y + 2, eps=0.1)
    with pytest.raises(ValueError, match="y must be int64"):
        verify(model, x, y.int(), eps=0.1)
    with pytest.raises(ValueError, match="x must be inside the box"):
        verify(model, x * torch.nan, y, eps=0.1)


def test_verify_notices_answers_that_are_not_the_weights_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FeatureCNN(4, 2)
    monkeypatch.setattr(FeatureCNN, "why_modules", lambda self: "")
    monkeypatch.setattr(FeatureCNN, "forward", lambda self, x: 1.001 * self.plain(x))
    with pytest.raises(ValueError, match="more than rounding can explain"):
        verify(model, torch.rand(5, 4), torch.zeros(5, dtype=torch.int64), eps=0.1)


def test_verify_takes_weights_by_name_and_its_arguments_as_they_are(tmp_path: Path) -> None:
    """Pruning leaves biases before weights; x may have a gradient, the caller be in inference."""
    model = NETWORKS["mlp"]
    x, y = samples(model, 12, 6)
    want = verify(model, x, y, eps=0.05, seconds=5)
    assert want.broken.any()
    assert want.proven.any()
    turned = copy.deepcopy(model)
    for layer in turned[::2]:
        weight = layer.weight
        del layer.weight
        layer.weight = weight
    found = verify(turned, x, y, eps=0.05, seconds=5)
    assert found.status.tolist() == want.status.tolist()
    with torch.inference_mode():
        found = verify(model, x, y, eps=0.05, seconds=5)
    assert found.status.tolist() == want.status.tolist()
    asks = x.clone().requires_grad_()
    found = verify(model, asks, y, eps=0.05, seconds=5, resume=tmp_path / "journal.jsonl")
    assert found.status.tolist() == want.status.tolist()


def test_verify_is_not_of_what_autocast_answers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for weight in model.parameters():
        weight.data = torch.eye(2) if weight.dim() == 2 else torch.zeros(2)
    x = torch.tensor([[0.5, 0.25]])  # bfloat16 has these
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        verify(model, x, torch.tensor([0]), eps=0.01)


def test_verify_does_not_search_for_what_no_box_can_prove() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight.data[0, 0] = torch.nan
    x = torch.rand(5, 3)
    found = verify(model, x, model(x).argmax(1), eps=0.1, seconds=math.inf)
    assert found.undecided.all()


def test_search_keeps_boxes_whose_squares_overflow_or_underflow() -> None:
    for size in (1e200, 1e-300):
        center = torch.zeros(2, dtype=torch.float64)
        lower, upper = center[None] + 0.5 * size, center[None] + size
        low, high, keep = _within_ball(lower, upper, center, size)
        assert keep.all()
        # This point is in both: 0.6**2 + 0.7**2 < 1.
        point = size * torch.tensor([[0.6, 0.7]], dtype=torch.float64)
        assert ((low <= point) & (point <= high)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"sample": -1},
        {"sample": 3},
        {"sample": True},
        {"status": "sure"},
        {"status": "broken"},
        {"counterexample": [0.1, 0.2, 0.3, 0.4]},
        {"status": "broken", "counterexample": [0.1]},
        {"seconds": {}},
        {"n_boxes": None},
        "rubbish",
        [],
    ],
)
def test_verify_refuses_a_line_that_it_has_not_written(change: object, tmp_path: Path) -> None:
    model = FeatureCNN(4, 2)
    x, y = samples(model, 3, 0)
    path = tmp_path / "journal.jsonl"
    verify(model, x, y, eps=1e-5, resume=path)
    head, first, *rest = path.read_text().splitlines()
    line = json.dumps(json.loads(first) | change if isinstance(change, dict) else change)
    path.write_text("\n".join([head, line, *rest]) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"line 2 of .* is not one that verify has written"):
        verify(model, x, y, eps=1e-5, resume=path)
    assert path.read_bytes() == before


def test_verify_of_no_samples() -> None:
    found = verify(FeatureCNN(4, 2), torch.empty(0, 4), torch.empty(0, dtype=torch.int64), eps=0.1)
    assert len(found.status) == 0
