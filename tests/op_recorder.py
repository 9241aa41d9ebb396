"""What stands for a CUDA graph on the CPU: the operations of a step, recorded and made again.

As of a graph, recording computes nothing, and a replay makes the same operations on the same
memory: with what is there by then, and with new random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnmf_cuda import graphs

# Of these a GPU's host waits for the result, its size included.
WAITING = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# These make tensors of numbers of the host.
FROM_HOST = {"lift_fresh", "lift_fresh_copy"}


class HostNeededError(RuntimeError):
    """A step needs the host: a CUDA graph could not hold it."""


class NoHost(TorchDispatchMode):
    """Raises where an operation waits for the device, or copies between it and the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in WAITING:
            raise HostNeededError(f"{name} waits for the device")
        if name in FROM_HOST:
            raise HostNeededError(f"{name} copies numbers of the host")
        if name in ("index", "index_put", "index_put_"):
            if any(
                t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]) if t is not None
            ):
                raise HostNeededError(f"{name} by a mask waits for the number of its entries")
        out = self.call(func, args, kwargs)
        tensors += [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            raise HostNeededError(f"{name} has tensors on both the host and the device")
        return out

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Make the operation."""
        return func(*args, **kwargs)


class _Tape(NoHost):
    """Makes operations and keeps them; then has nothing computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self._changed: dict[int, tuple[Tensor, Tensor]] = {}  # storage: of others, and what it was
        self._made: dict[int, Tensor] = {}

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(given.get(argument.name)):
                    if isinstance(tensor, Tensor):
                        self._keep(tensor)
        before = _places((args, kwargs))
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _place(tensor) not in before:
                self._made.setdefault(_place(tensor), tensor)
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Put back what was changed, and spoil what was made: a graph has computed nothing yet."""
        for tensor, value in self._changed.values():
            tensor.copy_(value)
        for tensor in self._made.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    def _keep(self, tensor: Tensor) -> None:
        if _place(tensor) in self._made:
            return
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        self._changed.setdefault(_place(tensor), (whole, whole.clone()))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _places(values: Any) -> set[int]:
    """Return where tensors lie, of sparse ones their parts."""
    places = set()
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor):
            parts = (tensor,)
            if tensor.layout == torch.sparse_csr:
                parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
            places.update(map(_place, parts))
    return places


class OpRecorder:
    """A `nnmf_cuda.graphs.Recorder` of the CPU."""

    n_recorded = 0
    n_replayed = 0

    def __init__(self, device: torch.device) -> None:
        self._calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def make(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> Any:
        tape, random_state = _Tape(), torch.get_rng_state()
        try:
            with tape:
                outputs = function()
        finally:
            with torch._C._AutoDispatchBelowAutograd():
                tape.undo()
            torch.set_rng_state(random_state)
        self._calls = tape.calls
        OpRecorder.n_recorded += 1
        return outputs

    def replay(self) -> None:
        OpRecorder.n_replayed += 1
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self._calls:
                again = func(*args, **kwargs)
                for mine, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(mine, Tensor) and _place(mine) != _place(new):
                        mine.copy_(new)


@contextmanager
def recorded_on_the_cpu() -> Iterator[type[OpRecorder]]:
    """Have steps on the CPU recorded and replayed inside the block."""
    OpRecorder.n_recorded = OpRecorder.n_replayed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(graphs.RECORDERS, "cpu", OpRecorder)
        yield OpRecorder
