"""The switch that has the reference serve everything."""

from __future__ import annotations

import pytest
import torch

from nnmf_cuda import ops, reference


def test_ops_are_served_by_the_reference_inside_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    X, W, H = torch.rand(6, 5), torch.rand(6, 2), torch.rand(2, 5)
    calls = []
    for name in ("nnmf_mu", "nnmf_divergence", "nnmf_hals", "nnls", "project"):
        schema, serves = ops.OPS[name]

        def counted(*args, _name=name, _serves=serves, **options):
            calls.append(_name)
            return _serves(*args, **options)

        monkeypatch.setitem(ops.OPS, name, (schema, counted))
    with ops.reference_path():
        assert ops.is_reference_path()
        ops.nnmf_mu(X, W, H, n_iter=1)
        ops.nnmf_hals(X, W, H, n_iter=1)
        ops.nnmf_divergence(X, W, H)
        ops.nnls(H @ H.mT, X @ H.mT)
        inside = ops.project(X, H)
    assert calls == ["nnmf_mu", "nnmf_hals", "nnmf_divergence", "nnls", "project"]
    assert not ops.is_reference_path()
    torch.testing.assert_close(inside, ops.project(X, H), rtol=1e-5, atol=1e-5)
    assert torch.equal(inside[None], reference.project(X, H[None])[0])


def test_reference_path_ends_with_an_error_in_the_block() -> None:
    with pytest.raises(KeyError), ops.reference_path():
        raise KeyError
    assert not ops.is_reference_path()


def test_gradients_that_only_the_op_has_raise() -> None:
    H = torch.rand(2, 5, requires_grad=True)
    with ops.reference_path(), pytest.raises(RuntimeError, match="no gradient on the reference"):
        ops.project(torch.rand(3, 5), H)
