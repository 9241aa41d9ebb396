"""Free variables in and out, pivots, tol, and one row: of nnls and of project, on every path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.ops import NnlsInfo
from tests.helpers import DEVICES

on_every_device = pytest.mark.parametrize("device", DEVICES)
PATHS = {"op": nullcontext, "reference": ops.reference_path}


@pytest.fixture(params=list(PATHS))
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with PATHS[request.param]():
        yield request.param


def problem(n: int, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a basis (2 k + 1, k) and targets of which about half the variables are free."""
    rng = np.random.default_rng([seed, n, k])
    A = rng.standard_normal((2 * k + 1, k))
    return A, rng.standard_normal((n, k)) @ A.T + 0.1 * rng.standard_normal((n, len(A)))


def products(A: np.ndarray, targets: np.ndarray, device: str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.tensor(A.T @ A, device=device), torch.tensor(targets @ A, device=device)


@on_every_device
@pytest.mark.parametrize("k", [1, 5, 15, 33, 70, 150])
def test_every_start_has_the_same_answer(path: str, device: str, k: int) -> None:
    A, targets = problem(6, k)
    gram, cross = products(A, targets, device)
    h, info = ops.nnls(gram, cross, return_info=True)
    want = np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])
    assert isinstance(info, NnlsInfo)
    assert torch.equal(info.passive, h > 0)  # no variable is free at zero here
    np.testing.assert_allclose(h.cpu().numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    random = torch.rand(6, k, generator=torch.Generator().manual_seed(k)) < 0.5
    for start in (info.passive, random.to(device), torch.zeros_like(info.passive)):
        again, own = ops.nnls(gram, cross, passive=start, return_info=True)
        torch.testing.assert_close(again, h, rtol=1e-9, atol=1e-10 * float(h.max()))
        assert torch.equal(own.passive, info.passive)
        assert own.residual.max() < 1e-12
        # Every variable that begins on the other side has to be exchanged.
        assert (own.pivots >= (start ^ own.passive).sum(-1)).all()
    _, same = ops.nnls(gram, cross, passive=info.passive, return_info=True)
    assert not same.pivots.any()


@pytest.mark.parametrize("k", [4, 31, 64, 129])
def test_pivots_are_those_of_the_reference(k: int) -> None:
    gram, cross = products(*problem(20, k))
    some = torch.rand(20, k, generator=torch.Generator().manual_seed(k)) < 0.5
    for start in (None, some):
        for tol in (0.0, 1e-3):
            _, got = ops.nnls(gram, cross, passive=start, tol=tol, return_info=True)
            with ops.reference_path():
                _, want = ops.nnls(gram, cross, passive=start, tol=tol, return_info=True)
            assert torch.equal(got.pivots, want.pivots)
            assert torch.equal(got.passive, want.passive)


def test_a_drifting_problem_needs_few_pivots_from_its_last_free_variables(path: str) -> None:
    A, targets = problem(16, 60)
    gram, cross = products(A, targets)
    h, info = ops.nnls(gram, cross, return_info=True)
    drift = 0.01 * np.random.default_rng(1).standard_normal(targets.shape)
    _, cross = products(A, targets + drift)
    _, warm = ops.nnls(gram, cross, passive=info.passive, return_info=True)
    h, cold = ops.nnls(gram, cross, return_info=True)
    assert 5 * warm.pivots.sum() <= cold.pivots.sum()
    assert warm.residual.max() < 1e-12


@pytest.mark.parametrize("k", [7, 40, 150])
def test_tol_ends_rows_early_and_holds(path: str, k: int) -> None:
    A, targets = problem(30, k)
    gram, cross = products(A, targets)
    start = torch.zeros(30, k, dtype=torch.bool)
    pivots = []
    for tol in (0.0, 1e-3, 0.1, 0.99):
        h, info = ops.nnls(gram, cross, passive=start, tol=tol, return_info=True)
        assert info.residual.max() <= max(tol, 1e-12)
        assert (h >= 0).all()
        pivots.append(int(info.pivots.sum()))
    assert pivots[0] >= pivots[1] >= pivots[2] > pivots[3]
    assert info.residual.max() > 1e-3
    # At 1, zero is an answer.
    h, info = ops.nnls(gram, cross, passive=start, tol=1.0, return_info=True)
    assert not h.any()
    assert not info.pivots.any()


def test_tol_is_of_the_variables_that_were_given(path: str) -> None:
    gram, cross = products(*problem(30, 9))
    unit = 10.0 ** torch.arange(-4, 5, dtype=torch.float64)
    for tol in (1e-4, 1e-2):
        start = torch.zeros_like(cross, dtype=torch.bool)
        scaled = gram * unit * unit[:, None], cross * unit
        _, info = ops.nnls(*scaled, passive=start, tol=tol, return_info=True)
        assert 0 < info.residual.max() <= tol


def calls(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Any], Tensor, Tensor]]:
    """Return nnls and project as functions of rows and what these are projected on."""
    generator = torch.Generator().manual_seed(0)
    H = torch.rand(2, 5, 12, generator=generator, dtype=dtype)
    X = torch.randn(2, 7, 12, generator=generator, dtype=dtype)
    return {
        "nnls": (lambda rows, gram, **o: ops.nnls(gram, rows, **o), X @ H.mT, H @ H.mT),
        "project": (ops.project, X, H),
    }


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_rows_and_batches_have_shapes_of_their_own(path: str, name: str) -> None:
    function, rows, onto = calls(torch.float64)[name]
    h, info = function(rows, onto, return_info=True)
    start = info.passive.roll(1, -1)
    h, info = function(rows, onto, passive=start, return_info=True)
    assert (h.shape, info.passive.shape) == ((2, 7, 5), (2, 7, 5))
    assert (info.residual.shape, info.pivots.shape) == ((2, 7), (2, 7))
    assert (info.residual.dtype, info.passive.dtype) == (torch.float64, torch.bool)
    assert info.pivots.dtype == torch.int64
    matrix, of_matrix = function(rows[1], onto[1], passive=start[1], return_info=True)
    one, of_one = function(rows[1, 3], onto[1], passive=start[1, 3], return_info=True)
    _, residual = function(rows[1, 3], onto[1], return_residual=True)
    assert (one.shape, of_one.passive.shape, residual.shape) == ((5,), (5,), ())
    torch.testing.assert_close(matrix, h[1], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(one, h[1, 3], rtol=1e-13, atol=1e-14)
    for row, matrix_wide, all_of_them in zip(of_one, of_matrix, info, strict=True):
        if row.dtype != torch.float64:
            assert torch.equal(row, all_of_them[1, 3])
            assert torch.equal(matrix_wide, all_of_them[1])


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_gradient_of_one_row(name: str) -> None:
    function, rows, onto = calls(torch.float64)[name]
    leaf, many = rows[1, 3].clone().requires_grad_(), rows[1].clone().requires_grad_()
    function(leaf, onto[1]).square().sum().backward()
    function(many, onto[1])[3].square().sum().backward()
    assert many.grad.any()
    torch.testing.assert_close(leaf.grad, many.grad[3], rtol=1e-10, atol=1e-12)


def test_shared_pixels_start_from_a_set_of_each_problem(path: str) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(0, 256, (9, 40), generator=generator, dtype=torch.uint8)
    H = torch.rand(3, 6, 40, generator=generator) ** 3
    h, info = ops.project(X, H, return_info=True)
    assert info.pivots.sum() > 0
    warm, own = ops.project(X, H, passive=info.passive, return_info=True)
    assert not own.pivots.any()
    torch.testing.assert_close(warm, h)


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_rows_that_are_not_finite_have_no_free_variables(path: str, name: str) -> None:
    function, rows, onto = calls(torch.float64)[name]
    rows[0, 2, 0] = torch.nan
    start = torch.ones(2, 7, 5, dtype=torch.bool)
    for passive in (None, start):
        h, info = function(rows, onto, passive=passive, return_info=True)
        bad = h.isnan().any(-1)
        assert torch.equal(bad, ~rows.isfinite().all(-1))
        assert not info.passive[bad].any()
        assert not info.pivots[bad].any()
        assert info.residual[bad].isnan().all()


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_nothing_is_solved_where_there_is_nothing(path: str, name: str) -> None:
    function, rows, onto = calls(torch.float64)[name]
    _, info = function(rows[:, :0], onto, return_info=True)
    assert [tuple(value.shape) for value in info] == [(2, 0), (2, 0, 5), (2, 0)]
    none = (rows[..., :0], onto[:, :0, :0]) if name == "nnls" else (rows, onto[:, :0])
    h, info = function(*none, return_info=True)
    assert h.shape == (2, 7, 0)
    assert torch.equal(info.pivots, torch.zeros(2, 7, dtype=torch.int64))


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_gradients_do_not_depend_on_the_start(name: str) -> None:
    function, rows, onto = calls(torch.float64)[name]
    info = function(rows, onto, return_info=True)[1]
    assert (info.passive.sum() > 0) & (~info.passive).any()
    gradients = []
    for passive in (None, info.passive):
        leaves = [tensor.clone().requires_grad_() for tensor in (rows, onto)]
        h, own = function(*leaves, passive=passive, return_info=True)
        assert not any(value.requires_grad for value in own)
        h.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    assert torch.autograd.gradcheck(
        lambda r, o: function(r, o, passive=info.passive),
        (rows.requires_grad_(), onto.requires_grad_()),
    )


@pytest.mark.parametrize("name", ["nnls", "project"])
def test_opcheck_with_a_start(name: str) -> None:
    _, rows, onto = calls(torch.float64)[name]
    arguments = (onto, rows) if name == "nnls" else (rows, onto)
    start = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    op = getattr(torch.ops.nnmf_cuda, name).default
    torch.library.opcheck(op, (*arguments, start), {"tol": 1e-3})
    leaves = [tensor.requires_grad_() for tensor in arguments]
    torch.library.opcheck(op, (*leaves, start))


def test_warm_start_compiles_without_graph_breaks() -> None:
    gram, cross = products(*problem(5, 3))

    def twice(gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
        h, info = ops.nnls(gram, cross, return_info=True)
        return h, ops.nnls(gram, cross, passive=info.passive, return_info=True)[1].pivots

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    h, pivots = compiled(gram, cross)
    torch.testing.assert_close(h, ops.nnls(gram, cross))
    assert not pivots.any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tol": -1.0}, ValueError, "tol must be a finite number >= 0, got -1.0"),
        ({"tol": float("nan")}, ValueError, "tol must be a finite number >= 0, got nan"),
        ({"passive": [[True]]}, TypeError, "passive must be a torch.Tensor, got list"),
        ({"passive": torch.ones(2, 7, 5)}, TypeError, "passive must be bool, got torch.float32"),
        (
            {"passive": torch.ones(7, 5, dtype=torch.bool)},
            ValueError,
            r"passive must have shape that of h = \(2, 7, 5\), got \(7, 5\)",
        ),
        (
            {"passive": torch.ones(2, 7, 5, dtype=torch.bool, device="meta")},
            ValueError,
            "passive must be on cpu, as the other tensors, got meta",
        ),
        ({"return_residual": True, "return_info": True}, ValueError, "exclude each other"),
    ],
)
@pytest.mark.parametrize("name", ["nnls", "project"])
def test_options_are_checked(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    function, rows, onto = calls(torch.float64)[name]
    with pytest.raises(error, match=message):
        function(rows, onto, **options)


@pytest.mark.needs_ext
def test_the_op_names_a_wrong_start() -> None:
    gram, cross = torch.eye(3)[None], torch.ones(1, 4, 3)
    op = torch.ops.nnmf_cuda.nnls
    with pytest.raises(RuntimeError, match="passive must be bool, got Float"):
        op(gram, cross, torch.ones(1, 4, 3))
    for shape, message in (
        ((4, 3), "passive must have 3 dimensions"),
        ((2, 4, 3), r"passive must have size 1 \(batch\)"),
        ((1, 5, 3), r"passive must have size 4 \(rows\)"),
        ((1, 4, 2), r"passive must have size 3 \(n_components\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(gram, cross, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="tol must be >= 0, got -1"):
        op(gram, cross, tol=-1.0)
