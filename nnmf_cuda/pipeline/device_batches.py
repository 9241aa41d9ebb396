"""Images to a device and results back, while the host prepares the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.data import ImageBatch

__all__ = ["Streams", "computed_batches", "pipelined"]

Compute = Callable[[Tensor], Tensor]
Result = tuple[ImageBatch, NDArray[Any]]
StreamName = Literal["upload", "compute", "download"]


def computed_batches(
    batches: Iterable[ImageBatch],
    compute: Compute,
    *,
    device: torch.device,
    n_columns: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Result]:
    """Yield each batch with what `compute` makes of its images, in order.

    On a GPU batch i + 1 is staged and uploaded while batch i is computed, and a result is yielded
    when the batch after it is on its way; there are never more than two batches on the device.
    Elsewhere a result is computed when it is asked for.

    Parameters
    ----------
    batches : iterable of ImageBatch
        Also without images: nothing is then computed.
    compute : callable
        Maps uint8 images (n, height, width) on `device` to a tensor (n, n_columns) there. Called
        without gradients, on the stream that is current when the first batch is asked for.
    device : torch.device
        Where `compute` works.
    n_columns : int
        Columns of a result.
    dtype : torch.dtype, default=torch.float32
        Of the results.

    Yields
    ------
    batch : ImageBatch
    result : ndarray of shape (n, n_columns)
        The caller's to keep.
    """
    if device.type == "cuda":
        yield from pipelined(batches, compute, _CudaStreams(device), n_columns, dtype)
        return
    for batch in batches:
        result = np.empty((len(batch.images), n_columns), _numpy_dtype(dtype))
        if len(result):
            with torch.no_grad():
                result[:] = compute(torch.from_numpy(batch.images).to(device)).cpu().numpy()
        yield batch, result


class Streams(Protocol):
    """Memory and queues of a device: all that a pipeline asks of it."""

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the host that is copied from and to without the host's help."""

    def device_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the device, free for what is submitted to "compute" from now on."""

    def submit(self, stream: StreamName, work: Callable[[], None]) -> None:
        """Have work done after all that is in the stream, and no later than `finish`."""

    def record(self, stream: StreamName) -> Any:
        """Return an event that happens when all that is in the stream is done."""

    def hold(self, stream: StreamName, event: Any) -> None:
        """Let what is submitted to the stream from now on wait for the event."""

    def wait(self, event: Any) -> None:
        """Let the host wait for the event."""

    def finish(self) -> None:
        """Let the host wait for all streams."""


def pipelined(
    batches: Iterable[ImageBatch],
    compute: Compute,
    streams: Streams,
    n_columns: int,
    dtype: torch.dtype,
) -> Iterator[Result]:
    """Yield what `computed_batches` does, through two slots that take turns."""
    slots = cycle(_Slot(streams, n_columns, dtype) for _ in range(2))
    under_way: deque[tuple[ImageBatch, _Slot | None]] = deque()

    def oldest() -> Result:
        batch, slot = under_way.popleft()
        if slot is None:
            return batch, np.empty((0, n_columns), _numpy_dtype(dtype))
        return batch, slot.receive()

    try:
        for batch in batches:
            slot = next(slots) if len(batch.images) else None
            if slot is not None:
                slot.send(batch.images, compute)
            under_way.append((batch, slot))
            if len(under_way) == 2:
                # The slot that the next batch gets is free after this.
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        # The slots' memory may not be let go while a stream still works in it.
        streams.finish()


class _Slot:
    """A place for one batch on its way through the device.

    Events order the three streams within a batch. Between two batches in the same slot stands
    `receive`: the host has then waited for the last thing that happens to a batch.
    """

    def __init__(self, streams: Streams, n_columns: int, dtype: torch.dtype) -> None:
        self._streams = streams
        self._n_columns = n_columns
        self._dtype = dtype
        self._capacity: tuple[int, ...] = (0,)
        self._n_rows = 0
        self._returned: Any = None  # the event of a batch that has not been received

    def send(self, images: NDArray[np.uint8], compute: Compute) -> None:
        """Start a batch; only where the one before has been received."""
        assert self._returned is None
        if len(images) > self._capacity[0] or images.shape[1:] != self._capacity[1:]:
            self._allocate(images.shape)
        self._n_rows = n = len(images)
        self._staged[:n].copy_(torch.from_numpy(images))
        streams = self._streams
        streams.submit("upload", lambda: _copy(self._images[:n], self._staged[:n]))
        streams.hold("compute", streams.record("upload"))
        streams.submit("compute", lambda: _compute(self._results[:n], compute, self._images[:n]))
        streams.hold("download", streams.record("compute"))
        streams.submit("download", lambda: _copy(self._landed[:n], self._results[:n]))
        self._returned = streams.record("download")

    def receive(self) -> NDArray[Any]:
        """Wait for the batch and return its results; the slot is then free."""
        self._streams.wait(self._returned)
        self._returned = None
        result: NDArray[Any] = self._landed[: self._n_rows].numpy().copy()
        return result

    def _allocate(self, shape: tuple[int, ...]) -> None:
        streams, results = self._streams, (shape[0], self._n_columns)
        self._capacity = shape
        self._staged = streams.host_memory(shape, torch.uint8)
        self._landed = streams.host_memory(results, self._dtype)
        self._images = streams.device_memory(shape, torch.uint8)
        self._results = streams.device_memory(results, self._dtype)
        # What "compute" has still to do may work in memory that was handed to us.
        streams.hold("upload", streams.record("compute"))


def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)


def _compute(to: Tensor, compute: Compute, images: Tensor) -> None:
    with torch.no_grad():
        to.copy_(compute(images))


class _CudaStreams:
    """Two streams for copies beside the one that is current."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {
            "upload": torch.cuda.Stream(device),
            "compute": torch.cuda.current_stream(device),
            "download": torch.cuda.Stream(device),
        }

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with torch.cuda.stream(self._streams["compute"]):
            return torch.empty(shape, dtype=dtype, device=self._device)

    def submit(self, stream: StreamName, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._streams[stream]):
            work()

    def record(self, stream: StreamName) -> torch.cuda.Event:
        event: torch.cuda.Event = self._streams[stream].record_event()
        return event

    def hold(self, stream: StreamName, event: torch.cuda.Event) -> None:
        self._streams[stream].wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def finish(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found
