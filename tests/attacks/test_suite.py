"""The suite: which attacks run on which model, and what its figures mean."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnmf_cuda.attacks import (
    Attack,
    AttackKind,
    AttackOutcome,
    Budget,
    SuiteResult,
    Threat,
    run_suite,
)
from nnmf_cuda.attacks.known_weakness import plant
from nnmf_cuda.attacks.objectives import (
    N_DECISIONS,
    N_ROUNDS,
    ExpectedLoss,
    fresh_decisions,
    majority_right,
)
from nnmf_cuda.attacks.surrogates import BPDAIdentity, FixedNoise, PurifierShift, surrogate
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.robustness.baselines import NoiseOnly

FROM_WORST = "APGD-margin from the worst points"
SMALL = Budget(n_iter=10, n_restarts=1, eot_iter=2, surrogate_draws=4, pgd_iter=5, n_queries=10)


@pytest.fixture
def defended():
    torch.manual_seed(0)
    purifier = DiffusionPurifier(FeatureDenoiser(6), NoiseSchedule.linear(100), n_draws=2)
    return DefendedClassifier(purifier, FeatureCNN(6, 2)).eval()


@pytest.fixture
def samples(defended):
    x = torch.rand(10, 6, generator=torch.Generator().manual_seed(1))
    return x, defended.classifier(x).argmax(1)


def test_suite_of_a_purifying_defence(defended, samples):
    x, y = samples
    result = run_suite(
        defended,
        x,
        y,
        attack_eps=0.2,
        budget=SMALL,
        transfer_from={"the undefended": defended.classifier},
        known_points={"given": (x + 0.1).clamp(0, 1)},
    )
    names = [outcome.name for outcome in result.outcomes]
    assert names == [
        "clean",
        "given",
        "transfer from the undefended",
        "APGD-margin, 4-draw surrogate",
        "APGD-CE, 4-draw surrogate",
        "APGD-margin, BPDA identity",
        "APGD on the purifier's output",
        "APGD-margin, EOT 2",
        "APGD-CE, EOT 2",
        "APGD-margin, selective EOT 2",
        "PGD-5, EOT 2",
        "Square, 10 queries",
        FROM_WORST,
    ]
    shape = (N_ROUNDS, N_DECISIONS, 10)
    assert all(outcome.right.shape == shape for outcome in result.outcomes)
    assert result.worst_case_accuracies.shape == (N_ROUNDS,)
    lowest = min(outcome.accuracies["majority"] for outcome in result.outcomes)
    assert result.all_right_accuracy <= result.worst_case_accuracy <= lowest


def test_suite_of_a_model_without_noise(defended, samples):
    x, y = samples
    torch.manual_seed(0)
    model = FeatureCNN(6, 3)
    labels = model(x).argmax(1)
    result = run_suite(model, x, labels, attack_eps=0.2, budget=SMALL)
    names = [outcome.name for outcome in result.outcomes]
    assert names == [
        "clean",
        "APGD-margin",
        "APGD-CE",
        "APGD-DLR",
        "PGD-5",
        "Square, 10 queries",
        FROM_WORST,
    ]
    assert result.outcomes[0].accuracies == {"fresh": 1.0, "majority": 1.0, "all": 1.0}
    assert all(outcome.right.shape == (1, 1, 10) for outcome in result.outcomes)


def test_what_an_attack_is_shows_in_its_kind(defended, samples):
    x, y = samples
    result = run_suite(
        defended, x, y, attack_eps=0.2, budget=SMALL, transfer_from={"a": defended.classifier}
    )
    kinds = {outcome.name: outcome.attack.kind for outcome in result.outcomes}
    assert kinds["clean"] is AttackKind.CLEAN
    assert kinds["APGD-margin, BPDA identity"] is AttackKind.BPDA
    assert kinds[FROM_WORST] is AttackKind.FROM_WORST
    assert not kinds[FROM_WORST].is_white_box
    black = [name for name, kind in kinds.items() if kind.is_black_box]
    assert black == ["transfer from a", "Square, 10 queries"]
    assert sum(kind.is_white_box for kind in kinds.values()) == 8
    margins = result.where(lambda attack: attack.loss == "margin")
    assert list(margins) == [name for name in kinds if "margin" in name]


def test_calls_of_the_model_and_its_surrogates_are_counted(samples):
    """Of a model without noise every answer can be told from the budget."""
    x, y = samples
    torch.manual_seed(0)
    model = FeatureCNN(6, 2)
    budget = Budget(n_iter=3, n_cheap_restarts=2, pgd_iter=4, n_queries=5)
    calls = run_suite(model, x, y, attack_eps=0.1, budget=budget).calls
    decisions = 6 * (2 + 1)  # on the points of each attack: is it random, and a decision
    apgd = 2 * (2 + 1 + 2 * (4 + 1))  # is it random, the clean points, and from each start
    last = 5 + 2 + 1 + (4 + 1)  # how wrong the points of each are, then APGD from the worst
    expected = 2 + decisions + 1 + apgd + 4 + (1 + 5) + last
    assert calls.n_calls == expected
    # The classes are counted on one row, and how wrong points are is asked 20 times.
    assert calls.n_rows == (expected - 1) * len(x) + 1 + 5 * 19 * len(x)


def outcome_of(name, points, right, margins=None):
    """An outcome of one round; `right` is (decisions, n)."""
    margins = torch.zeros(len(points)) if margins is None else torch.tensor(margins)
    right = torch.tensor(right, dtype=torch.bool).unsqueeze(0)
    attack = Attack(name, AttackKind.GRADIENT, lambda _: points)
    return AttackOutcome(attack, points, right, margins, 0.0)


def test_worst_case_is_counted_sample_by_sample():
    right = {
        "clean": [[1, 1, 1]] * 3,
        "a": [[1, 1, 0], [1, 0, 0], [1, 1, 1]],
        "b": [[1, 0, 1], [1, 0, 1], [1, 1, 1]],
    }
    outcomes = [outcome_of(n, torch.full((3, 2), i), r) for i, (n, r) in enumerate(right.items())]
    result = SuiteResult(outcomes)
    assert outcomes[1].robust.tolist() == [[True, True, False]]
    assert outcomes[2].robust.tolist() == [[True, False, True]]
    assert result.robust.tolist() == [[True, False, False]]
    assert result.worst_case_accuracy == pytest.approx(1 / 3)
    assert result.all_right_accuracy == pytest.approx(1 / 3)


def test_worst_points_are_not_clean_where_a_sample_holds():
    """Among points on which as many decisions are right, the margin tells the worst."""
    clean = outcome_of("clean", torch.zeros(2, 1), [[1, 1]], [-1.0, -1.0])
    a = outcome_of("a", torch.ones(2, 1), [[1, 1]], [-0.5, -0.7])
    b = outcome_of("b", 2 * torch.ones(2, 1), [[1, 0]], [-0.6, 0.1])
    assert SuiteResult([clean, a, b]).worst_points[:, 0].tolist() == [1.0, 2.0]
    assert SuiteResult([clean]).worst_points[:, 0].tolist() == [0.0, 0.0]


def test_the_mean_over_rounds_is_reported():
    right = torch.tensor([[[True, True]], [[True, False]]])  # two rounds of one decision
    points = torch.zeros(2, 1)
    attack = Attack("clean", AttackKind.CLEAN, lambda _: points)
    outcome = AttackOutcome(attack, points, right, torch.zeros(2), 0.0)
    result = SuiteResult([outcome])
    assert result.worst_case_accuracies.tolist() == [1.0, 0.5]
    assert result.worst_case_accuracy == 0.75
    assert result.robust_share.tolist() == [1.0, 0.5]


def test_half_of_the_decisions_is_no_majority():
    assert not bool(outcome_of("a", torch.zeros(1, 2), [[True], [False]]).robust)


def test_points_beyond_the_bound_are_refused(defended, samples):
    x, y = samples
    with pytest.raises(RuntimeError, match="given: the points broke the bound"):
        run_suite(defended, x, y, attack_eps=0.1, budget=SMALL, known_points={"given": x + 0.2})


def test_decisions_repeat_with_their_seed(defended, samples):
    x, y = samples
    (first, margins), (again, _), (_, other) = (
        fresh_decisions(defended, x, 1 - y, seed=s, n_rounds=2) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert first.shape == (2, N_DECISIONS, 10)
    assert not torch.equal(margins, other)
    one = majority_right(defended, x, 1 - y, seed=1)
    assert torch.equal(one, first[0].float().mean(0) > 0.5)


def test_transfer_asks_the_target_nothing(defended, samples):
    x, y = samples
    source = FeatureCNN(6, 2)
    weak = Budget(n_iter=5, n_restarts=1, n_cheap_restarts=1, pgd_iter=1, n_queries=1)
    points = []
    for target in (defended.classifier, FeatureCNN(6, 2)):
        result = run_suite(
            target, x, y, attack_eps=0.2, budget=weak, transfer_from={"another": source}
        )
        (found,) = (o.points for o in result.outcomes if o.name == "transfer from another")
        points.append(found)
    assert torch.equal(*points)


def test_surrogate_has_the_same_mean(defended, samples):
    x, _ = samples
    torch.manual_seed(0)
    wide = surrogate(defended, 4000)
    narrow = torch.stack([defended(x) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(wide(x), narrow, rtol=0, atol=2e-2)
    assert wide.purifier.denoiser is defended.purifier.denoiser


def test_fixed_noise_has_no_noise_and_the_defences_gradient(defended, samples):
    x, _ = samples
    model = FixedNoise(defended, 5).double()
    x = x[:3].double().requires_grad_()
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model(x), FixedNoise(defended, 6)(x))
    assert torch.autograd.gradcheck(model, x, eps=1e-7, atol=1e-5)


def test_bpda_passes_the_classifiers_gradient(samples):
    """With a purifier that answers the identity, BPDA's gradient is the classifier's own."""
    x, _ = samples

    class Identity(nn.Module):
        def forward(self, points):
            return points.unsqueeze(1).repeat(1, 3, 1)

    classifier = FeatureCNN(6, 2)
    model = BPDAIdentity(DefendedClassifier(Identity(), classifier))
    gradients = []
    for target in (model, classifier):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(target(leaf)[:, 0].sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


def test_noise_only_has_the_purifiers_level(defended, samples):
    x, _ = samples

    class Echo(nn.Module):
        def forward(self, points):
            return points

    model = NoiseOnly(DefendedClassifier(defended.purifier, Echo()))
    torch.manual_seed(0)
    answers = torch.stack([model(x) for _ in range(4000)])
    kept = float(defended.purifier.alphas_cumprod[41])
    level = ((1 - kept) / kept) ** 0.5 / defended.purifier.n_draws**0.5
    torch.testing.assert_close(answers.mean(0), x, rtol=0, atol=0.05)
    assert float(answers.std(0).mean()) == pytest.approx(level, rel=0.02)


def test_purifier_shift_is_zero_at_home_and_differentiable(defended, samples):
    x, _ = samples
    purifier = defended.purifier.double()
    x = x.double()
    shift = PurifierShift(purifier, x)
    assert float(shift(x).detach().abs().max()) == 0
    assert float(shift(x + 0.1).min()) > 0
    leaf = (x[:3] + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(PurifierShift(purifier, x[:3]), leaf, eps=1e-7, atol=1e-5)


def test_the_last_attack_climbs_on_from_the_worst_points(defended, samples):
    x, y = samples
    model = defended.classifier
    strong = run_suite(model, x, y, attack_eps=0.2, budget=Budget(n_queries=10, pgd_iter=5))
    given = strong.worst_points
    weak = Budget(n_iter=1, n_restarts=1, n_cheap_restarts=1, pgd_iter=1, n_queries=1)
    result = run_suite(model, x, y, attack_eps=0.2, budget=weak, known_points={"given": given})
    by_name = {outcome.name: outcome for outcome in result.outcomes}
    last, before = by_name[FROM_WORST].margins, by_name["given"].margins
    assert bool((last >= before - 1e-6).all())


def test_answers_that_are_no_numbers_are_refused(samples):
    """The first class is the largest of NaN: such a model would look right on its samples."""
    x, _ = samples

    class Broken(nn.Module):
        def forward(self, points):
            return points[:, :2] + torch.where(points[:, :1] > 0.5, torch.nan, 0.0)

    with pytest.raises(ValueError, match="NaN or infinite logits"):
        run_suite(Broken(), x, torch.zeros(len(x), dtype=torch.int64), attack_eps=0.1)


def test_labels_of_another_length_are_refused(defended, samples):
    x, y = samples
    with pytest.raises(ValueError, match=r"y must have shape \(10,\)"):
        run_suite(defended, x, y[:4], attack_eps=0.1, budget=SMALL)


def test_generators_and_modes_come_back(defended, samples):
    x, y = samples
    defended.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run_suite(defended, x, y, attack_eps=0.1, budget=SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert defended.training


def test_the_worst_case_of_a_linear_model_is_known():
    """A sample holds just where its margin is larger than what the ball allows."""
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0])
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(5)) * 0.4 + 0.3

    class Line(nn.Module):
        def forward(self, points):
            score = (points - 0.5) @ weight
            return torch.stack((torch.zeros_like(score), score), 1)

    y = Line()(x).argmax(1)
    holds = ((x - 0.5) @ weight).abs() > 0.1 * weight.abs().sum()
    result = run_suite(Line(), x, y, attack_eps=0.1, budget=SMALL)
    assert torch.equal(result.robust[0], holds)
    assert 0 < result.worst_case_accuracy < 1


def test_a_chain_is_attacked_at_every_step(defended, samples):
    x, y = samples
    purifier = defended.purifier
    chain = DiffusionPurifier(
        purifier.denoiser, purifier.schedule, timesteps=(60, 30, 5), n_draws=2, eta=1.0
    )
    result = run_suite(
        DefendedClassifier(chain, defended.classifier).eval(), x, y, attack_eps=0.2, budget=SMALL
    )
    assert "APGD on the purifier's every step" in [outcome.name for outcome in result.outcomes]
    last, every = (PurifierShift(chain, x, every_step=every) for every in (False, True))
    moved = (x + 0.1).clamp(0, 1)
    assert bool((every(moved) > last(moved)).all())
    assert float(every(x).detach().abs().max()) == 0
    shift = PurifierShift(chain.double(), x[:3].double(), every_step=True)
    leaf = (x[:3].double() + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(shift, leaf, eps=1e-7, atol=1e-5)


def test_selective_loss_counts_the_answers_nearest_to_wrong():
    class Coin(nn.Module):
        """Answers of row i of the k-th copy: margin k."""

        def forward(self, x):
            copies = torch.arange(5.0).repeat_interleave(len(x) // 5)
            return torch.stack((torch.zeros_like(copies), copies), 1) + 0 * x.sum(1, keepdim=True)

    y = torch.zeros(2, dtype=torch.int64)
    objectives = [ExpectedLoss(Coin(), y, "margin", 5, share) for share in (1.0, 0.6, 0.2)]
    values = [float(objective(torch.zeros(2, 3))[0]) for objective in objectives]
    assert values == [2.0, 3.0, 4.0]


@pytest.mark.needs_cuda
def test_suite_and_planted_weaknesses_on_a_gpu(defended, samples):
    """The same attacks run there; a model without noise has nearly the same worst case."""
    x, y = (tensor.cuda() for tensor in samples)
    there = copy.deepcopy(defended).cuda()
    result = run_suite(there, x, y, attack_eps=0.2, budget=SMALL)
    assert result.worst_points.is_cuda
    assert 0 <= result.worst_case_accuracy <= 1
    planted, points = plant(there, x, Threat(0.2), seed=0)
    assert planted(points).is_cuda
    accuracies = [
        run_suite(model, *at, attack_eps=0.2, budget=SMALL).worst_case_accuracy
        for model, at in ((defended.classifier, samples), (there.classifier, (x, y)))
    ]
    assert abs(accuracies[0] - accuracies[1]) <= 0.1  # one of ten samples
