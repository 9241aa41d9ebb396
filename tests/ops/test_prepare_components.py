"""Components made ready for many calls: the same bits as without, whatever becomes of H."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops
from tests.helpers import DEVICES

DTYPES = [torch.float32, torch.float64, torch.uint8]


def problem(
    n: int, f: int, k: int, dtype: torch.dtype, *, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 7 * f + 13 * k)
    floating = torch.float32 if dtype == torch.uint8 else dtype
    H = torch.rand((k, f) if batch is None else (batch, k, f), generator=generator, dtype=floating)
    X = torch.rand((n, f), generator=generator, dtype=floating)
    return (255 * X).to(dtype) if dtype == torch.uint8 else X, H**3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "f", "k", "batch"),
    [
        *[(1, 1, 1, None), (3, 33, 8, 2), (5, 130, 15, None), (2, 70, 33, 3), (2, 300, 129, None)],
        *[(2, 12, 20, None), (2, 300, 257, None), (0, 7, 3, 2), (2, 5, 3, 0), (2, 5, 0, 2)],
    ],
)
def test_the_same_bits_as_without(
    device: str, dtype: torch.dtype, n: int, f: int, k: int, batch: int | None
) -> None:
    X, H = (t.to(device) for t in problem(n, f, k, dtype, batch=batch))
    want, info = ops.project(X, H, return_info=True)
    ready = ops.prepare_components(H)
    for _ in range(2):
        got, same = ops.project(X, ready, return_info=True)
        assert torch.equal(got, want)
        assert all(torch.equal(a, b) for a, b in zip(same, info, strict=True))
    start = torch.rand(info.passive.shape, device=device) < 0.5
    warm, cold = (ops.project(X, H, passive=start) for H in (ready, H))
    assert torch.equal(warm, cold)


def test_what_becomes_of_the_components_changes_nothing() -> None:
    X, H = problem(5, 130, 15, torch.float32)
    ready, want = ops.prepare_components(H), ops.project(X, H)
    H.mul_(2)
    H.numpy()[3] = 0
    assert torch.equal(ops.project(X, ready), want)
    assert not torch.equal(ops.project(X, H), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_as_good(copied) -> None:
    X, H = problem(5, 33, 7, torch.float64)
    ready = ops.prepare_components(H)
    assert torch.equal(ops.project(X, copied(ready)), ops.project(X, ready))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_the_reference_looks_at_the_components_alone() -> None:
    X, H = problem(5, 33, 7, torch.float64)
    with ops.reference_path():
        ready, want = ops.prepare_components(H), ops.project(X, H)
        assert torch.equal(ops.project(X, ready), want)
    torch.testing.assert_close(ops.project(X, ready), want)
    sparse = X.to_sparse_csr()
    torch.testing.assert_close(ops.project(sparse, ready), want)


def test_the_gradient_to_X_is_that_of_project() -> None:
    X, H = problem(4, 33, 7, torch.float64)
    ready, gradients = ops.prepare_components(H.requires_grad_()), []
    for components in (ready, H):
        x = X.clone().requires_grad_()
        h = ops.project(x, components)
        gradients.append(torch.autograd.grad(h.square().sum(), x)[0])
    assert torch.equal(*gradients)
    assert not ready.H.requires_grad
    x = X.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.project(x, ready), x)


def test_under_the_transforms_of_torch_func() -> None:
    X, H = problem(6, 33, 7, torch.float64)
    ready = ops.prepare_components(H)
    want = ops.project(X, H)
    by_rows = torch.func.vmap(lambda x: ops.project(x, ready))(X)
    assert torch.equal(by_rows, want)
    gradient = torch.func.grad(lambda x: ops.project(x, ready).square().sum())(X)
    x = X.clone().requires_grad_()
    ops.project(x, H).square().sum().backward()
    torch.testing.assert_close(gradient, x.grad)


def test_opcheck() -> None:
    X, H = problem(5, 33, 7, torch.float32)
    torch.library.opcheck(torch.ops.nnmf_cuda.prepare_components.default, (H[None],))
    ready = ops.prepare_components(H)
    arguments = (X, H[None], None, ready.packed, ready.grams)
    torch.library.opcheck(torch.ops.nnmf_cuda.project.default, arguments)


def test_a_gradient_to_what_was_made_ready_raises() -> None:
    H = torch.rand(1, 3, 5).requires_grad_()
    _, grams = torch.ops.nnmf_cuda.prepare_components(H)
    with pytest.raises(RuntimeError, match="give `project` H itself for a gradient to H"):
        grams.sum().backward()


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="H must be a torch.Tensor"):
        ops.prepare_components([[1.0]])
    with pytest.raises(TypeError, match="H must be float32 or float64, got torch.uint8"):
        ops.prepare_components(torch.ones(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="H must have 2 or 3 dimensions"):
        ops.prepare_components(torch.ones(3))


@pytest.mark.needs_ext
def test_the_op_names_what_does_not_fit() -> None:
    X, H = problem(5, 33, 7, torch.float32)
    ready = ops.prepare_components(H)
    project = torch.ops.nnmf_cuda.project
    with pytest.raises(RuntimeError, match="packed and grams must be given together"):
        project(X, H[None], None, None, ready.grams)
    with pytest.raises(RuntimeError, match="grams must have size"):
        project(X, H[None], None, ready.packed, ready.grams[:, 1:])
    with pytest.raises(RuntimeError, match="grams must be float64, got Float"):
        project(X, H[None], None, ready.packed, ready.grams.float())
    with pytest.raises(RuntimeError, match="packed must have size 8"):
        project(X, H[None], None, ready.packed[..., 1:], ready.grams)
