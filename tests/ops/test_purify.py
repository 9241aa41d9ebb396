from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.reference import sinusoidal_embedding
from tests.helpers import DEVICES

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def sample(
    n: int = 4,
    features: int = 3,
    *,
    steps: int = 1,
    draws: int = 2,
    eta: float = 0.0,
    hidden: tuple[int, ...] = (6, 5),
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    noised = steps if eta > 0 else 1
    timesteps = torch.arange(steps, 0, -1, device=device) * 40 + 1
    weights, width = [], features + 8
    for out in (*hidden, features):
        weights += [draw(out, width) / math.sqrt(width), draw(out)]
        width = out
    noise = draw(noised, n, draws, features)
    return draw(n, features), noise, timesteps, ALPHAS_CUMPROD.to(device), weights


def by_hand(x: Tensor, noise: Tensor, t: int, weights: list[Tensor]) -> Tensor:
    """One shot, one draw and one sample at a time, with torch.nn modules."""
    out = torch.empty(noise.shape[1:], dtype=x.dtype)
    layers: list[torch.nn.Module] = []
    for i in range(0, len(weights), 2):
        layer = torch.nn.Linear(*weights[i].T.shape, dtype=x.dtype)
        layer.weight.data, layer.bias.data = weights[i], weights[i + 1]
        layers += [layer, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    abar = ALPHAS_CUMPROD[t].item()
    embedding = torch.tensor(
        [fn(t * 10000 ** (-i / 4)) for fn in (math.sin, math.cos) for i in range(4)], dtype=x.dtype
    )
    for i in range(x.shape[0]):
        for k in range(noise.shape[2]):
            x_t = math.sqrt(abar) * x[i] + math.sqrt(1 - abar) * noise[0, i, k]
            out[i, k] = network(torch.cat((x_t, embedding)))
    return out.detach()


def test_purify_one_shot_equals_modules() -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample()
    got = ops.purify(x, noise[0], timesteps, alphas_cumprod, weights)
    torch.testing.assert_close(got, by_hand(x, noise, 41, weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_purify_float32_agrees_with_float64(device: str, eta: float) -> None:
    want = ops.purify(*sample(33, 15, steps=4, eta=eta, draws=8), eta=eta)
    got = ops.purify(
        *sample(33, 15, steps=4, eta=eta, draws=8, dtype=torch.float32, device=device), eta=eta
    )
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double().cpu(), want, rtol=1e-4, atol=1e-4)


def test_purify_ddim_chain_of_a_constant_denoiser() -> None:
    """A denoiser that always says b steers every chain to b, whatever the noise."""
    x, noise, timesteps, alphas_cumprod, weights = sample(steps=3, hidden=())
    weights[0] = torch.zeros_like(weights[0])
    got = ops.purify(x, noise, timesteps, alphas_cumprod, weights)
    assert torch.equal(got, weights[1].expand_as(got))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_purify_chain_takes_the_steps_of_the_literature(eta: float) -> None:
    """Two steps of a denoiser that returns x_t, against DDIM and the DDPM posterior by hand."""
    x, noise, _, alphas_cumprod, weights = sample(steps=2, eta=eta, hidden=())
    weights[0] = torch.cat((torch.eye(3), torch.zeros(3, 8)), 1).double()
    weights[1] = torch.zeros(3, dtype=torch.float64)
    timesteps = torch.tensor([42, 41])
    a, prev = alphas_cumprod[42], alphas_cumprod[41]
    x_t = a.sqrt() * x[:, None] + (1 - a).sqrt() * noise[0]
    if eta == 0:
        eps = (x_t - a.sqrt() * x_t) / (1 - a).sqrt()
        want = prev.sqrt() * x_t + (1 - prev).sqrt() * eps
    else:  # Ho et al. 2020, equations 6 and 7
        beta = 1 - a / prev
        mean = prev.sqrt() * beta / (1 - a) * x_t + (1 - beta).sqrt() * (1 - prev) / (1 - a) * x_t
        want = mean + ((1 - prev) / (1 - a) * beta).sqrt() * noise[1]
    got = ops.purify(x, noise, timesteps, alphas_cumprod, weights, eta=eta)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_purify_seed_is_independent_of_batching_and_device(device: str) -> None:
    x, _, timesteps, alphas_cumprod, weights = sample(n=6, dtype=torch.float32, device=device)
    whole = ops.purify(x, 7, timesteps, alphas_cumprod, weights, n_draws=3)
    fewer = ops.purify(x[:4], 7, timesteps, alphas_cumprod, weights, n_draws=2)
    torch.testing.assert_close(fewer, whole[:4, :2])
    other = ops.purify(x, 8, timesteps, alphas_cumprod, weights, n_draws=3)
    assert not torch.allclose(whole, other)
    on_cpu = [t.cpu() for t in (x, timesteps, alphas_cumprod)]
    same = ops.purify(on_cpu[0], 7, *on_cpu[1:], [w.cpu() for w in weights], n_draws=3)
    torch.testing.assert_close(whole.cpu(), same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1])
def test_purify_few_samples(device: str, n: int) -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample(n=n, device=device)
    assert ops.purify(x, noise, timesteps, alphas_cumprod, weights).shape == (n, 2, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (3, 0.0), (3, 0.7)])
def test_purify_gradcheck(device: str, steps: int, eta: float) -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample(n=2, steps=steps, eta=eta, device=device)
    inputs = [t.requires_grad_() for t in (x, noise, *weights)]

    def purified(x: Tensor, noise: Tensor, *weights: Tensor) -> Tensor:
        return ops.purify(x, noise, timesteps, alphas_cumprod, weights, eta=eta)

    assert torch.autograd.gradcheck(purified, inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_purify_leaves_frozen_weights_without_gradient(device: str) -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample(device=device)
    x.requires_grad_()
    ops.purify(x, noise, timesteps, alphas_cumprod, weights).sum().backward()
    alone = x.grad.clone()
    assert all(w.grad is None for w in weights)
    x.grad = None
    weights[0].requires_grad_()
    ops.purify(x, noise, timesteps, alphas_cumprod, weights).sum().backward()
    assert torch.equal(x.grad, alone)
    assert weights[0].grad is not None


@pytest.mark.parametrize("device", DEVICES)
def test_purify_gradcheck_with_a_seed(device: str) -> None:
    x, _, timesteps, alphas_cumprod, weights = sample(device=device)

    def purified(x: Tensor) -> Tensor:
        return ops.purify(x, 3, timesteps, alphas_cumprod, weights, n_draws=4)

    assert torch.autograd.gradcheck(purified, x.requires_grad_())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_purify_opcheck(device: str, requires_grad: bool) -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample(steps=2, eta=1.0, device=device)
    weights = [w.requires_grad_(requires_grad) for w in weights]
    x = x.requires_grad_(requires_grad)
    op = torch.ops.nnmf_cuda.purify.default
    for seeded, options in ((False, {"eta": 1.0}), (True, {"seed": 3, "n_draws": 2})):
        arguments = (x, None if seeded else noise, timesteps, alphas_cumprod, weights)
        torch.library.opcheck(op, arguments, {**options, "keep_signs": requires_grad})


def test_purify_compiles_without_graph_breaks() -> None:
    x, noise, timesteps, alphas_cumprod, weights = sample()
    compiled = torch.compile(ops.purify, fullgraph=True, backend="aot_eager")
    want = ops.purify(x, noise, timesteps, alphas_cumprod, weights)
    torch.testing.assert_close(compiled(x, noise, timesteps, alphas_cumprod, weights), want)


def test_sinusoidal_embedding_pads_odd_width() -> None:
    embedding = sinusoidal_embedding(torch.tensor([0, 5]), 5)
    assert embedding.shape == (2, 5)
    assert torch.equal(embedding[0], torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(4, 3).half()}, TypeError, "x must be float32 or float64"),
        ({"x": torch.ones(3).double()}, ValueError, "x must have 2 dimensions"),
        ({"noise": "fresh"}, TypeError, "noise must be a torch.Tensor or an int seed, got str"),
        ({"noise": -1, "n_draws": 2}, ValueError, r"noise as a seed must be in \[0, 2\*\*63\)"),
        ({"noise": 1}, ValueError, "n_draws must be given"),
        ({"noise": torch.ones(4, 2, 2).double()}, ValueError, "noise must have shape"),
        ({"n_draws": 5}, ValueError, r"noise must have shape .* = \(1, 4, 5, 3\)"),
        ({"timesteps": torch.tensor([41.0])}, TypeError, "timesteps must be int64"),
        ({"timesteps": torch.tensor([1000])}, ValueError, r"descend strictly within \[0, 999\]"),
        ({"timesteps": torch.tensor([3, 3])}, ValueError, "timesteps must descend strictly"),
        ({"timesteps": torch.tensor([], dtype=torch.int64)}, ValueError, "at least one entry"),
        ({"alphas_cumprod": ALPHAS_CUMPROD.float()}, TypeError, "alphas_cumprod must be float64"),
        (
            {"alphas_cumprod": ALPHAS_CUMPROD.clone().requires_grad_()},
            ValueError,
            "alphas_cumprod must not require gradients",
        ),
        ({"eta": 1.5}, ValueError, r"eta must be in \[0, 1\], got 1.5"),
        ({"weights": [torch.ones(3, 11).double()]}, ValueError, r"\[W1, b1, W2, b2, ...\], got 1"),
        (
            {"weights": [torch.ones(3, 2).double(), torch.ones(3).double()]},
            ValueError,
            r"weights\[0\] takes 2 inputs, fewer than x's 3 features",
        ),
        (
            {"weights": [torch.ones(4, 11).double(), torch.ones(4).double()]},
            ValueError,
            r"weights\[0\] must have shape \(outputs, inputs\) = \(3, 11\)",
        ),
    ],
)
def test_purify_errors(changes: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("x", "noise", "timesteps", "alphas_cumprod", "weights")
    arguments = dict(zip(names, sample(), strict=True)) | changes
    with pytest.raises(error, match=message):
        ops.purify(**arguments)
