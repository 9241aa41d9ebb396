"""A stream of mini-batches, one call each: `NNMF.partial_fit` and what it remembers."""

from __future__ import annotations

from typing import Any, Self

import torch
from numpy.typing import NDArray
from sklearn.utils.metaestimators import available_if
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.inputs import check_integer, check_real
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.minibatch import (
    Statistics,
    minibatch_step,
    statistics_of_fit,
    statistics_of_start,
)
from nnmf_cuda.nnmf.sharding import ShardMixin, one_fate
from nnmf_cuda.nnmf.starts import Origin, initial_components

MEMORY = ("_components_numerator", "_components_denominator")
"""Attributes that hold what a stream remembers."""

_OF_FIT_ALONE = (
    "W_",
    "n_iter_",
    "converged_",
    "reconstruction_err_",
    "objective_history_",
    "objective_iterations_",
)


def _has_stream(model: ShardMixin) -> bool:
    """Whether there is a `partial_fit`; says why not as scikit-learn's own estimators do."""
    for name, other, absent in (
        ("solver", "mu", model._signed),
        ("graph", None, model.graph is not None),
    ):
        if absent:
            raise AttributeError(
                f"partial_fit has no {name}={getattr(model, name)!r:.80}: fit to all rows at once, "
                f"or use {name}={other!r}"
            )
    return True


class StreamMixin(ShardMixin):
    """Gives `NNMF` its `partial_fit`."""

    forget_factor: float
    fresh_restarts_max_iter: int

    components_: NDArray[Any]
    n_components_: int
    n_steps_: int

    @available_if(_has_stream)  # type: ignore[untyped-decorator]
    def partial_fit(
        self, X: Any, y: Any = None, *, H: Any = None, mask: Any = None, weights: Any = None
    ) -> Self:
        """Improve the components by the rows X, one mini-batch of a stream.

        The W of the mini-batch is found from H, then H from what is remembered of all
        mini-batches: one step of :class:`sklearn.decomposition.MiniBatchNMF`, for any
        `beta_loss` [6]_. `solver`, `max_iter`, `tol` and `n_init` have no influence.

        Parameters
        ----------
        X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
            Non-negative data. The first call may have fewer rows than components, except with the
            starts of "nndsvd..."; a stream goes on from where `fit` has ended, the rows of the fit
            counting as the mini-batch before. Errors are those of `fit`.
        y : Ignored
            Present for scikit-learn's convention.
        H : array-like or Tensor of shape (n_components, n_features)
            The start of ``init="custom"``, used by the first call.
        mask, weights : array-like or Tensor
            As for `fit`, but that of some columns nothing may count: of those the mini-batch tells
            nothing. The rows of a fit before count with all their entries.
        """
        with one_fate(X):
            reset = not hasattr(self, "components_")
            matrix = self._read_training(X, reset=reset, mask=mask, weights=weights)
            origin = self._origin_for(matrix)
            components, past = self._stream(matrix, H, origin)
            components, statistics = minibatch_step(
                self._problem(matrix.converted(components.dtype), origin.n_fixed),
                components,
                past,
                n_iter=self.fresh_restarts_max_iter,
                forget_factor=self.forget_factor,
            )
            self._keep_step(components, statistics)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real("forget_factor", self.forget_factor, low=0, high=1)
        check_integer("fresh_restarts_max_iter", self.fresh_restarts_max_iter, low=1)

    def _forget(self, *attributes: str) -> None:
        for name in attributes:
            self.__dict__.pop(name, None)

    def _stream(self, X: Matrix, H: Any, origin: Origin) -> tuple[Tensor, Statistics]:
        """Return the components and the memory with which a stream meets the rows X."""
        if not hasattr(self, "components_"):
            components = initial_components(X, self.n_components, origin, H=H)
            beta_loss = ops.beta_loss_to_float(self.beta_loss)
            return components, statistics_of_start(components, origin.mean, beta_loss)

        def stored(name: str) -> Tensor:
            return torch.tensor(getattr(self, name), device=X.device)

        components = stored("components_")
        before: dict[str, Any] = {"n_components": len(components)}
        if hasattr(self, "n_steps_"):
            before["beta_loss"] = self._beta_loss_of_stream
        for name, value in before.items():
            now = getattr(self, name)
            if now == "auto" or _plain(name, now) == _plain(name, value):
                continue
            raise ValueError(
                f"{name}={now!r} has changed from {value!r} since the stream began; set it back, or"
                " start anew with sklearn.base.clone"
            )
        if origin.fixed is not None and not _equal(components[: origin.n_fixed], origin.fixed):
            raise ValueError(
                "fixed_components are not the first of the components that the stream has so far; "
                "set them back, or start anew with sklearn.base.clone"
            )
        if hasattr(self, "n_steps_"):
            return components, Statistics(*map(stored, MEMORY))
        W = stored("W_")
        n_rows = int(X.totals(torch.tensor(len(W), dtype=torch.float64, device=X.device))[0])
        objective = self._objective(n_rows, X.shape[1], components.dtype)
        return components, statistics_of_fit(W, components, objective, X)

    def _keep_step(self, components: Tensor, statistics: Statistics) -> None:
        """Store what a mini-batch has led to, and drop what holds for the end of a fit only."""
        if not bool(components.isfinite().all()):
            raise ValueError("the mini-batch overflowed; scale X to values around 1 or use float64")
        self._forget(*_OF_FIT_ALONE)
        self.components_ = components.cpu().numpy()
        self._beta_loss_of_stream = self.beta_loss
        self._components_numerator = statistics.numerator.cpu().numpy()
        self._components_denominator = statistics.denominator.cpu().numpy()
        self.n_components_ = len(self.components_)
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1


def _plain(name: str, value: Any) -> Any:
    """Return what a parameter means: a loss has a name and a number."""
    return ops.beta_loss_to_float(value) if name == "beta_loss" else value


def _equal(held: Tensor, fixed: Tensor) -> bool:
    """Whether components are the same, up to the rounding of the coarser of their types."""
    coarser = torch.float32 if torch.float32 in (held.dtype, fixed.dtype) else torch.float64
    return torch.equal(held.to(coarser), fixed.to(coarser))
