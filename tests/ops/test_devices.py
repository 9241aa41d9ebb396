"""Every op on every device: against float64, in any layout, as a batch, and run again.

The oracle is the reference in float64 on the CPU. A result in float32 may be off by twice what
plain torch is off by in float32 on the CPU, and a few units in the last place of the largest entry.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from nnmf_cuda.models.diffusion import NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from tests.helpers import (
    AWKWARD_SHAPES,
    BETA_LOSSES,
    DEVICES,
    LAYOUTS,
    assert_as_accurate_as_torch,
    laid_out,
    least_squares,
    poison_free_memory,
    random_problem,
    wide,
)

DTYPES = [torch.float32, torch.float64, torch.uint8]
# n, f, k: more components than CUDA kernels keep in registers, or threads of a block
MANY_COMPONENTS = [(9, 33, 257), (5, 70, 600), (3, 1050, 1030)]
SLACK = {torch.float32: 5e-6, torch.float64: 5e-14}
N_ITER = 3

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _poisoned_memory(device: str) -> None:
    poison_free_memory(device)


def with_batch(*factors: Tensor) -> list[Tensor]:
    return [t if t.ndim == 3 else t[None] for t in factors]


def assert_mu_is_right(
    X: Tensor, W: Tensor, H: Tensor, got: tuple[Tensor, Tensor, Tensor], **options: float
) -> None:
    """Compare W, H and the divergence with float64, on the CPU."""
    factors = with_batch(W, H)
    plain = reference.nnmf_mu(X, *factors, n_iter=N_ITER, **options)
    exact = [t.double() for t in factors]
    truth = reference.nnmf_mu(wide(X), *exact, n_iter=N_ITER, **options)
    for name, found, torchs, true in zip("WH", got[:2], plain[:2], truth[:2], strict=True):
        assert found.dtype == W.dtype, name
        found = found.cpu().reshape(true.shape)
        assert_as_accurate_as_torch(found, torchs, true, slack=SLACK[W.dtype])
    ends = [t.cpu().double().reshape(s.shape) for t, s in zip(got[:2], truth[:2], strict=True)]
    value = reference.nnmf_divergence(wide(X), *ends, beta_loss=options["beta_loss"])
    assert got[2].dtype == torch.float64
    assert_divergence(got[2].cpu().reshape(-1), value, W.dtype, X, *ends)


def assert_divergence(
    got: Tensor, want: Tensor, dtype: torch.dtype, X: Tensor, W: Tensor, H: Tensor
) -> None:
    # Kernels form W H in the factors' dtype; near an exact fit that rounding is what is left.
    rtol = 2e-5 if dtype == torch.float32 else 1e-9
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=rtol, atol=unit * W.shape[-2] * H.shape[-1])


def on(device: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device) for t in tensors]


# nnmf_mu and nnmf_divergence --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "f", "k"), AWKWARD_SHAPES + MANY_COMPONENTS)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_mu_of_awkward_shapes(
    device: str, dtype: torch.dtype, n: int, f: int, k: int, beta_loss: float
) -> None:
    X, W, H = random_problem(n, f, k, dtype=dtype, seed=n + f + k)
    options = {"beta_loss": beta_loss}
    got = ops.nnmf_mu(*on(device, X, W, H), n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)
    alone = ops.nnmf_divergence(*on(device, X), *got[:2], beta_loss=beta_loss)
    torch.testing.assert_close(alone, got[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize("k", [5, 33])
def test_mu_of_any_divergence_with_penalties(
    device: str, dtype: torch.dtype, beta_loss: float, k: int
) -> None:
    X, W, H = random_problem(37, 131, k, dtype=dtype, seed=k)
    X = X.clamp_min(1 if dtype == torch.uint8 else 1e-3)  # below 0 zeros have no divergence
    penalties = {"l1_reg_W": 0.3, "l1_reg_H": 0.1, "l2_reg_W": 0.2, "l2_reg_H": 0.7}
    options = {"beta_loss": beta_loss, **penalties}
    got = ops.nnmf_mu(*on(device, X, W, H), n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "f", "k"), [(1031, 257, 15), (263, 2053, 15), (523, 1031, 40)])
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_mu_of_several_blocks_along_each_axis(
    device: str, dtype: torch.dtype, n: int, f: int, k: int, beta_loss: float
) -> None:
    X, W, H = random_problem(n, f, k, dtype=dtype, seed=3)
    X = X.clamp_min(1 if dtype == torch.uint8 else 1e-3)
    options = {"beta_loss": beta_loss}
    got = ops.nnmf_mu(*on(device, X, W, H), n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("own_X", [False, True])
def test_mu_of_any_layout(
    device: str, dtype: torch.dtype, layout: str, beta_loss: float, own_X: bool
) -> None:
    X, W, H = random_problem(45, 131, 7, dtype=dtype, batch=2, own_X=own_X, seed=11)
    placed = [laid_out(t, layout) for t in on(device, X, W, H)]
    options = {"beta_loss": beta_loss}
    got = ops.nnmf_mu(*placed, n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)
    alone = ops.nnmf_divergence(*placed, **options)
    want = reference.nnmf_divergence(wide(X), W.double(), H.double(), **options)
    assert_divergence(alone.cpu(), want, W.dtype, X, W, H)


@pytest.mark.parametrize("own_X", [False, True])
@pytest.mark.parametrize(("n", "f", "k"), [(16, 16, 3), (64, 64, 8), (33, 70, 17)])
def test_mu_of_many_problems_equals_each_alone(
    device: str, own_X: bool, n: int, f: int, k: int
) -> None:
    batch = 300
    X, W, H = random_problem(n, f, k, batch=batch, own_X=own_X, seed=5)
    got = ops.nnmf_mu(*on(device, X, W, H), n_iter=N_ITER, compute_divergence=True)
    assert_mu_is_right(X, W, H, got, beta_loss=1.0)
    for b in (0, 1, batch // 2, batch - 1):
        x = X[b] if own_X else X
        one = ops.nnmf_mu(*on(device, x, W[b], H[b]), n_iter=N_ITER, compute_divergence=True)
        for together, alone in zip(got, one, strict=True):
            torch.testing.assert_close(together[b], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trial", range(12))
def test_mu_of_fresh_problems(device: str, trial: int) -> None:
    """Other numbers and shapes each time; NNMF_CUDA_TEST_SEED repeats those of a failure."""
    first = int(os.environ.get("NNMF_CUDA_TEST_SEED", time.time_ns() % 10**9))
    print(f"NNMF_CUDA_TEST_SEED={first}")
    rng = random.Random(first + trial)
    n, f, k = rng.randint(1, 300), rng.randint(1, 500), rng.randint(1, 128)
    dtype, layout = rng.choice(DTYPES), rng.choice(LAYOUTS)
    batch, own_X = rng.choice([None, 1, 2, 5]), rng.choice([False, True])
    options = {"beta_loss": rng.choice(BETA_LOSSES)}
    print(n, f, k, batch, own_X, dtype, layout, options)
    X, W, H = random_problem(
        n, f, k, dtype=dtype, batch=batch, own_X=own_X and batch is not None, seed=first + trial
    )
    X = X.clamp_min(1 if dtype == torch.uint8 else 1e-3)
    placed = [laid_out(t, layout) for t in on(device, X, W, H)]
    got = ops.nnmf_mu(*placed, n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)


def test_mu_keeps_H_and_its_arguments(device: str) -> None:
    X, W, H = on(device, *random_problem(45, 131, 7, batch=3))
    kept = [t.clone() for t in (X, W, H)]
    new_W, new_H, divergence = ops.nnmf_mu(X, W, H, n_iter=2, update_H=False)
    assert torch.equal(new_H, H)
    assert not torch.equal(new_W, W)
    assert divergence.isnan().all()
    assert all(torch.equal(a, b) for a, b in zip((X, W, H), kept, strict=True))


def test_mu_of_no_iterations_returns_copies(device: str) -> None:
    X, W, H = on(device, *random_problem(13, 31, 4, batch=2))
    new_W, new_H, _ = ops.nnmf_mu(X, W, H, n_iter=0)
    assert torch.equal(new_W, W)
    assert torch.equal(new_H, H)
    assert new_W.data_ptr() != W.data_ptr()


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_mu_with_dead_components_rows_and_columns(device: str, beta_loss: float) -> None:
    X, W, H = random_problem(37, 71, 6, dtype=torch.float64)
    W[:, 2] = 0  # a component that is nothing
    X[5] = 0  # a black image, and a pixel that is black in every one
    X[:, 7] = 0
    options = {"beta_loss": beta_loss}
    got = ops.nnmf_mu(*on(device, X, W, H), n_iter=N_ITER, compute_divergence=True, **options)
    assert_mu_is_right(X, W, H, got, **options)
    assert (got[0][:, 2] == 0).all()
    assert (got[0][5] == 0).all()
    assert (got[1][:, 7] == 0).all()


@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_is_as_the_objective_says(
    device: str, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = random_problem(129, 517, 15, dtype=dtype, batch=3, seed=9)
    X = X.clamp_min(1e-3)
    want = reference.nnmf_divergence(X.double(), W.double(), H.double(), beta_loss=beta_loss)
    got = ops.nnmf_divergence(*on(device, X, W, H), beta_loss=beta_loss)
    rtol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.cpu(), want, rtol=rtol, atol=0)


# nnls and project -------------------------------------------------------------------------------


def optimality(gram: Tensor, cross: Tensor, h: Tensor) -> Tensor:
    """Return for every row how far it is from the conditions of Karush, Kuhn and Tucker."""
    gram, cross, h = (t.double().cpu() for t in (gram, cross, h))
    return torch.minimum(h, h @ gram - cross).abs().amax(-1) / cross.abs().amax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128, 257, 300])
def test_nnls_meets_the_conditions_of_its_optimum(device: str, dtype: torch.dtype, k: int) -> None:
    gram, cross = least_squares(67 if k < 64 else 9, k, dtype=dtype, seed=k)
    h = ops.nnls(*on(device, gram, cross))
    assert h.dtype == dtype
    assert (h >= 0).all()
    if k > 2:
        assert (h == 0).any()
        assert (h > 0).any()
    # A solution in float32 has that rounding, and the Gram matrix multiplies it.
    assert optimality(gram, cross, h).max() < (1e-5 if dtype == torch.float32 else 1e-9)
    exact = ops.nnls(gram, cross.double())
    scale = float(exact.max())
    atol = (1e-5 if dtype == torch.float32 else 1e-9) * scale
    torch.testing.assert_close(h.cpu().double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(("batch", "n", "k"), [(300, 3, 5), (3, 257, 15), (1, 5000, 15)])
def test_nnls_of_many_problems_equals_each_alone(device: str, batch: int, n: int, k: int) -> None:
    gram, cross = on(device, *least_squares(n, k, batch=batch, seed=2))
    h = ops.nnls(gram, cross)
    assert optimality(gram, cross, h).max() < 1e-9
    for b in {0, batch // 2, batch - 1}:
        alone = ops.nnls(gram[b], cross[b])
        torch.testing.assert_close(h[b], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nnls_of_any_layout(device: str, layout: str) -> None:
    gram, cross = on(device, *least_squares(45, 13, batch=2, seed=4))
    want = ops.nnls(gram, cross)
    got = ops.nnls(laid_out(gram, layout), laid_out(cross, layout))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("k", [1, 15, 33, 64])
def test_gradient_of_nnls_is_that_of_the_free_equations(device: str, k: int) -> None:
    gram, cross = on(device, *least_squares(21, k, batch=2, seed=6))
    gram.requires_grad_()
    cross.requires_grad_()
    weights = torch.rand(cross.shape, generator=torch.Generator().manual_seed(1)).to(cross)
    h = ops.nnls(gram, cross)
    (h * weights).sum().backward()
    for b in range(2):
        wanted_gram = torch.zeros(k, k, dtype=torch.float64)
        for row in range(21):
            free = (h[b, row] > 0).cpu()
            u = torch.zeros(k, dtype=torch.float64)
            block = gram[b].detach().cpu()[free][:, free]
            u[free] = torch.linalg.solve(block, weights[b, row].cpu()[free])
            torch.testing.assert_close(cross.grad[b, row].cpu(), u, rtol=1e-7, atol=1e-9)
            outer = u[:, None] * h[b, row].detach().cpu()
            wanted_gram -= (outer + outer.mT) / 2
        torch.testing.assert_close(gram.grad[b].cpu(), wanted_gram, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "f", "k"), [s for s in AWKWARD_SHAPES + MANY_COMPONENTS if s[1] >= s[2]]
)
def test_project_of_awkward_shapes(device: str, dtype: torch.dtype, n: int, f: int, k: int) -> None:
    X, _, H = random_problem(n, f, k, dtype=dtype, seed=n)
    H = (H - 0.5).clamp_min(0) + 0.01  # parts, as components are: a better condition
    h = ops.project(*on(device, X, H))
    assert h.dtype == H.dtype
    assert (h >= 0).all()
    gram = H.double() @ H.double().mT
    cross = wide(X) @ H.double().mT
    assert optimality(gram, cross, h).max() < (2e-5 if H.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own_X", [False, True])
def test_project_of_any_layout(device: str, dtype: torch.dtype, layout: str, own_X: bool) -> None:
    X, _, H = random_problem(45, 131, 7, dtype=dtype, batch=2, own_X=own_X, seed=8)
    got = ops.project(*(laid_out(t, layout) for t in on(device, X, H)))
    cross = wide(X) @ H.double().mT
    error = optimality(H.double() @ H.double().mT, cross, got).max()
    assert error < (2e-5 if H.dtype == torch.float32 else 1e-9)


def test_gradient_of_project_is_the_cpus(device: str) -> None:
    X, _, H = random_problem(31, 131, 7, dtype=torch.float64, seed=10)
    gradients = []
    for where in ("cpu", device):
        x, components = (t.to(where).requires_grad_() for t in (X, H))
        ops.project(x, components).square().sum().backward()
        gradients.append([x.grad.cpu(), components.grad.cpu()])
    for on_cpu, on_device in zip(*gradients, strict=True):
        torch.testing.assert_close(on_device, on_cpu, rtol=1e-8, atol=1e-10)


# The other ops ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f", "k"), AWKWARD_SHAPES[2:8] + MANY_COMPONENTS)
def test_hals_of_awkward_shapes(device: str, n: int, f: int, k: int) -> None:
    X, W, H = random_problem(n, f, k, dtype=torch.float64, seed=n)
    got = ops.nnmf_hals(*on(device, X, W, H), n_iter=2)
    want = reference.nnmf_hals(X, W[None], H[None], n_iter=2)
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own_X", [False, True])
def test_hals_of_any_layout(device: str, dtype: torch.dtype, layout: str, own_X: bool) -> None:
    X, W, H = random_problem(45, 131, 7, dtype=dtype, batch=2, own_X=own_X, seed=12)
    got = ops.nnmf_hals(*(laid_out(t, layout) for t in on(device, X, W, H)), n_iter=2)
    want = reference.nnmf_hals(wide(X), W.double(), H.double(), n_iter=2)
    # A small curvature multiplies what X H^T is off by.
    share = 1e-4 if W.dtype == torch.float32 else 1e-10
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        atol = share * float(theirs.max())
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=atol)


# Again ------------------------------------------------------------------------------------------


def runs(device: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Return a call of every op on a problem of several blocks."""
    X, W, H = on(device, *random_problem(517, 2053, 15, seed=1))
    pixels, *_ = on(device, *random_problem(517, 2053, 15, dtype=torch.uint8, seed=1))
    gram, cross = on(device, *least_squares(1000, 15, dtype=torch.float32, seed=1))
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for beta_loss in (1.0, 2.0, 0.5):
        for name, data in (("float32", X), ("uint8", pixels)):
            calls[f"nnmf_mu {beta_loss} {name}"] = functools.partial(
                ops.nnmf_mu,
                *(data, W, H),
                beta_loss=beta_loss,
                n_iter=5,
                compute_divergence=True,
            )
            calls[f"nnmf_divergence {beta_loss} {name}"] = lambda d=data, b=beta_loss: (
                ops.nnmf_divergence(d, W, H, beta_loss=b),
            )
    for name, data in (("float32", X), ("uint8", pixels)):
        calls[f"nnmf_hals {name}"] = functools.partial(
            ops.nnmf_hals, *(data, W, H), n_iter=5, compute_divergence=True
        )
    sparse = (pixels * (pixels > 200)).float().to_sparse_csr()
    calls["nnmf_cd"] = functools.partial(
        ops.nnmf_cd, *(sparse, W, H), n_iter=5, compute_divergence=True
    )
    calls["nnls"] = lambda: (ops.nnls(gram, cross),)
    calls["project"] = lambda: (ops.project(pixels, H),)
    calls["defended_logits"] = defence_gradients(device)
    x, margin = torch.rand(67, 15).double().to(device), torch.ones(67, 2).double().to(device)
    weights = [weight.detach().to(device) for weight in FeatureCNN(15, 2).weights()]
    calls["crown_bounds"] = lambda: ops.crown_bounds(x - 0.1, x + 0.1, weights, margin)
    return calls


def defence_gradients(device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of `defended_logits` that also goes back to features and weights."""
    torch.manual_seed(2)
    networks = FeatureDenoiser(15), FeatureCNN(15, 2)
    x = torch.rand(517, 15).to(device).requires_grad_()
    denoiser, classifier = (
        [w.detach().to(device).requires_grad_() for w in network.weights()] for network in networks
    )
    timesteps = torch.tensor([41, 20], device=device)
    alphas_cumprod = NoiseSchedule.linear().alphas_cumprod.to(device)

    def call() -> tuple[Tensor, ...]:
        logits = ops.defended_logits(
            x, 5, timesteps, alphas_cumprod, denoiser, classifier, eta=0.5, n_draws=8
        )
        gradients = torch.autograd.grad(logits.square().sum(), [x, *denoiser, *classifier])
        return logits.detach(), *gradients

    return call


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_every_op_gives_the_same_bits_again(device: str) -> None:
    for name, call in runs(device).items():
        first = [t.clone() for t in call()]
        for _ in range(3):
            again = call()
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), name


# Errors -----------------------------------------------------------------------------------------


def test_wrong_types_are_named(device: str) -> None:
    X, W, H = on(device, *random_problem(5, 7, 2))
    with pytest.raises(TypeError, match="X must be float32 or uint8, got torch.float64"):
        ops.nnmf_mu(X.double(), W, H, n_iter=1)
    with pytest.raises(TypeError, match="W must be float32 or float64, got torch.float16"):
        ops.nnmf_mu(X, W.half(), H, n_iter=1)
    with pytest.raises(TypeError, match="cross must be float32 or float64"):
        ops.nnls(torch.eye(2, device=device), torch.ones(1, 2, device=device, dtype=torch.int64))
    with pytest.raises(TypeError, match="X must be float32 or uint8"):
        ops.project(X.to(torch.int16), H)


def test_backward_of_factorisations_raises(device: str) -> None:
    X, W, H = on(device, *random_problem(5, 7, 2))
    for name, call in {
        "nnmf_mu": lambda: ops.nnmf_mu(X, W.requires_grad_(), H, n_iter=1)[0],
        "nnmf_divergence": lambda: ops.nnmf_divergence(X, W.requires_grad_(), H),
    }.items():
        with pytest.raises(RuntimeError, match=f"{name} is not differentiable"):
            call().sum().backward()
