"""What the cases of the defence and of training count, draw and refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import inputs as kinks
from bench.cases import get_cases
from bench.inputs import noise_clear_of_kinks
from bench.kernels import Problem, verify
from nnmf_cuda.models import FeatureCNN, FeatureDenoiser, NoiseSchedule

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", ["purify", "purify_gradient", "defended_logits"])
def test_work_is_what_torch_counts_of_the_reference(op):
    (case,) = get_cases([op])
    size = case.sizes[0]
    call = case.implementations["reference"](case.inputs(size, 0, CPU))
    with FlopCounterMode(display=False) as counter:
        call()
    assert case.work(size).flops == counter.get_total_flops()
    assert case.work(size).items == size.shape["n_samples"] * size.shape["n_draws"]


@pytest.mark.parametrize("op", ["purify", "defended_logits"])
def test_the_gradient_takes_as_many_operations_again(op):
    (forward, both) = get_cases([op, f"{op}_gradient"])
    for size in both.sizes:
        assert both.work(size).flops == 2 * forward.work(size).flops


def test_a_gradient_that_is_off_is_found():
    (case,) = get_cases(["defended_logits_gradient"])
    ours = case.implementations["ours"]

    def wrong(inputs):
        call = ours(inputs)

        def off():
            logits, gradient = call()
            gradient[3, 1] += 1e-4 * gradient.abs().max()
            return logits, gradient

        return off

    (size,) = case.smoke
    changed = replace(case, implementations={"ours": ours, "wrong": wrong})
    found, calls = verify(Problem(changed, size), case.inputs(size, 0, CPU))
    assert list(calls) == ["ours"]
    assert found["wrong"]["reason"] == "wrong: error 0.0001 above 1e-05"


# Kinks -----------------------------------------------------------------------------------------


def distances(denoiser, classifier, x, noise, schedule):
    """Return how far each unit's input is from zero, and pairs of the pool from each other."""
    seen = []

    def relu(_module, inputs, _output):
        seen.append(inputs[0].detach().abs().flatten())

    def pool(_module, inputs, _output):
        pairs = inputs[0].detach()[..., : inputs[0].shape[-1] // 2 * 2].unflatten(-1, (-1, 2))
        seen.append((pairs[..., 0] - pairs[..., 1])[pairs.amax(-1) > 0].abs())

    for module in [*denoiser.modules(), *classifier.modules()]:
        # Not the ReLU before the pool: there the smaller of a pair may be anywhere.
        if isinstance(module, torch.nn.ReLU) and module is not classifier.convolutions[3]:
            module.register_forward_hook(relu)
        if isinstance(module, torch.nn.MaxPool1d):
            module.register_forward_hook(pool)
    draws = noise.shape[2]
    t = torch.full((len(x) * draws,), 41)
    x_t = schedule.q_sample(x.repeat_interleave(draws, 0), t, noise[0].flatten(0, 1).double())
    classifier(denoiser(x_t, t))
    return torch.cat(seen)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    denoiser = FeatureDenoiser(6, hidden=12).double()
    classifier = FeatureCNN(6, 2).double()
    x = torch.rand(20, 6, dtype=torch.float64)
    return denoiser, classifier, x, NoiseSchedule.linear()


def draw(problem, seed=0):
    denoiser, classifier, x, schedule = problem
    return noise_clear_of_kinks(
        x,
        4,
        timestep=41,
        alpha_cumprod=float(schedule.alphas_cumprod[41]),
        denoiser=[w.detach() for w in denoiser.weights()],
        classifier=[w.detach() for w in classifier.weights()],
        generator=torch.Generator().manual_seed(seed),
    )


def test_noise_is_clear_of_kinks(problem, monkeypatch):
    denoiser, classifier, x, schedule = problem
    monkeypatch.setattr(kinks, "_MARGIN", 0.0)
    anyhow = draw(problem)
    assert anyhow.shape == (1, 20, 4, 6)
    expected = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(anyhow.flatten(0, 2), expected)
    monkeypatch.setattr(kinks, "_MARGIN", 2e-4)
    clear = draw(problem)
    kept = (clear == anyhow).all(-1)
    assert 0.3 < kept.float().mean() < 1
    assert distances(denoiser, classifier, x, anyhow, schedule).min() < 2e-4
    assert distances(denoiser, classifier, x, clear, schedule).min() >= 2e-4 * (1 - 1e-9)


def test_noise_that_cannot_be_clear_is_given_up(problem, monkeypatch):
    monkeypatch.setattr(kinks, "_MARGIN", 10.0)
    with pytest.raises(RuntimeError, match="no noise clear of the kinks"):
        draw(problem)


# Training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["train_classifier", "train_denoiser"])
def test_a_training_of_less_quality_is_not_timed(op):
    (case,) = get_cases([op])
    (size,) = case.smoke
    ours = case.implementations["ours"]

    def lazy(inputs):
        return ours({**inputs, "settings": {**inputs["settings"], "epochs": 1}})

    changed = replace(case, implementations={**case.implementations, "lazy": lazy})
    found, calls = verify(Problem(changed, size), case.inputs(size, 0, CPU))
    assert list(calls) == ["reference", "ours"]
    assert found["lazy"]["reason"].startswith("wrong: error")
