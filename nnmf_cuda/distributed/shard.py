"""The rows of a matrix that one process of several has."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
import torch.distributed as dist
from torch import Tensor

from nnmf_cuda.distributed.ranks import Ranks


class Shard:
    """The rows of X that this process has; the other processes of a group have the others.

    What `NNMF` is given in place of X, by each process of the group: ``NNMF(...).fit(Shard(rows))``
    then fits to the rows of all of them. `W_` and what `transform` returns are those of the
    process's own rows, `components_` and all else is the same on each of them. Without a `Shard` a
    fit is a process's own, whether there is a group or not.

    Parameters
    ----------
    rows : array-like, sparse matrix or Tensor of shape (n_samples of this process, n_features)
        Whatever `NNMF` takes, of the same type on all; there may be none, shape (0, n_features).
        The rows of rank 0 come first, then those of rank 1, and so on.
    group : torch.distributed.ProcessGroup, optional
        By default all processes that `torch.distributed.init_process_group` has joined.
    starts : torch.distributed.ProcessGroup, optional
        Processes that have the same rows, those of one place in each of as many groups: the
        `n_init` starts of a fit are dealt among these groups, of which there are no more than
        starts. What a process fails by, the other groups learn when they are done.

    Raises
    ------
    RuntimeError
        If there is no process group.
    ValueError
        If this process is not in the group.

    Examples
    --------
    One process that `torchrun --nproc-per-node=4` has started:

    >>> import numpy as np, torch.distributed as dist
    >>> from nnmf_cuda import NNMF
    >>> from nnmf_cuda.distributed import Shard
    >>> dist.init_process_group("gloo")  # doctest: +SKIP
    >>> X = np.load("images.npy", mmap_mode="r")  # doctest: +SKIP
    >>> model = NNMF(15, random_state=0).fit(Shard.of_rows(X))  # doctest: +SKIP

    The starts dealt among two groups of two processes, each of which has all rows:

    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("starts", "rows"))  # doctest: +SKIP
    >>> shard = Shard.of_rows(
    ...     X, mesh.get_group("rows"), starts=mesh.get_group("starts")
    ... )  # doctest: +SKIP
    >>> model = NNMF(15, n_init=8, random_state=0).fit(shard)  # doctest: +SKIP
    """

    def __init__(
        self,
        rows: Any,
        group: dist.ProcessGroup | None = None,
        *,
        starts: dist.ProcessGroup | None = None,
    ) -> None:
        self.rows = rows
        self.ranks = Ranks(_joined(group))
        self.starts = None if starts is None else Ranks(_joined(starts))

    @classmethod
    def of_rows(
        cls,
        X: Any,
        group: dist.ProcessGroup | None = None,
        *,
        starts: dist.ProcessGroup | None = None,
    ) -> Self:
        """Return this process's share of X, of which each process can read all.

        Parameters
        ----------
        X : array, sparse matrix, Tensor, what has a shape and gives rows by ``X[a:b]``, or a list
            A memory map (``np.load(path, mmap_mode="r")``) or a Zarr array is read in this
            process's rows alone. The shares are as equal as they can be. A list has the rows of
            several of them, one after the other: a share of more than one is a copy of its rows.
        group, starts : torch.distributed.ProcessGroup, optional
            As above.
        """
        parts = X if isinstance(X, list | tuple) and X and hasattr(X[0], "shape") else [X]
        for part in parts:
            if not hasattr(part, "shape") or len(part.shape) != 2:
                raise TypeError(
                    "Shard.of_rows takes its rows from what has a shape (n_samples, n_features) "
                    f"and slices, got {type(part).__name__}; give numpy.asarray(X), or the rows "
                    "themselves: Shard(rows)"
                )
        group = _joined(group)
        ends = list(accumulate(int(part.shape[0]) for part in parts))
        own = share(ends[-1], dist.get_rank(group), dist.get_world_size(group))
        pieces = []
        for part, end in zip(parts, ends, strict=True):
            first = end - int(part.shape[0])
            low, high = max(own.start, first), min(own.stop, end)
            if low < high:
                pieces.append(part[low - first : high - first])
        return cls(_joined_rows(pieces or [parts[0][:0]]), group, starts=starts)


def _joined_rows(pieces: list[Any]) -> Any:
    """Return the rows of pieces of one kind, one after the other; of a single piece no copy."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    if scipy.sparse.issparse(pieces[0]):
        return scipy.sparse.vstack(pieces, format="csr")
    return np.concatenate(pieces)


def share(n: int, rank: int, size: int) -> slice:
    """Return which of n things a rank has where each has as many as another, or one more."""
    return slice(n * rank // size, n * (rank + 1) // size)


def _joined(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return the group, by default of all processes, if this one is in it."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "Shard is for a process among others: call torch.distributed.init_process_group first, "
            "as torchrun prepares it, or fit to the rows without it"
        )
    chosen = dist.group.WORLD if group is None else group
    if chosen is None or dist.get_rank(chosen) < 0:
        raise ValueError("this process is not in the group: give its rows to a group that it is in")
    return chosen
