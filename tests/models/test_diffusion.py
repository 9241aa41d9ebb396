from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureDenoiser


@pytest.fixture
def denoiser() -> FeatureDenoiser:
    torch.manual_seed(0)
    return FeatureDenoiser(5, hidden=16, embedding_dim=8)


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule.linear()


def test_linear_schedule_has_the_published_numbers(schedule):
    # The linear schedule of Ho et al. (2020), counted from 0.
    assert schedule.num_timesteps == 1000
    assert schedule.betas.dtype == torch.float64
    assert float(schedule.betas[0]) == 1e-4
    assert float(schedule.betas[-1]) == pytest.approx(0.02, abs=1e-15)
    assert float(schedule.alphas_cumprod[41]) == pytest.approx(0.97887, abs=1e-5)
    assert float(schedule.alphas_cumprod_prev[0]) == 1
    torch.testing.assert_close(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])


def test_alphas_cumprod_is_the_running_product():
    betas = np.linspace(1e-4, 0.02, 50)
    schedule = NoiseSchedule.linear(50)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-14)


def test_q_sample_by_hand(schedule):
    x_start, noise = torch.rand(3, 4), torch.randn(3, 4)
    t = torch.tensor([0, 41, 999])
    abar = schedule.alphas_cumprod.numpy()[t.numpy()][:, None]
    expected = np.sqrt(abar) * x_start.numpy() + np.sqrt(1 - abar) * noise.numpy()
    x_t = schedule.q_sample(x_start, t, noise)
    assert x_t.dtype == torch.float32
    np.testing.assert_allclose(x_t, expected, rtol=1e-6, atol=1e-7)  # float32 rounding


def test_forward_process_composes(schedule):
    # Stepping x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) z gives the same mean and variance.
    mean, variance = 1.0, 0.0
    for t in range(100):
        alpha, beta = float(schedule.alphas[t]), float(schedule.betas[t])
        mean, variance = alpha**0.5 * mean, alpha * variance + beta
    assert mean == pytest.approx(float(schedule.alphas_cumprod[99]) ** 0.5, rel=1e-12)
    assert variance == pytest.approx(1 - float(schedule.alphas_cumprod[99]), rel=1e-12)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (torch.rand(2, 2), r"betas must have shape \(num_timesteps,\), got \(2, 2\)"),
        (torch.empty(0), "betas must have shape"),
        (torch.tensor([0.1, 1.0]), r"betas must all be in \(0, 1\), got values from 0.1.* to 1.0"),
        (torch.tensor([0.1, float("nan")]), r"betas must all be in \(0, 1\)"),
    ],
)
def test_schedule_rejects_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas)


def test_schedule_rejects_bad_timesteps(schedule):
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"t must be within 0\.\.999, got values from -1 to 5"):
        schedule.q_sample(x, torch.tensor([-1, 5]), x)
    with pytest.raises(ValueError, match=r"t must be within 0\.\.999"):
        schedule.q_sample(x, torch.tensor([0, 1000]), x)
    with pytest.raises(TypeError, match=r"t must be int64, got torch.float32"):
        schedule.q_sample(x, torch.tensor([1.0, 2.0]), x)
    with pytest.raises(ValueError, match="num_timesteps must be at least 1, got 0"):
        NoiseSchedule.linear(0)


def test_purifier_is_noising_then_the_denoiser(denoiser, schedule):
    purifier = DiffusionPurifier(denoiser, schedule, timesteps=(41,), n_draws=3)
    x, noise = torch.rand(4, 5), torch.randn(4, 3, 5)
    purified = purifier(x, noise=noise)
    assert purified.shape == (4, 3, 5)
    t = torch.full((4,), 41)
    for draw in range(3):
        expected = denoiser(schedule.q_sample(x, t, noise[:, draw]), t)
        torch.testing.assert_close(purified[:, draw], expected)


@pytest.mark.parametrize(
    ("timesteps", "eta", "noised_steps"), [((41,), 0.0, 1), ((60, 20), 0.0, 1), ((60, 20), 1.0, 2)]
)
def test_purifier_draws_what_its_chain_needs(denoiser, schedule, timesteps, eta, noised_steps):
    purifier = DiffusionPurifier(denoiser, schedule, timesteps=timesteps, n_draws=2, eta=eta)
    x = torch.rand(3, 5)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(
        (noised_steps, 3, 2, 5), generator=torch.Generator().manual_seed(7), dtype=x.dtype
    )
    expected = ops.purify(
        x,
        noise,
        torch.tensor(timesteps),
        schedule.alphas_cumprod,
        denoiser.weights(),
        eta=eta,
    )
    torch.testing.assert_close(purifier(x, generator=generator), expected)


def test_purifier_randomness_is_the_callers(denoiser, schedule):
    purifier = DiffusionPurifier(denoiser, schedule)
    x = torch.rand(3, 5)
    torch.manual_seed(1)
    first, second = purifier(x), purifier(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(purifier(x), first)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(purifier(x, noise=5), purifier(x, noise=5))
    purifier(x, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="noise or generator, not both"):
        purifier(x, noise=5, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_purifier_keeps_its_schedule_in_float64(denoiser, schedule, dtype):
    purifier = DiffusionPurifier(denoiser, schedule, n_draws=1)
    purifier.to(torch.float16).to(dtype)
    assert purifier.alphas_cumprod.dtype == torch.float64
    assert torch.equal(purifier.alphas_cumprod, schedule.alphas_cumprod)
    assert purifier.timesteps.dtype == torch.int64
    assert denoiser.weights()[0].dtype == dtype
    assert purifier(torch.rand(2, 5, dtype=dtype)).dtype == dtype


def test_purifier_state_is_the_denoisers(denoiser, schedule):
    purifier = DiffusionPurifier(denoiser, schedule)
    assert set(purifier.state_dict()) == {f"denoiser.{name}" for name in denoiser.state_dict()}
    assert {name for name, _ in purifier.named_buffers()} == {"timesteps", "alphas_cumprod"}
    assert "timesteps=[41], n_draws=8, eta=0.0" in repr(purifier)


@pytest.mark.needs_cuda
def test_purifier_moves_to_the_gpu(denoiser, schedule):
    purifier = DiffusionPurifier(denoiser, schedule, n_draws=2)
    x, noise = torch.rand(4, 5), torch.randn(4, 2, 5)
    expected = purifier(x, noise=noise)
    purifier.to("cuda")
    assert purifier.alphas_cumprod.device.type == purifier.timesteps.device.type == "cuda"
    torch.testing.assert_close(purifier(x.cuda(), noise=noise.cuda()).cpu(), expected)
    from_cpu_generator = purifier(x.cuda(), generator=torch.Generator().manual_seed(0))
    assert from_cpu_generator.device.type == "cuda"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": ()}, r"timesteps must descend strictly within 0\.\.999, got \(\)"),
        ({"timesteps": (1000,)}, r"timesteps must descend strictly within 0\.\.999, got \(1000,\)"),
        ({"timesteps": (-1,)}, "timesteps must descend"),
        ({"timesteps": (20, 41)}, "timesteps must descend"),
        ({"timesteps": (41, 41)}, "timesteps must descend"),
        ({"n_draws": 0}, "n_draws must be at least 1, got 0"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"eta": float("nan")}, "eta must be in"),
    ],
)
def test_purifier_rejects_bad_settings(denoiser, schedule, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionPurifier(denoiser, schedule, **options)
