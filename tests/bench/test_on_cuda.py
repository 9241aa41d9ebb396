"""What benchmarks do on CUDA alone, with stand-ins for the device: events, peers, facts."""

from __future__ import annotations

import contextlib
import sys
import types

import numpy as np
import pytest
import torch

from bench import cuda_peers, measure
from bench.case import NotApplicableError, Size
from bench.cases import factorization, get_cases
from bench.ceilings import require_full_float32
from bench.measure import cuda_sampler, interleaved_seconds, largest_error
from nnmf_cuda.benchmarks.records import describe_gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class FakeEvent:
    """Takes the time of a made-up clock."""

    def __init__(self, clock):
        self.clock, self.time = clock, None

    def record(self):
        assert self.time is None, "recorded twice"
        self.clock.log.append("record")
        self.time = self.clock.now

    def elapsed_time(self, end):
        assert self.clock.log[-1] == "synchronize", "read before the device was done"
        return end.time - self.time


class FakeClock:
    """A device whose queue is executed at once, in milliseconds that the calls add."""

    def __init__(self, device=None):
        self.now, self.log = 0.0, []

    def event(self):
        return FakeEvent(self)

    def flush_l2(self):
        self.log.append("flush")
        self.now += 100.0  # must not count

    def synchronize(self):
        self.log.append("synchronize")


def call_taking(clock, milliseconds):
    def call():
        clock.log.append("call")
        clock.now += milliseconds

    return call


def test_every_call_is_between_events_of_its_own_after_a_flush():
    clock = FakeClock()
    sample = cuda_sampler(call_taking(clock, 0.5), clock)
    clock.log.clear()
    assert sample() == pytest.approx(0.5e-3)
    once = ["flush", "record", "call", "record"]
    assert clock.log == [*once * 4, "synchronize"]  # blocks of about 2 ms
    sample()
    assert clock.log.count("synchronize") == 2


def test_a_long_call_is_a_sample_and_is_warmed_up():
    clock = FakeClock()
    sample = cuda_sampler(call_taking(clock, 700.0), clock)
    assert clock.log.count("call") >= 3
    clock.log.clear()
    assert sample() == pytest.approx(0.7)
    assert clock.log.count("call") == 1


def test_calls_on_cuda_are_timed_in_turns(monkeypatch):
    clocks = []

    def new_clock(device):
        clocks.append(FakeClock())
        return clocks[-1]

    monkeypatch.setattr(measure, "CudaClock", new_clock)
    order = []

    def call(name, milliseconds):
        def run():
            order.append(name)
            clocks[0].now += milliseconds

        return run

    calls = {"a": call("a", 5.0), "b": call("b", 7.0)}
    timed = interleaved_seconds(calls, device=CUDA, min_run_seconds=1e-6)
    assert len(clocks) == 1  # one buffer to flush for all
    assert timed.method == "interleaved_cuda_events_l2_flushed"
    assert timed.l2 == "flushed"
    np.testing.assert_allclose(timed.seconds["a"], 5e-3)
    np.testing.assert_allclose(timed.seconds["b"], 7e-3)
    assert order[-10:] == ["a", "b"] * 5


def test_nothing_is_said_of_the_l2_of_a_cpu():
    timed = interleaved_seconds({"a": lambda: None}, device=CPU, min_run_seconds=1e-3)
    assert (timed.method, timed.l2) == ("interleaved", None)


@pytest.mark.needs_cuda
def test_cuda_clock_times_what_the_device_does():
    clock = measure.CudaClock(torch.device("cuda"))
    a = torch.rand(4096, 4096, device="cuda")
    one, four = (cuda_sampler(call, clock) for call in (lambda: a @ a, lambda: a @ a @ a @ a @ a))
    # The quickest of several: others may use the device meanwhile.
    assert min(four() for _ in range(5)) > 2 * min(one() for _ in range(5)) > 0


# Peers -----------------------------------------------------------------------------------------


@pytest.fixture
def cupy_by_numpy(monkeypatch):
    """Serve CuPy's functions by NumPy's, and let CPU tensors pass for CUDA ones."""
    fake = types.ModuleType("cupy")
    fake.from_dlpack = lambda tensor: tensor.numpy()
    fake.log = np.log
    entered = []

    class Stream:
        null = None

        def __init__(self, pointer=0):
            self.pointer = pointer

        def __enter__(self):
            entered.append(self.pointer)

        def __exit__(self, *_):
            pass

    Stream.null = Stream()
    fake.cuda = types.SimpleNamespace(Stream=Stream, ExternalStream=Stream)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(cuda_peers, "_need_cuda", lambda inputs: CPU)
    current = types.SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    return entered, current


def mu_inputs(beta_loss, *, dtype="float32", **shape):
    sizes = {"n_samples": 13, "n_features": 31, "n_components": 4, "n_iter": 3, **shape}
    options = {"beta_loss": beta_loss, "own_X": "n_batch" in shape}
    return factorization.NNMF_MU.inputs(Size("s", sizes, dtype, options), 0, CPU)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
@pytest.mark.parametrize("shape", [{}, {"n_batch": 3}, {"n_batch": 1}])
def test_cupy_formula_is_right(cupy_by_numpy, beta_loss, shape):
    inputs = mu_inputs(beta_loss, **shape)
    found = cuda_peers.cupy_mu(inputs)()
    assert largest_error(found, factorization.NNMF_MU.truth(inputs)) < 1e-5
    entered, current = cupy_by_numpy
    assert entered == [0]
    current.cuda_stream = 77  # another stream than the default one
    cuda_peers.cupy_mu(inputs)()
    assert entered == [0, 77]


def test_cupy_divergence_is_right(cupy_by_numpy):
    inputs = mu_inputs(1.0)
    truth = factorization.NNMF_DIVERGENCE.truth(inputs)
    assert largest_error(cuda_peers.cupy_divergence(inputs)(), truth) < 1e-5


@pytest.mark.parametrize("build", [cuda_peers.cupy_mu, cuda_peers.cupy_divergence])
def test_cupy_says_what_it_does_not_do(cupy_by_numpy, build):
    with pytest.raises(NotApplicableError, match="Kullback-Leibler"):
        build(mu_inputs(1.5))
    with pytest.raises(NotApplicableError, match="floating point only"):
        build(mu_inputs(1.0, dtype="uint8"))


def test_cupy_and_graphs_are_not_for_the_cpu():
    for build in (
        cuda_peers.cupy_mu,
        cuda_peers.cupy_divergence,
        cuda_peers.captured(lambda inputs: pytest.fail("built on the CPU")),
    ):
        with pytest.raises(NotApplicableError, match="CUDA only"):
            build(mu_inputs(1.0))


def test_a_captured_call_is_run_once_and_replayed(monkeypatch):
    log = []

    class Graph:
        def replay(self):
            log.append("replay")

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            log.append("wait")

    @contextlib.contextmanager
    def scope(name):
        log.append(f"{name} begins")
        yield
        log.append(f"{name} ends")

    monkeypatch.setattr(cuda_peers, "_need_cuda", lambda inputs: CPU)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: scope("stream"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: scope("capture"))
    replay = cuda_peers.captured(lambda inputs: lambda: log.append("call") or "result")({})
    assert log == [
        *("wait", "stream begins", "call", "stream ends", "wait"),
        *("capture begins", "call", "capture ends"),
    ]
    log.clear()
    assert [replay(), replay()] == ["result", "result"]
    assert log == ["replay", "replay"]


def test_memory_of_cupy_and_of_graphs_is_not_torchs_to_tell():
    known = {name: cuda_peers.memory_is_known(name) for name in ("ours", "reference", "torchnmf")}
    assert all(known.values())
    assert not cuda_peers.memory_is_known("CuPy")
    assert not cuda_peers.memory_is_known("ours, CUDA graph")


def test_peers_without_a_batch_take_one_problem_after_the_other():
    inputs = mu_inputs(1.0, n_batch=3)
    build = factorization.NNMF_MU.implementations["scikit-learn mu"]
    assert largest_error(build(inputs)(), factorization.NNMF_MU.truth(inputs)) < 1e-4
    with pytest.raises(NotApplicableError, match="knows no batch; 65 problems"):
        build(mu_inputs(1.0, n_batch=65, n_features=4))


def test_each_problem_of_a_batch_can_have_an_X_of_its_own():
    own, shared = (
        factorization.NNMF_MU.inputs(
            Size("s", {"n_samples": 5, "n_features": 7, "n_components": 2, "n_batch": 3}, o, b),
            0,
            CPU,
        )
        for o, b in (("uint8", {"own_X": True}), ("float32", {}))
    )
    assert own["X"].shape == (3, 5, 7)
    assert not torch.equal(own["X"][0], own["X"][1])
    assert shared["X"].shape == (5, 7)
    shape = {"n_samples": 5, "n_features": 7, "n_components": 2, "n_batch": 3, "n_iter": 1}
    work = [
        factorization.NNMF_MU.work(Size("s", shape, "float32", {"beta_loss": 1.0, "own_X": own_X}))
        for own_X in (True, False)
    ]
    assert work[0].flops == work[1].flops
    assert work[0].bytes - work[1].bytes == 2 * (3 - 1) * 5 * 7 * 4


# What is measured, and where --------------------------------------------------------------------


def test_sizes_are_those_of_the_device():
    (case,) = get_cases(["nnmf_mu"])
    assert case.sizes_on(CPU, smoke=False) == case.sizes
    assert case.sizes_on(CUDA, smoke=False) == case.cuda_sizes
    assert case.sizes_on(CUDA, smoke=True) == case.sizes_on(CPU, smoke=True) == case.smoke
    (purify,) = get_cases(["purify"])
    assert purify.sizes_on(CUDA, smoke=False) == purify.sizes


def test_tf32_is_refused(monkeypatch):
    require_full_float32()
    on = types.SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", on)
    with pytest.raises(ValueError, match="allow_tf32 is on"):
        require_full_float32()


@pytest.fixture
def h100(monkeypatch):
    properties = types.SimpleNamespace(
        name="NVIDIA H100",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=85 * 10**9,
        L2_cache_size=50 * 2**20,
        uuid="1234",
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.fixture
def driver(h100, monkeypatch):
    """A stand-in for nvidia-ml-py; what it does not know, it raises."""

    class Unknown(Exception):
        pass

    def refuse(*_):
        raise Unknown

    clocks = {"sm": 1755, "mem": 2619}
    fake = types.SimpleNamespace(
        NVMLError=Unknown,
        NVML_CLOCK_SM="sm",
        NVML_CLOCK_MEM="mem",
        NVML_TEMPERATURE_GPU="gpu",
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMaxClockInfo=lambda gpu, kind: {"sm": 1980, "mem": 2619}[kind],
        nvmlDeviceGetPowerManagementLimit=refuse,
        nvmlDeviceGetClockInfo=lambda gpu, kind: clocks[kind] if gpu == "GPU-1234" else refuse(),
        nvmlDeviceGetTemperature=lambda gpu, kind: 41,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpu_is_described(driver):
    found = describe_gpu(CUDA)
    assert found["name"] == "NVIDIA H100"
    assert found["compute_capability"] == "9.0"
    assert found["sm_count"] == 132
    assert found["driver"] == "580.1"
    assert found["max_sm_mhz"] == 1980
    assert found["power_limit_watts"] is None
    assert measure.gpu_clocks(CUDA) == {"sm_mhz": 1755, "memory_mhz": 2619, "celsius": 41}


@pytest.mark.parametrize("broken", ["absent", "nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_gpu_whose_driver_does_not_tell(driver, monkeypatch, broken):
    def refuse(*_):
        raise driver.NVMLError

    if broken == "absent":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        setattr(driver, broken, refuse)
    assert measure.gpu_clocks(CUDA) == {"sm_mhz": None, "memory_mhz": None, "celsius": None}
    assert describe_gpu(CUDA)["driver"] is None
