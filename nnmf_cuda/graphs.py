"""Steps that are made again and again, as CUDA graphs: recorded once, then one launch each.

Networks and factorisations here are small, so that a GPU waits for the host between the kernels of
a step. `Repeated` makes a step a few times as it is, then records it, and from then on replays it:
all its kernels are one launch, and what they compute is what they would have computed one by one.

The environment variable ``NNMF_CUDA_GRAPHS=0`` has every step made as it is; so has
`nnmf_cuda.ops.reference_path`.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nnmf_cuda import ops

__all__ = ["Recorder", "Repeated", "count_on_host", "why_not_replayed"]

Outputs = TypeVar("Outputs")
_SWITCH = "NNMF_CUDA_GRAPHS"
_logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """What records the work of a device."""

    def __init__(self, device: torch.device) -> None: ...

    def make(self, function: Callable[[], Outputs]) -> Outputs:
        """Call a function as it must be called before it is recorded."""

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        """Record what a function does, which computes nothing; raise RuntimeError if it cannot."""

    def replay(self) -> None:
        """Do what was recorded, on the same memory."""


class _CudaRecorder:
    """A CUDA graph, with memory of its own for what is made within a step."""

    def __init__(self, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = _side_stream(device)

    def make(self, function: Callable[[], Outputs]) -> Outputs:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function()
        current.wait_stream(self._stream)
        return outputs

    def record(self, function: Callable[[], Outputs]) -> Outputs:
        # The outer block goes back to the current stream also where the inner one fails to end.
        with torch.cuda.stream(self._stream), _no_garbage_collection():
            # Other threads may do with the device what they like meanwhile.
            with torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode="thread_local"
            ):
                return function()

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Leave garbage inside the block: an old graph among it must not end while one is recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device on which steps are made before they are recorded.

    One for all: memory that such a step has given back can only go to another one, which waits for
    the current stream first.
    """
    return torch.cuda.Stream(device)


RECORDERS: dict[str, type[Recorder]] = {"cuda": _CudaRecorder}
"""By type of device; where there is none a step is made as it is."""


class _Recording(threading.local):
    """What this thread is recording."""

    effects: list[Callable[[], None]] | None = None  # on the host, at each replay; None: nothing


_recording = _Recording()


def count_on_host(effect: Callable[[], None]) -> None:
    """Have something done on the host now and, where a step is being recorded, at its replays.

    For counts of calls and the like, which know nothing of what the device has computed.
    """
    if _recording.effects is None:
        effect()
    else:
        _recording.effects.append(effect)


def why_not_replayed(asked: object) -> str:
    """Say why a call of a model might differ from the one that was recorded; empty if it does not.

    A replay does not go through Python. What torch's modules and ours do there is the same at every
    call; others may draw numbers, count, or decide by what the device has computed.
    """
    if not isinstance(asked, nn.Module):
        return f"a {type(asked).__name__} is no module"
    for name, part in asked.named_modules():
        where = f"its part {name}" if name else "it"
        if not type(part).__module__.startswith(("torch.nn.", "nnmf_cuda.")):
            return f"{where} is a {type(part).__qualname__}, neither of torch.nn nor of nnmf_cuda"
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            return f"{where} has a hook"
        if part._backward_pre_hooks or "forward" in part.__dict__:
            return f"{where} has a hook or another forward"
    return ""


@dataclass(frozen=True)
class _Recorded(Generic[Outputs]):
    """What was recorded of a step, and the memory by which it takes and gives."""

    recorder: Recorder
    inputs: list[Tensor]
    outputs: Outputs
    effects: list[Callable[[], None]]

    @classmethod
    def of(
        cls, recorder: Recorder, function: Callable[..., Outputs], inputs: list[Tensor]
    ) -> _Recorded[Outputs]:
        """Record a function of these inputs, which become the memory; RuntimeError if it cannot."""
        effects: list[Callable[[], None]] = []
        before, _recording.effects = _recording.effects, effects
        try:
            outputs = recorder.record(lambda: function(*inputs))
        finally:
            _recording.effects = before
        return cls(recorder, inputs, outputs, effects)

    def replay(self) -> Outputs:
        """Make the step with what the inputs hold now."""
        self.recorder.replay()
        for effect in self.effects:
            effect()
        return self.outputs


class Repeated(Generic[Outputs]):
    """A step that is made again and again; on a GPU a CUDA graph of it, once it has been seen.

    Call it with the tensors that differ from step to step, on the device or, pinned, on the host;
    they are copied where their shapes are those of the step that was recorded, and else it is
    recorded anew. The outputs are valid until the next call.

    The function may change tensors that it holds, but only in place. It must not wait for the
    device, nor make tensors of numbers of the host, and what is a Python number at its recording
    stays so. Random numbers of torch's generators of the device are new at every replay. It should
    not hold this object: a circle of the two would keep the device's memory for a while.

    Parameters
    ----------
    function : callable
        Takes tensors; returns anything made of tensors, which are not read in between.
    device : torch.device
        Where all this is.
    name : str
        What messages call the step.
    asked : optional
        The model that the function calls: see `why_not_replayed`.
    holds : sequence of Tensor, default=()
        Tensors that the function reads and others may move: their addresses are looked at, and the
        step recorded anew where one has changed.
    n_plain : int, default=2
        How often it is made as it is, at least once, before it is recorded.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        device: torch.device,
        *,
        name: str,
        asked: object = None,
        holds: Sequence[Tensor] = (),
        n_plain: int = 2,
    ) -> None:
        self._function, self._device, self._name = function, device, name
        self._holds, self._n_plain = tuple(holds), n_plain
        self._on_host = device.type == "cpu"
        if isinstance(asked, nn.Module):
            self._holds += (*asked.parameters(), *asked.buffers())
        self._seen: object = None  # shapes of the inputs, addresses of what is held
        self._n_made = 0  # steps since these are what they are
        self._recorder: Recorder | None = None
        self._recorded: _Recorded[Outputs] | None = None
        self.records = _is_wanted(device)
        if self.records and asked is not None and (why := why_not_replayed(asked)):
            self._go_on_plainly(f"of the model {why}", logging.INFO)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Make the step."""
        if not self.records:
            return self._function(*(inputs if self._on_host else self._moved(inputs)))
        seen = (
            [(given.shape, given.dtype) for given in inputs],
            [held.data_ptr() for held in self._holds],
        )
        if seen != self._seen:
            self._seen, self._n_made, self._recorded = seen, 0, None
            self._recorder = RECORDERS[self._device.type](self._device)
        if self._recorded is not None:
            for mine, given in zip(self._recorded.inputs, inputs, strict=True):
                mine.copy_(given, non_blocking=True)
            return self._recorded.replay()
        assert self._recorder is not None
        self._n_made += 1
        if self._n_made <= self._n_plain:
            return self._recorder.make(lambda: self._function(*self._moved(inputs)))
        try:
            memory = [given.clone() for given in self._moved(inputs)]
            self._recorded = _Recorded.of(self._recorder, self._function, memory)
        except RuntimeError as error:
            self._go_on_plainly(str(error), logging.WARNING)
            return self._function(*self._moved(inputs))
        return self._recorded.replay()

    def _go_on_plainly(self, why: str, level: int) -> None:
        self.records = False
        _logger.log(level, "no CUDA graph of %s, which goes on without: %s", self._name, why)

    def _moved(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [given.to(self._device, non_blocking=True) for given in inputs]


def _is_wanted(device: torch.device) -> bool:
    """Whether steps on a device are recorded now; not within what is being recorded already."""
    return (
        device.type in RECORDERS
        and _recording.effects is None
        and os.environ.get(_SWITCH) != "0"
        and not ops.is_reference_path()
        and not torch.compiler.is_compiling()
    )
