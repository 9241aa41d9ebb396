"""`feature_cnn` and `defended_logits` against torch's modules and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda import ops, reference
from nnmf_cuda.models.diffusion import NoiseSchedule
from tests.helpers import DEVICES

ALPHAS_CUMPROD = NoiseSchedule.linear().alphas_cumprod
# (rows, features, channels of both convolutions, hidden units, classes): blocks of 32 rows, tiles
# of 12 or 6 outputs, odd features, as wide as it gets.
SHAPES = [
    (33, 15, 16, 32, 64, 2),
    (1, 2, 1, 1, 1, 2),
    (32, 3, 2, 3, 5, 4),
    (70, 16, 13, 7, 25, 3),
    (5, 40, 12, 24, 512, 12),
]


def classifier_weights(
    shape: tuple[int, ...], *, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    _, features, first, second, hidden, classes = shape
    torch.manual_seed(5)
    layers = (
        nn.Conv1d(1, first, 3, padding=1),
        nn.Conv1d(first, second, 3, padding=1),
        nn.Linear(second * (features // 2), hidden),
        nn.Linear(hidden, classes),
    )
    return [t.detach().to(device, dtype) for layer in layers for t in (layer.weight, layer.bias)]


def modules(weights: list[Tensor]) -> nn.Module:
    """The same network of torch's modules."""
    first, second, hidden, last = weights[::2]
    network = nn.Sequential(
        nn.Unflatten(1, (1, -1)),
        nn.Conv1d(1, len(first), 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(len(first), len(second), 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(hidden.shape[1], len(hidden)),
        nn.ReLU(),
        nn.Linear(len(hidden), len(last)),
    ).to(first)
    for mine, given in zip(network.parameters(), weights, strict=True):
        mine.data = given
    return network


def denoiser_weights(
    features: int,
    hidden: tuple[int, ...] = (128, 128),
    *,
    embedding: int = 32,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> list[Tensor]:
    torch.manual_seed(6)
    weights, width = [], features + embedding
    for out in (*hidden, features):
        layer = nn.Linear(width, out)
        weights += [layer.weight.detach(), layer.bias.detach()]
        width = out
    return [w.to(device, dtype) for w in weights]


def features_of(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(*shape[:2], generator=generator, dtype=torch.float64).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feature_cnn_equals_modules(
    device: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = features_of(shape, dtype, device).requires_grad_()
    weights = [w.requires_grad_() for w in classifier_weights(shape, dtype=dtype, device=device)]
    grad = torch.randn(shape[0], shape[-1]).to(x)
    got = ops.feature_cnn(x, weights)
    got_grads = torch.autograd.grad(got, [x, *weights], grad)
    exact_x = x.detach().double().cpu().requires_grad_()
    network = modules([w.detach().double().cpu() for w in weights])
    want = network(exact_x)
    grads = torch.autograd.grad(want, [exact_x, *network.parameters()], grad.double().cpu())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert got.dtype == dtype
    for mine, true in zip((got, *got_grads), (want, *grads), strict=True):
        error = (mine.detach().double().cpu() - true).abs().max()
        assert error <= tolerance * true.abs().max().clamp_min(1e-3)


def chain(
    steps: int,
    eta: float,
    shape: tuple[int, ...],
    draws: int,
    *,
    dtype: torch.dtype,
    device: str,
    hidden: tuple[int, ...] = (128, 128),
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Arguments of `defended_logits`."""
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn(
        steps if eta > 0 else 1,
        shape[0],
        draws,
        shape[1],
        generator=generator,
        dtype=torch.float64,
    )
    return (
        features_of(shape, dtype, device),
        noise.to(device, dtype),
        torch.arange(steps, 0, -1, device=device) * 13 + 28,
        ALPHAS_CUMPROD.to(device),
        denoiser_weights(shape[1], hidden, dtype=dtype, device=device),
        classifier_weights(shape, dtype=dtype, device=device),
    )


def defended_modules(
    x: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    *,
    eta: float,
) -> Tensor:
    """Every draw through torch's modules, by autograd."""
    purified, _ = reference.purify(x, noise, timesteps, alphas_cumprod, denoiser, eta=eta)
    logits = modules(classifier)(purified.flatten(0, 1))
    return logits.reshape(*purified.shape[:2], -1).mean(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("steps", "eta", "draws"), [(1, 0.0, 8), (3, 0.0, 5), (2, 0.7, 1)])
def test_defended_logits_equal_modules(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], steps: int, eta: float, draws: int
) -> None:
    arguments = chain(steps, eta, shape, draws, dtype=dtype, device=device)
    x = arguments[0].requires_grad_()
    got = ops.defended_logits(*arguments, eta=eta)
    grad = torch.randn(got.shape).to(got)
    (got_grad,) = torch.autograd.grad(got, x, grad)
    exact = chain(steps, eta, shape, draws, dtype=torch.float64, device="cpu")
    exact = (x.detach().double().cpu().requires_grad_(), *exact[1:4])
    rounded = [[w.double().cpu() for w in weights] for weights in arguments[4:]]
    exact_noise = arguments[1].double().cpu()
    want = defended_modules(exact[0], exact_noise, *exact[2:], *rounded, eta=eta)
    (want_grad,) = torch.autograd.grad(want, exact[0], grad.double().cpu())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got.double().cpu(), want, rtol=tolerance, atol=tolerance)
    scale = want_grad.abs().max()
    # A unit within rounding of zero may have the other sign: its row alone is then far off.
    far = ((got_grad.double().cpu() - want_grad).abs() > 5 * tolerance * scale).any(1)
    assert far.double().mean() <= (0.05 if dtype == torch.float32 else 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (3, 0.0), (3, 0.7)])
def test_defended_logits_gradcheck(device: str, steps: int, eta: float) -> None:
    shape = (3, 5, 3, 2, 4, 2)
    x, noise, timesteps, alphas_cumprod, denoiser, classifier = chain(
        steps, eta, shape, 2, dtype=torch.float64, device=device, hidden=(6, 5)
    )
    inputs = [t.requires_grad_() for t in (x, noise, *denoiser, *classifier)]
    n = len(denoiser)

    def logits(x: Tensor, noise: Tensor, *weights: Tensor) -> Tensor:
        return ops.defended_logits(
            x, noise, timesteps, alphas_cumprod, weights[:n], weights[n:], eta=eta
        )

    assert torch.autograd.gradcheck(logits, inputs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (3, 0.7)])
def test_gradients_of_all_weights_over_many_rows(device: str, steps: int, eta: float) -> None:
    """Rows enough for several partial sums, against autograd in float64."""
    shape = (170, 7, 5, 6, 9, 3)
    x, noise, timesteps, alphas_cumprod, denoiser, classifier = chain(
        steps, eta, shape, 8, dtype=torch.float64, device=device, hidden=(33, 20)
    )
    weights = [w.requires_grad_() for w in (*denoiser, *classifier)]
    got = ops.defended_logits(x, noise, timesteps, alphas_cumprod, denoiser, classifier, eta=eta)
    grad = torch.randn(got.shape).to(got)
    found = torch.autograd.grad(got, weights, grad)
    with ops.reference_path():
        want = ops.defended_logits(
            x, noise, timesteps, alphas_cumprod, denoiser, classifier, eta=eta
        )
    for mine, true in zip(found, torch.autograd.grad(want, weights, grad), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_weights_over_more_rows_than_are_summed_at_once(device: str) -> None:
    shape = (33_000, 3, 2, 3, 4, 2)
    x = features_of(shape, torch.float32, device)
    weights = classifier_weights(shape, dtype=torch.float32, device=device)
    weights = [w.requires_grad_() for w in weights]
    grad = torch.randn(33_000, 2).to(x)
    found = torch.autograd.grad(ops.feature_cnn(x, weights), weights, grad)
    network = modules([w.detach().double().cpu() for w in weights])
    want = network(x.double().cpu())
    grads = torch.autograd.grad(want, list(network.parameters()), grad.double().cpu())
    for mine, true in zip(found, grads, strict=True):
        torch.testing.assert_close(mine.double().cpu(), true, rtol=1e-4, atol=1e-3)


def test_results_do_not_depend_on_threads() -> None:
    arguments = chain(2, 0.5, (300, 15, 16, 32, 64, 2), 8, dtype=torch.float32, device="cpu")
    tensors = [arguments[0], *arguments[4], *arguments[5]]
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            inputs = [t.requires_grad_() for t in tensors]
            logits = ops.defended_logits(*arguments, eta=0.5)
            results.append([logits, *torch.autograd.grad(logits.sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_feature_cnn_gradcheck(device: str) -> None:
    shape = (4, 7, 3, 4, 5, 3)
    x = features_of(shape, torch.float64, device).requires_grad_()
    weights = [w.requires_grad_() for w in classifier_weights(shape, device=device)]
    assert torch.autograd.gradcheck(lambda x, *w: ops.feature_cnn(x, w), [x, *weights])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_draws_the_noise_of_the_reference(device: str, dtype: torch.dtype) -> None:
    shape = (9, 15, 16, 32, 64, 2)
    x, _, *rest = chain(3, 0.5, shape, 7, dtype=dtype, device=device)
    noise = reference.philox_normal(11, (3, 9, 7, 15), dtype=dtype, device=device)
    x.requires_grad_()
    seeded = ops.defended_logits(x, 11, *rest, eta=0.5, n_draws=7)
    given = ops.defended_logits(x, noise, *rest, eta=0.5)
    torch.testing.assert_close(seeded, given, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(logits.sum(), x)[0] for logits in (seeded, given)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    part = ops.defended_logits(x[:4], 11, *rest, eta=0.5, n_draws=7)
    torch.testing.assert_close(part, seeded[:4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("steps", "eta", "draws"), [(1, 0.0, 8), (3, 0.7, 5)])
def test_signs_are_bits_of_the_units(device: str, steps: int, eta: float, draws: int) -> None:
    """In float64 no unit is near enough to zero for an order of summation to matter."""
    arguments = chain(steps, eta, SHAPES[0], draws, dtype=torch.float64, device=device)
    options = {"eta": eta, "keep_signs": True}
    _, signs = torch.ops.nnmf_cuda.defended_logits(*arguments, **options)
    _, want = reference.defended_logits(*(_on_cpu(a) for a in arguments), **options)
    n_blocks = -(-SHAPES[0][0] * draws // 32)
    assert signs.shape[1] == 256 * steps + 15 * 16 + 2 * 7 * 32 + 64
    assert device == "cuda" or len(signs) == n_blocks  # a GPU keeps more, behind them
    assert torch.equal(signs[:n_blocks].cpu(), want)


def _on_cpu(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.cpu() if isinstance(value, Tensor) else [v.cpu() for v in value]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: str, requires_grad: bool) -> None:
    shape = (4, 5, 3, 2, 4, 2)
    arguments = chain(2, 1.0, shape, 3, dtype=torch.float64, device=device, hidden=(6,))
    x, noise, timesteps, alphas_cumprod, denoiser, classifier = arguments
    for tensor in (x, noise, *denoiser, *classifier):
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(
        torch.ops.nnmf_cuda.defended_logits.default,
        arguments,
        {"eta": 1.0, "keep_signs": requires_grad},
    )
    torch.library.opcheck(
        torch.ops.nnmf_cuda.defended_logits.default,
        (x, None, timesteps, alphas_cumprod, denoiser, classifier),
        {"seed": 3, "n_draws": 2, "keep_signs": requires_grad},
    )
    torch.library.opcheck(
        torch.ops.nnmf_cuda.feature_cnn.default, (x, classifier), {"keep_signs": requires_grad}
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1])
def test_few_samples(device: str, n: int) -> None:
    arguments = chain(1, 0.0, (n, 6, 4, 4, 8, 3), 4, dtype=torch.float32, device=device)
    x = arguments[0].requires_grad_()
    logits = ops.defended_logits(*arguments)
    assert logits.shape == (n, 3)
    logits.sum().backward()
    assert x.grad.shape == (n, 6)
    assert ops.feature_cnn(x, arguments[5]).shape == (n, 3)


@pytest.mark.parametrize("device", DEVICES)
def test_layouts_do_not_matter(device: str) -> None:
    """Features, noise and weights that are not contiguous."""
    arguments = chain(2, 1.0, SHAPES[3], 3, dtype=torch.float32, device=device)
    want = ops.defended_logits(*arguments, eta=1.0)
    x, noise, timesteps, alphas_cumprod, *networks = arguments
    strange = [
        [torch.stack((w, w), -1)[..., 0] if w.dim() != 2 else w.T.contiguous().T for w in weights]
        for weights in networks
    ]
    noise = torch.stack((noise, noise), -1)[..., 0]
    got = ops.defended_logits(
        x.T.contiguous().T, noise, timesteps, alphas_cumprod, *strange, eta=1.0
    )
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_second_gradient_raises() -> None:
    shape = (4, 5, 3, 2, 4, 2)
    x = features_of(shape, torch.float64, "cpu").requires_grad_()
    logits = ops.feature_cnn(x, classifier_weights(shape))
    (grad,) = torch.autograd.grad(logits.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        grad.sum().backward()


def test_weights_changed_before_the_gradient_raise() -> None:
    shape = (4, 5, 3, 2, 4, 2)
    arguments = chain(1, 0.0, shape, 2, dtype=torch.float64, device="cpu")
    x = arguments[0].requires_grad_()
    for call in (lambda: ops.defended_logits(*arguments), lambda: ops.feature_cnn(x, arguments[5])):
        logits = call()
        arguments[5][2].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.sum().backward()


def test_weights_of_inference_mode_are_named() -> None:
    shape = (4, 5, 3, 2, 4, 2)
    x = features_of(shape, torch.float64, "cpu").requires_grad_()
    with torch.inference_mode():
        weights = classifier_weights(shape)
    with pytest.raises(RuntimeError, match=r"clone\(\) them outside of it, or call this in"):
        ops.feature_cnn(x, weights)
    with torch.no_grad():
        ops.feature_cnn(x, weights)


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_to_x_is_the_same_with_and_without_those_to_weights(device: str) -> None:
    arguments = chain(2, 0.5, SHAPES[0], 3, dtype=torch.float64, device=device)
    x = arguments[0].requires_grad_()
    (alone,) = torch.autograd.grad(ops.defended_logits(*arguments, eta=0.5).sum(), x)
    arguments[4][0].requires_grad_()
    (with_weights,) = torch.autograd.grad(ops.defended_logits(*arguments, eta=0.5).sum(), x)
    torch.testing.assert_close(alone, with_weights, rtol=1e-12, atol=1e-12)


def test_gradient_without_signs_raises() -> None:
    shape = (4, 5, 3, 2, 4, 2)
    x = features_of(shape, torch.float64, "cpu").requires_grad_()
    logits, _ = torch.ops.nnmf_cuda.feature_cnn(x, classifier_weights(shape))
    with pytest.raises(RuntimeError, match="keep_signs"):
        logits.sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classifier": [torch.ones(2)]}, ValueError, "classifier must be .* 8 tensors, got 1"),
        ({"denoiser": [torch.ones(2)]}, ValueError, "denoiser must be"),
        ({"noise": torch.ones(4, 2, 2).double()}, ValueError, "noise must have shape"),
        ({"x": torch.ones(4, 5)}, TypeError, "noise must be float32|must be float32"),
    ],
)
def test_bad_input(changes: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("x", "noise", "timesteps", "alphas_cumprod", "denoiser", "classifier")
    shape = (4, 5, 3, 2, 4, 2)
    arguments = dict(
        zip(names, chain(1, 0.0, shape, 2, dtype=torch.float64, device="cpu"), strict=True)
    )
    with pytest.raises(error, match=message):
        ops.defended_logits(**{**arguments, **changes})


@pytest.mark.parametrize("tensor", range(8))
def test_each_weight_is_checked(tensor: int) -> None:
    shape = (4, 5, 3, 2, 4, 2)
    weights = classifier_weights(shape)
    weights[tensor] = weights[tensor][..., :-1]
    with pytest.raises(ValueError, match=r"weights\[\d\] must have"):
        ops.feature_cnn(features_of(shape, torch.float64, "cpu"), weights)
