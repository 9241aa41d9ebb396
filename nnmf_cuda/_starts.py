"""The starts that the parameters of an `NNMF` ask for."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from nnmf_cuda._init_factors import custom_components, custom_factors, initial_factors

_AUTO_COMPONENTS = 15  # the paper's number


def starts_of_fit(estimator: Any, X: Tensor, W: Any, H: Any) -> tuple[Tensor, Tensor]:
    """Return the starts (n_init, n, k) and (n_init, k, f) of a fit to X (n, f)."""
    n_components = _requested(estimator, X, min(X.shape))
    if estimator.init == "custom":
        if estimator.n_init > 1:
            raise ValueError(
                f"n_init={estimator.n_init} with init='custom': give one start, n_init=1"
            )
        return custom_factors(X, n_components, W, H)
    if W is not None or H is not None:
        raise ValueError(f"W and H are starts of init='custom', but init={estimator.init!r}")
    if estimator.init == "nndsvd" and estimator.solver != "hals":
        warnings.warn(
            "multiplicative updates cannot leave the zeros of init='nndsvd'; 'nndsvda' and "
            "'nndsvdar' fill them and usually end better",
            UserWarning,
            stacklevel=4,
        )
    return initial_factors(
        X,
        n_components or min(_AUTO_COMPONENTS, *X.shape),
        init=estimator.init,
        n_init=estimator.n_init,
        random_state=estimator.random_state,
    )


def start_of_stream(estimator: Any, X: Tensor, H: Any) -> Tensor:
    """Return the components (k, f) from which a stream that begins with X (n, f) starts."""
    # Only singular vectors need rows: else the first mini-batch may have few.
    limit = min(X.shape) if estimator.init.startswith("nndsvd") else X.shape[1]
    n_components = _requested(estimator, X, limit)
    if estimator.init == "custom":
        return custom_components(X, n_components, H)
    if H is not None:
        raise ValueError(f"H is the start of init='custom', but init={estimator.init!r}")
    _, starts = initial_factors(
        X,
        n_components or min(_AUTO_COMPONENTS, limit),
        init=estimator.init,
        n_init=1,
        random_state=estimator.random_state,
    )
    return starts[0]


def _requested(estimator: Any, X: Tensor, limit: int) -> int | None:
    """Return the number of components asked for, None for "auto"; raise if above `limit`."""
    if estimator.n_components == "auto":
        return None
    n_components = int(estimator.n_components)
    if n_components > X.shape[1]:
        raise ValueError(
            f"n_components={n_components} is above n_features = {X.shape[1]}; use n_components <= "
            f"{limit}"
        )
    if n_components > limit:
        raise ValueError(
            f"n_components={n_components} is above min(n_samples, n_features) = {limit} for X of "
            f"shape {tuple(X.shape)}; use n_components <= {limit} or more samples"
        )
    return n_components
