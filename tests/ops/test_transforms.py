"""torch.func's transforms of every differentiable op give what autograd and loops give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, vjp, vmap

from nnmf_cuda import ops
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser

Function = Callable[..., Tensor]
NAMES = ["nnls", "project", "purify", "feature_cnn", "defended_logits"]


def case(name: str) -> tuple[Function, Tensor, Tensor | None]:
    """Return an op as a function of rows (n, 6), the rows, and its other argument, if any."""
    torch.manual_seed(0)
    X = torch.randn(4, 6, dtype=torch.float64) + 0.3
    H = torch.rand(5, 6, dtype=torch.float64) + 0.1
    if name == "nnls":
        return lambda x, gram: ops.nnls(gram, x), X[:, :5] @ (H @ H.T), H @ H.T
    if name == "project":
        return ops.project, X, H
    classifier = FeatureCNN(6, 3).double()
    purifier = DiffusionPurifier(FeatureDenoiser(6).double(), NoiseSchedule.linear(), n_draws=2)
    if name == "purify":
        return lambda x: purifier(x, noise=0), X, None
    if name == "feature_cnn":
        return classifier, X, None
    defended = DefendedClassifier(purifier, classifier)
    return lambda x: defended(x, noise=0), X, None


def rows_alone(name: str) -> tuple[Function, Tensor]:
    function, x, other = case(name)
    return (function if other is None else lambda x: function(x, other)), x


def plain_gradient(function: Function, x: Tensor, weights: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((function(leaf) * weights).sum(), leaf)[0]


def close(got: Tensor, want: Tensor) -> None:
    assert want.any()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_grad_vjp_and_jacrev(name: str) -> None:
    function, x = rows_alone(name)
    out = function(x)
    weights = torch.randn_like(out)
    want = plain_gradient(function, x, weights)
    close(grad(lambda x: (function(x) * weights).sum())(x), want)
    result, pullback = vjp(function, x)
    close(result, out)
    close(pullback(weights)[0], want)
    jacobian = jacrev(function)(x)
    assert jacobian.shape == (*out.shape, *x.shape)
    close((weights.reshape(-1) @ jacobian.reshape(out.numel(), -1)).reshape(x.shape), want)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_of_rows_and_of_their_gradients(name: str) -> None:
    function, x = rows_alone(name)
    many = torch.stack([x, x.flip(0), x + 0.1])
    want = torch.stack([function(own) for own in many])
    close(vmap(function)(many), want)
    close(vmap(function, in_dims=2)(many.movedim(0, 2)), want)
    close(vmap(vmap(function))(many[:, None]), want[:, None])
    weights = torch.randn_like(want)
    pairs = zip(many, weights, strict=True)
    gradients = torch.stack([plain_gradient(function, *both) for both in pairs])
    close(vmap(grad(lambda x, w: (function(x) * w).sum()))(many, weights), gradients)
    close(grad(lambda x: (vmap(function)(x) * weights).sum())(many), gradients)


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_gradients_to_both_arguments(name: str) -> None:
    function, x, other = case(name)
    assert other is not None
    weights = torch.randn_like(function(x, other))

    def loss(x: Tensor, other: Tensor) -> Tensor:
        return (function(x, other) * weights).sum()

    got = grad(loss, argnums=(0, 1))(x, other)
    leaves = x.clone().requires_grad_(), other.clone().requires_grad_()
    for value, want in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        close(value, want)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", ["nnls", "project"])
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_vmap_over_either_argument(
    name: str, dims: tuple[int | None, int | None], batch: int | None
) -> None:
    function, x, other = case(name)
    assert other is not None
    if batch is not None:
        x, other = torch.stack([x, x + 0.2]), torch.stack([other, 2 * other])
    xs, others = torch.stack([x, x.flip(-2), x - 0.1]), torch.stack([other, other / 2, 3 * other])
    want = torch.stack(
        [
            function(x if dims[0] is None else xs[i], other if dims[1] is None else others[i])
            for i in range(3)
        ]
    )
    arguments = (
        x if dims[0] is None else xs.movedim(0, dims[0]),
        other if dims[1] is None else others.movedim(0, dims[1]),
    )
    close(vmap(function, in_dims=dims)(*arguments), want)

    def loss(x: Tensor, other: Tensor) -> Tensor:
        return function(x, other).square().sum()

    got = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(*arguments)
    for i in range(3):
        own = (x if dims[0] is None else xs[i], other if dims[1] is None else others[i])
        leaves = [tensor.clone().requires_grad_() for tensor in own]
        for value, plain in zip(got, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            close(value[i], plain)


def test_vmap_of_shared_rows_over_problems() -> None:
    _, X, H = case("project")
    assert H is not None
    many = torch.stack([torch.stack([H, H + 0.1]), torch.stack([H + 0.2, 2 * H])])
    want = torch.stack([ops.project(X, own) for own in many])
    close(vmap(lambda H: ops.project(X, H))(many), want)
    own = torch.stack([X, X + 0.1])
    want = torch.stack([ops.project(*both) for both in zip(own, many, strict=True)])
    close(vmap(ops.project)(own, many), want)


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_vmap_of_options_and_info(name: str) -> None:
    function, x, other = case(name)
    xs = torch.stack([x, x + 0.3])
    starts = torch.rand(2, 4, 5) < 0.5

    def call(x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arguments = (other, x) if name == "nnls" else (x, other)
        h, info = getattr(ops, name)(*arguments, passive=start, return_info=True)
        return h, *info

    for in_dims in ((0, 0), (None, 0)):
        got = vmap(call, in_dims=in_dims)(xs if in_dims[0] == 0 else x, starts)
        for i in range(2):
            want = call(xs[i] if in_dims[0] == 0 else x, starts[i])
            for value, own in zip(got, want, strict=True):
                torch.testing.assert_close(value[i], own, rtol=1e-9, atol=1e-12)


def test_vmap_of_single_rows_and_of_none() -> None:
    _, X, H = case("project")
    close(vmap(lambda x: ops.project(x, H))(X), ops.project(X, H))
    empty = vmap(lambda x: ops.project(x, H))(X.new_zeros(3, 0, 6))
    assert empty.shape == (3, 0, 5)


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_second_derivatives(name: str) -> None:
    function, x, other = case(name)

    def loss(x: Tensor, other: Tensor) -> Tensor:
        return function(x, other).square().sum()

    got = jacrev(grad(loss, argnums=(0, 1)), argnums=(0, 1))(x, other)
    want = torch.autograd.functional.hessian(loss, (x, other))
    for row, plain in zip(got, want, strict=True):
        for value, own in zip(row, plain, strict=True):
            close(value, own)


def test_gradients_to_the_weights_of_a_network() -> None:
    torch.manual_seed(0)
    network, x = FeatureCNN(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    weights = {name: value.detach() for name, value in network.named_parameters()}
    got = grad(lambda weights: functional_call(network, weights, (x,)).square().sum())(weights)
    network(x).square().sum().backward()
    for name, parameter in network.named_parameters():
        close(got[name], parameter.grad)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_raises(name: str) -> None:
    function, x = rows_alone(name)
    with pytest.raises(RuntimeError, match=f"{name} has no forward-mode gradient"):
        jacfwd(function)(x)
    with pytest.raises(RuntimeError, match=f"{name} has no forward-mode gradient"):
        torch.func.hessian(lambda x: function(x).sum())(x)


@pytest.mark.parametrize("name", ["purify", "feature_cnn", "defended_logits"])
def test_a_second_gradient_that_there_is_not_raises(name: str) -> None:
    function, x = rows_alone(name)
    with pytest.raises(RuntimeError, match="there is no second one"):
        grad(lambda x: grad(lambda x: function(x).square().sum())(x).square().sum())(x)


def test_what_has_no_gradient_says_so_and_has_a_vmap() -> None:
    X, W, H = torch.rand(3, 7, 5), torch.rand(3, 7, 2), torch.rand(3, 2, 5)

    def divergence(X: Tensor, W: Tensor, H: Tensor) -> Tensor:
        return ops.nnmf_mu(X, W, H, n_iter=3, compute_divergence=True)[2]

    with pytest.raises(RuntimeError, match="nnmf_mu is not differentiable"):
        grad(divergence, argnums=1)(X[0], W[0], H[0])
    want = torch.stack([divergence(*own) for own in zip(X, W, H, strict=True)])
    close(vmap(divergence)(X, W, H), want)
