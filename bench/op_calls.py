"""One small call of every op on every kind of input, for whoever has to see that all of them run.

Arguments lie on the CPU and are the same in every process; `OpCall.on` moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from bench.inputs import doubled
from nnmf_cuda import ops
from nnmf_cuda.ops._transforms import find_op

__all__ = ["OpCall", "op_calls"]

SHAPES = [
    *[(33, 70, 5), (61, 127, 15), (1, 67, 1), (67, 1, 2), (37, 131, 33), (19, 131, 128)],
    (5, 270, 257),  # more components than kernels keep in registers
]
# Samples, features, draws, hidden units, channels, hidden units of the classifier.
DEFENCES = [(33, 15, 3, 33, 5, 17), (1, 2, 1, 1, 1, 1), (5, 40, 8, 512, 12, 512)]
_SEED = 0


@dataclass(frozen=True)
class OpCall:
    """A call that can be made on any device.

    Attributes
    ----------
    ops : tuple of str
        The ops that it calls, as `nnmf_cuda.show_config` names them; the first is what it is about.
    name : str
        Op, type and shape, unlike any other.
    function : callable
        Gives the outputs, a tuple of tensors, from the arguments.
    arguments : dict
        Tensors, or lists of tensors, by name.
    dtype : torch.dtype
        In which it computes: float32 or float64.
    """

    ops: tuple[str, ...]
    name: str
    function: Callable[..., tuple[Tensor, ...]]
    arguments: dict[str, Any]
    dtype: torch.dtype

    def __call__(self) -> tuple[Tensor, ...]:
        """Make the call, where the arguments lie."""
        return self.function(**self.arguments)

    def on(self, device: str | torch.device) -> OpCall:
        """Return the same call with its arguments on a device."""

        def move(value: Any) -> Any:
            return [v.to(device) for v in value] if isinstance(value, list) else value.to(device)

        return replace(self, arguments={name: move(v) for name, v in self.arguments.items()})

    def in_float64(self) -> OpCall:
        """Return the same call in float64; pixels stay pixels."""
        return replace(self, arguments=doubled(self.arguments), dtype=torch.float64)


def op_calls() -> Iterator[OpCall]:
    """Give one call of each op, the most used first; then another one of each, and so on.

    Whoever runs out of time has then seen something of every op.
    """
    by_op: dict[str, list[OpCall]] = {}
    for call in _all_calls():
        by_op.setdefault(call.ops[0], []).append(call)
    for calls in zip_longest(*by_op.values()):
        yield from (call for call in calls if call is not None)


def _all_calls() -> Iterator[OpCall]:
    generator = torch.Generator().manual_seed(_SEED)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if dtype == torch.uint8:
            return torch.randint(1, 256, shape, dtype=dtype, generator=generator)
        return torch.rand(shape, dtype=dtype, generator=generator) + 0.1

    for n, f, k in SHAPES:
        for dtype in (torch.float32, torch.uint8, torch.float64):
            factors = torch.float64 if dtype == torch.float64 else torch.float32
            shared, own = draw(n, f, dtype=dtype), draw(3, n, f, dtype=dtype)
            start = {"W": draw(3, n, k, dtype=factors), "H": draw(3, k, f, dtype=factors)}
            what = f"{str(dtype).removeprefix('torch.')} {n}x{f}x{k}"
            yield from _factorisations(shared, own, start, what, factors)
            yield from _weighted_factorisations(shared, start, what, factors)
            if dtype != torch.uint8:
                yield from _sparse_factorisations(shared, start, what, factors)
            if f > k:
                yield OpCall(
                    ("project",),
                    f"project {what}",
                    lambda X, H: (ops.project(_column_slice(X), H),),
                    {"X": shared, "H": start["H"]},
                    factors,
                )
                yield OpCall(
                    ("prepare_components", "project"),
                    f"project with components made ready {what}",
                    lambda X, H: (ops.project(X, ops.prepare_components(H)),),
                    {"X": shared, "H": start["H"]},
                    factors,
                )
    yield from _least_squares(generator)
    for shape in ((2, 7, 3, 5), (1, 1, 1, 1), (3, 33, 5, 257)):
        for dtype in (torch.float32, torch.float64):
            yield OpCall(
                ("philox_normal",),
                f"philox_normal {str(dtype).removeprefix('torch.')} {shape}",
                lambda like, s=shape: (
                    ops.philox_normal(0, s, dtype=like.dtype, device=like.device),
                ),
                {"like": torch.empty(0, dtype=dtype)},
                dtype,
            )
    yield from _defences(generator)
    yield from _bounds(generator)


def _weighted_factorisations(
    X: Tensor, start: dict[str, Tensor], what: str, dtype: torch.dtype
) -> Iterator[OpCall]:
    """Give the updates and the divergence where half of X has weights, and with bits for those."""
    share = (X / X.double().max()).to(dtype)
    seen = share >= share.median()
    for kind, weights in (
        ("bits", ops.pack_mask(seen)),
        ("numbers", torch.where(seen, share, 0)),
    ):
        tensors = {"X": X, **start, "weights": weights}

        def with_sum(found: tuple[Tensor, ...], X: Tensor) -> tuple[Tensor, ...]:
            # As without weights: of an exact fit nothing but rounding is left.
            return *found[:-1], found[-1] + X.double().sum() / (
                255 if X.dtype == torch.uint8 else 1
            )

        for beta_loss in (1.0, 2.0, 0.5):
            yield OpCall(
                ("nnmf_weighted_mu",),
                f"nnmf_weighted_mu beta {beta_loss} {what} {kind}",
                lambda b=beta_loss, **given: with_sum(
                    find_op("nnmf_weighted_mu")(
                        **given, beta_loss=b, n_iter=2, compute_divergence=True
                    ),
                    given["X"],
                ),
                tensors,
                dtype,
            )
            yield OpCall(
                ("nnmf_weighted_divergence",),
                f"nnmf_weighted_divergence beta {beta_loss} {what} {kind}",
                lambda b=beta_loss, **given: with_sum(
                    (find_op("nnmf_weighted_divergence")(**given, beta_loss=b),), given["X"]
                ),
                tensors,
                dtype,
            )
        yield OpCall(
            ("nnmf_weighted_hals",),
            f"nnmf_weighted_hals {what} {kind}",
            lambda **given: with_sum(
                find_op("nnmf_weighted_hals")(
                    **given, n_iter=1, l2_reg_W=1.0, l2_reg_H=1.0, compute_divergence=True
                ),
                given["X"],
            ),
            tensors,
            dtype,
        )


def _sparse_factorisations(
    X: Tensor, start: dict[str, Tensor], what: str, dtype: torch.dtype
) -> Iterator[OpCall]:
    """Give the updates and the divergence of the entries of X above its mean, in CSR."""
    above = X > X.mean()
    parts = {
        "crow": torch.cat((torch.zeros(1, dtype=torch.int64), above.sum(1).cumsum(0))),
        "col": above.nonzero()[:, 1].contiguous(),
        "values": X[above],
    }

    def with_sum(found: tuple[Tensor, ...], values: Tensor) -> tuple[Tensor, ...]:
        # As for dense X: of an exact fit nothing but rounding is left.
        return *found[:-1], found[-1] + values.double().sum()

    for beta_loss in (1.0, 2.0, 0.5):
        yield OpCall(
            ("nnmf_sparse_mu",),
            f"nnmf_sparse_mu beta {beta_loss} {what}",
            lambda b=beta_loss, **given: with_sum(
                find_op("nnmf_sparse_mu")(**given, beta_loss=b, n_iter=2, compute_divergence=True),
                given["values"],
            ),
            {**parts, **start},
            dtype,
        )
        yield OpCall(
            ("nnmf_sparse_divergence",),
            f"nnmf_sparse_divergence beta {beta_loss} {what}",
            lambda b=beta_loss, **given: with_sum(
                (find_op("nnmf_sparse_divergence")(**given, beta_loss=b),), given["values"]
            ),
            {**parts, **start},
            dtype,
        )
    yield OpCall(
        ("nnmf_sparse_hals",),
        f"nnmf_sparse_hals {what}",
        lambda **given: with_sum(
            find_op("nnmf_sparse_hals")(
                **given, n_iter=1, l2_reg_W=1.0, l2_reg_H=1.0, compute_divergence=True
            ),
            given["values"],
        ),
        {**parts, **start},
        dtype,
    )
    yield OpCall(
        ("nnmf_sparse_cd",),
        f"nnmf_sparse_cd {what}",
        lambda **given: with_sum(
            find_op("nnmf_sparse_cd")(
                **given, n_iter=1, l2_reg_W=1.0, l2_reg_H=1.0, compute_divergence=True
            ),
            given["values"],
        ),
        {
            **parts,
            "ccol": torch.cat((torch.zeros(1, dtype=torch.int64), above.sum(0).cumsum(0))),
            "row": above.T.nonzero()[:, 1].contiguous(),
            "column_values": X.T[above.T],
            **start,
        },
        dtype,
    )


def _column_slice(X: Tensor) -> Tensor:
    """Return X as columns of a wider matrix: rows that do not follow one another in memory."""
    wide = X.new_zeros(*X.shape[:-1], X.shape[-1] + 5)
    return wide[..., 3:-2].copy_(X)


def _factorisations(
    shared: Tensor, own: Tensor, start: dict[str, Tensor], what: str, dtype: torch.dtype
) -> Iterator[OpCall]:
    """Give the updates and the divergence, on one X for all problems and on an X for each."""

    def updated(
        update: Callable[..., tuple[Tensor, ...]], X: Tensor, *start: Tensor, **options: Any
    ) -> tuple[Tensor, ...]:
        W, H, divergence = update(X, *start, n_iter=2, compute_divergence=True, **options)
        # A small difference of sums of X's size: of an exact fit nothing but rounding is left.
        pixels = 255 if X.dtype == torch.uint8 else 1
        return W, H, divergence + X.double().sum((-1, -2)) / pixels

    for beta_loss in (1.0, 2.0, 0.5):
        for name, X in (("shared", shared), ("own", own)):
            yield OpCall(
                ("nnmf_mu",),
                f"nnmf_mu beta {beta_loss} {what} {name} X",
                lambda X, W, H, b=beta_loss: updated(
                    ops.nnmf_mu, _column_slice(X) if X.ndim == 2 else X, W, H, beta_loss=b
                ),
                {"X": X, **start},
                dtype,
            )
    yield OpCall(
        ("nnmf_hals",),
        f"nnmf_hals {what}",
        lambda X, W, H: updated(ops.nnmf_hals, X, W, H),
        {"X": own, **start},
        dtype,
    )
    yield OpCall(
        ("nnmf_mu",),
        f"nnmf_mu {what} some problems",
        lambda X, W, H, active: updated(ops.nnmf_mu, X, W, H, active=active),
        {"X": own, **start, "active": torch.tensor([True, False, True])},
        dtype,
    )
    yield OpCall(
        ("nnmf_divergence",),
        f"nnmf_divergence {what}",
        lambda X, W, H: (ops.nnmf_divergence(X, W, H),),
        {"X": own, **start},
        dtype,
    )


def _least_squares(generator: torch.Generator) -> Iterator[OpCall]:
    for k in (5, 1, 15, 33, 128, 257):
        basis = torch.rand(2, k, 3 * k, dtype=torch.float64, generator=generator) + 0.1
        targets = torch.randn(2, 37, 3 * k, dtype=torch.float64, generator=generator) + 0.3
        gram, cross = basis @ basis.mT, targets @ basis.mT
        yield OpCall(
            ("nnls",),
            f"nnls {k}",
            lambda gram, cross: (ops.nnls(gram, cross),),
            {"gram": gram, "cross": cross},
            torch.float64,
        )
        yield OpCall(
            ("nnls_backward", "nnls"),
            f"nnls_backward {k}",
            _nnls_gradient,
            {"gram": gram, "cross": cross},
            torch.float64,
        )


def _nnls_gradient(gram: Tensor, cross: Tensor) -> tuple[Tensor, ...]:
    cross = cross.clone().requires_grad_()
    return torch.autograd.grad(ops.nnls(gram, cross).sum(), [cross])


def _defences(generator: torch.Generator) -> Iterator[OpCall]:
    """Give the defence's ops with their gradients, drawing their noise or given it."""

    def layer(*shape: int) -> list[Tensor]:
        weight = torch.randn(shape, generator=generator) / 4
        return [weight, torch.rand(shape[0], generator=generator)]

    for n, features, draws, hidden, channels, units in DEFENCES:
        denoiser = [*layer(hidden, features + 9), *layer(features, hidden)]
        classifier = [
            *layer(channels, 1, 3),
            *layer(2 * channels, channels, 3),
            *layer(units, 2 * channels * (features // 2)),
            *layer(3, units),
        ]
        x = torch.rand(n, features, generator=generator)
        noise = torch.randn(2, n, draws, features, generator=generator)
        chain = {
            "timesteps": torch.tensor([41, 20]),
            "alphas_cumprod": torch.linspace(0.99, 0.01, 100, dtype=torch.float64),
        }
        purified = {"x": x, "noise": noise, **chain, "weights": denoiser}
        drawn = {"x": x, **chain, "denoiser": denoiser, "classifier": classifier}
        for dtype in (torch.float32, torch.float64):
            what = f"{str(dtype).removeprefix('torch.')} {n}x{features}x{draws}"
            for op, function, arguments in (
                ("purify", _with_gradients(_purify), purified),
                ("feature_cnn", _with_gradients(_classify), {"x": x, "weights": classifier}),
                ("defended_logits", _with_gradients(_defend, n_draws=draws), drawn),
            ):
                call = OpCall(
                    (op, f"{op}_backward"), f"{op} and gradients {what}", function, arguments, dtype
                )
                yield call.in_float64() if dtype == torch.float64 else call


def _bounds(generator: torch.Generator) -> Iterator[OpCall]:
    """Give bounds over boxes, of both kinds of network, with a ball and without."""

    def layer(*shape: int) -> list[Tensor]:
        scale = torch.Size(shape[1:]).numel() ** -0.5
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return [weight, torch.rand(shape[0], generator=generator, dtype=torch.float64)]

    networks = {
        "cnn": (15, [*layer(16, 1, 3), *layer(32, 16, 3), *layer(64, 224), *layer(2, 64)]),
        "small cnn": (2, [*layer(1, 1, 3), *layer(2, 1, 3), *layer(3, 2), *layer(2, 3)]),
        "mlp": (15, [*layer(70, 15), *layer(33, 70), *layer(2, 33)]),
    }
    for name, (n, weights) in networks.items():
        x = torch.rand(9, n, generator=generator, dtype=torch.float64)
        given = {
            "lower": x - 0.05,
            "upper": x + 0.05,
            "weights": weights,
            "objective": torch.rand(9, 2, generator=generator, dtype=torch.float64) - 0.5,
        }
        ball = {"center": x, "radius": torch.full((9,), 0.1, dtype=torch.float64)}
        for around in ({}, ball):
            what = f"crown_bounds {name}{' and ball' if around else ''}"
            function = ops.crown_bounds
            yield OpCall(("crown_bounds",), what, function, given | around, torch.float64)


def _purify(x: Tensor, noise: Tensor, **others: Any) -> Tensor:
    return ops.purify(x, noise, **others, eta=0.5)


def _classify(x: Tensor, weights: list[Tensor]) -> Tensor:
    return ops.feature_cnn(x, weights)


def _defend(x: Tensor, n_draws: int, **others: Any) -> Tensor:
    return ops.defended_logits(x, 3, **others, eta=0.5, n_draws=n_draws)


def _with_gradients(forward: Callable[..., Tensor], **options: Any) -> Callable[..., Any]:
    """Return a function that gives the output, and the gradients to all floats but the schedule."""

    def both(**arguments: Any) -> tuple[Tensor, ...]:
        def leaf(value: Tensor) -> Tensor:
            return value.clone().requires_grad_() if value.is_floating_point() else value

        given = {
            name: value
            if name == "alphas_cumprod"
            else [leaf(v) for v in value]
            if isinstance(value, list)
            else leaf(value)
            for name, value in arguments.items()
        }
        tensors = [
            v for value in given.values() for v in (value if isinstance(value, list) else [value])
        ]
        output = forward(**given, **options)
        to = [tensor for tensor in tensors if tensor.requires_grad]
        return output, *torch.autograd.grad(output.square().sum(), to)

    return both
