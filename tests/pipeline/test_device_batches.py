"""The order of copies and computation, on a device that does only what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnmf_cuda.data import ImageBatch, ReadFailure
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.pipeline import extract as device_batches
from nnmf_cuda.pipeline.extract import computed_batches, pipelined

SHAPE = (3, 4)
N_COLUMNS = 5
DTYPE = torch.float32


class FakeStreams:
    """Streams that run at any time, in any order that events do not forbid.

    Work is done when the host waits, or now and then by chance. New memory is full of nonsense.
    """

    def __init__(self, seed: int, eagerness: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.eagerness = eagerness
        self.queues: dict[str, list[Callable[[], bool]]] = {
            "upload": [],
            "compute": [],
            "download": [],
        }
        self.log: list[str] = []

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 99, dtype=dtype)

    def device_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = torch.full(shape, 98, dtype=dtype)
        # As if "compute" had let go of it a moment ago: it still writes there.
        self._queue("compute", lambda: bool(memory.fill_(97).any()))
        return memory

    def submit(self, stream: str, work: Callable[[], object]) -> None:
        def step() -> bool:
            work()
            self.log.append(f"did {stream}")
            return True

        self._queue(stream, step)
        self.log.append(f"submitted {stream}")

    def record(self, stream: str) -> list[bool]:
        event: list[bool] = []

        def step() -> bool:
            event.append(True)
            return True

        self._queue(stream, step)
        return event

    def hold(self, stream: str, event: list[bool]) -> None:
        self._queue(stream, lambda: bool(event))

    def wait(self, event: list[bool]) -> None:
        self.log.append("wait")
        while not event:
            assert self._advance(), "deadlock: the host waits for what never happens"

    def finish(self) -> None:
        self.log.append("finish")
        while any(self.queues.values()):
            assert self._advance(), "deadlock: a stream waits for what never happens"

    def _queue(self, stream: str, step: Callable[[], bool]) -> None:
        self.queues[stream].append(step)
        while self.rng.random() < self.eagerness and self._advance():
            pass

    def _advance(self) -> bool:
        """Take one step in a stream chosen by chance; False if none can."""
        for name in self.rng.permutation(list(self.queues)):
            if self.queues[name] and self.queues[name][0]():
                self.queues[name].pop(0)
                return True
        return False


def compute(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :N_COLUMNS].double() + images.flatten(1).sum(1, keepdim=True) / 7


def batches_of(sizes: list[int]) -> list[ImageBatch]:
    rng = np.random.default_rng(len(sizes))
    found, start = [], 0
    for size in sizes:
        images = rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8)
        files = [Path(f"{start + i}.png") for i in range(size)]
        failures = [] if size else [ReadFailure(Path("bad.png"), "why")]
        found.append(ImageBatch(start, images, files, failures))
        start += size
    return found


def assert_right(results: list[tuple[ImageBatch, np.ndarray]], batches: list[ImageBatch]) -> None:
    assert [id(batch) for batch, _ in results] == [id(batch) for batch in batches]
    for batch, result in results:
        want = compute(torch.from_numpy(batch.images)).float().numpy()
        np.testing.assert_array_equal(result, want)
        assert result.shape == (len(batch.images), N_COLUMNS)
        assert result.dtype == np.float32


SIZES = [[], [4], [0], [4, 4, 4, 4, 4, 3], [4, 0, 4, 0, 0, 4, 2], [0, 2, 5, 1, 8, 8, 3], [1] * 9]


@pytest.mark.parametrize("eagerness", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_order_that_events_allow_gives_the_results(
    sizes: list[int], eagerness: float
) -> None:
    batches = batches_of(sizes)
    for seed in range(20):
        streams = FakeStreams(seed, eagerness)
        assert_right(list(pipelined(batches, compute, streams, N_COLUMNS, DTYPE)), batches)
        assert streams.log[-1] == "finish"
        assert not any(streams.queues.values())


def test_bytes_and_floats_take_turns() -> None:
    batches = batches_of([4, 4, 4, 3])
    for i in (1, 2):
        batches[i] = batches[i]._replace(images=batches[i].images.astype(np.float32) / 255)
    for seed in range(20):
        streams = FakeStreams(seed, 0.5)
        assert_right(list(pipelined(batches, compute, streams, N_COLUMNS, DTYPE)), batches)


def only(kept: tuple[str, ...], streams: FakeStreams) -> FakeStreams:
    """Forget some of what holds streams or the host back."""
    hold, wait = streams.hold, streams.wait
    streams.hold = lambda stream, event: hold(stream, event) if stream in kept else None  # type: ignore[method-assign]
    streams.wait = lambda event: wait(event) if "host" in kept else None  # type: ignore[method-assign]
    return streams


@pytest.mark.parametrize("forgotten", ["upload", "compute", "download", "host"])
def test_each_of_the_waits_is_needed(forgotten: str) -> None:
    batches = batches_of([4, 4, 4, 6, 6, 2])
    kept = tuple({"upload", "compute", "download", "host"} - {forgotten})

    def wrong(seed: int) -> bool:
        streams = only(kept, FakeStreams(seed, 0.5))
        try:
            assert_right(list(pipelined(batches, compute, streams, N_COLUMNS, DTYPE)), batches)
        except AssertionError:
            return True
        return False

    assert sum(wrong(seed) for seed in range(20)) >= 10


def test_one_slot_would_be_filled_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_batches, "cycle", lambda slots: iter([next(slots)] * 99))
    with pytest.raises(AssertionError):
        list(pipelined(batches_of([4, 4]), compute, FakeStreams(0, 0.5), N_COLUMNS, DTYPE))


def test_a_batch_is_on_its_way_before_the_host_waits_for_the_one_before() -> None:
    streams = FakeStreams(0, 0.0)

    def logged() -> Iterator[ImageBatch]:
        for batch in batches_of([4, 4, 4]):
            streams.log.append("asked")
            yield batch

    for _ in pipelined(logged(), compute, streams, N_COLUMNS, DTYPE):
        streams.log.append("given")
    host = [line for line in streams.log if not line.startswith("did")]
    sent = ["asked", "submitted upload", "submitted compute", "submitted download"]
    taken = ["wait", "given"]
    assert host == [*sent, *sent, *taken, *sent, *taken, *taken, "finish"]


@pytest.mark.parametrize("n_taken", [0, 1, 2])
def test_who_stops_early_leaves_nothing_under_way(n_taken: int) -> None:
    streams = FakeStreams(0, 0.0)
    results = pipelined(batches_of([4] * 5), compute, streams, N_COLUMNS, DTYPE)
    for _ in range(n_taken):
        next(results)
    results.close()
    assert not any(streams.queues.values())
    assert ("finish" in streams.log) == (n_taken > 0)


def test_a_failure_among_the_batches_leaves_nothing_under_way() -> None:
    streams = FakeStreams(0, 0.0)

    def failing() -> Iterator[ImageBatch]:
        yield batches_of([4])[0]
        raise ValueError("cannot read")

    with pytest.raises(ValueError, match="cannot read"):
        list(pipelined(failing(), compute, streams, N_COLUMNS, DTYPE))
    assert not any(streams.queues.values())


def test_results_are_the_callers_to_keep() -> None:
    batches = batches_of([4] * 4)
    results = []
    for batch, result in pipelined(batches, compute, FakeStreams(0, 0.5), N_COLUMNS, DTYPE):
        results.append((batch, result.copy()))
        result[:] = -1
        batch.images[:] = batch.images  # still the batch's own
    assert_right(results, batches)


def extractor(device: str) -> FeatureExtractor:
    components = torch.rand(N_COLUMNS, 12, generator=torch.Generator().manual_seed(0))
    found: FeatureExtractor = FeatureExtractor(
        components, torch.arange(N_COLUMNS), image_shape=SHAPE
    ).to(device)
    return found


@pytest.mark.parametrize("sizes", SIZES)
def test_on_the_cpu_each_batch_is_computed_when_asked_for(sizes: list[int]) -> None:
    asked = 0

    def counted(images: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        assert not torch.is_grad_enabled()
        return compute(images)

    batches = batches_of(sizes)
    results = computed_batches(batches, counted, device=torch.device("cpu"), n_columns=N_COLUMNS)
    kept: list[Any] = []
    for index, result in enumerate(results):
        kept.append(result)
        assert asked == sum(size > 0 for size in sizes[: index + 1])
        assert torch.is_grad_enabled()
    assert_right(kept, batches)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("sizes", [[64] * 20 + [5], [64, 0, 100, 3]])
@pytest.mark.parametrize("own_stream", [False, True])
def test_features_of_the_gpu_are_those_of_the_cpu(sizes: list[int], own_stream: bool) -> None:
    batches = batches_of(sizes)
    want = extractor("cpu")
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        ours = extractor("cuda")
        results = list(
            computed_batches(
                batches, ours.coefficients, device=ours.components.device, n_columns=N_COLUMNS
            )
        )
    assert [id(batch) for batch, _ in results] == [id(batch) for batch in batches]
    for batch, result in results:
        if len(result):
            features = want.coefficients(torch.from_numpy(batch.images)).numpy()
            np.testing.assert_allclose(result, features, rtol=1e-4, atol=1e-5)


@pytest.mark.needs_cuda
def test_copies_do_not_wait_for_the_gpus_work() -> None:
    """Slow work on the device; the host hands over the next batch long before it ends."""
    batches = batches_of([4, 4])
    done_at_second = []
    first = torch.cuda.Event()
    compute(torch.from_numpy(batches[0].images).cuda())  # loads the kernels

    def slow(images: Tensor) -> Tensor:
        torch.cuda._sleep(500_000_000)
        result = compute(images)
        first.record()
        return result

    def watched() -> Iterator[ImageBatch]:
        yield batches[0]
        done_at_second.append(first.query())
        yield batches[1]

    device = torch.device("cuda")
    list(computed_batches(watched(), slow, device=device, n_columns=N_COLUMNS))
    assert done_at_second == [False]
