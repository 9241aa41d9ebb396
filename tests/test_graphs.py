"""Steps that are recorded give what they give step by step.

On the CPU an `OpRecorder` stands for the CUDA graph.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda import graphs, ops
from nnmf_cuda.graphs import Repeated, count_on_host, why_not_replayed
from nnmf_cuda.models.networks import FeatureCNN, FeatureMLP
from tests.helpers import DEVICES
from tests.op_recorder import OpRecorder, recorded_on_the_cpu


@pytest.fixture
def recorder() -> Iterator[type[OpRecorder]]:
    with recorded_on_the_cpu() as recorder:
        yield recorder


@contextlib.contextmanager
def recording(device: str) -> Iterator[None]:
    """Have steps recorded on either device."""
    with recorded_on_the_cpu() if device == "cpu" else contextlib.nullcontext():
        yield


class Walk:
    """A step that reads, changes in place, makes tensors, and draws random numbers."""

    def __init__(self, device: str) -> None:
        self.at = torch.linspace(0, 1, 5, device=device)
        self.n_steps = torch.zeros((), dtype=torch.int64, device=device)

    def step(self, by: Tensor) -> dict[str, Tensor]:
        self.n_steps += 1
        noise = torch.rand(5, device=self.at.device)
        twice = 2 * by.unsqueeze(0)
        torch.where(noise < 0.5, self.at + twice[0], self.at, out=self.at)
        self.at[1:3].mul_(1.5)
        return {"sum": self.at.sum(), "noise": noise}


def walked(
    device: str, step_of: Callable[[Walk], Callable[..., dict[str, Tensor]]]
) -> list[Tensor]:
    walk = Walk(device)
    step = step_of(walk)
    torch.manual_seed(3)
    kept = []
    for i in range(7):
        outputs = step(torch.arange(5.0, device=device) * i)
        kept += [value.clone() for value in outputs.values()]
    return [*kept, walk.at, walk.n_steps]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_plain", [1, 2])
def test_a_replay_gives_what_the_step_gives(device, n_plain):
    plain = walked(device, lambda walk: walk.step)
    with recording(device):
        where = torch.device(device, 0) if device == "cuda" else torch.device(device)
        found = walked(
            device, lambda walk: Repeated(walk.step, where, name="a walk", n_plain=n_plain)
        )
    for mine, expected in zip(found, plain, strict=True):
        assert torch.equal(mine, expected)


def test_it_is_recorded_once_and_replayed(recorder):
    walked("cpu", lambda walk: Repeated(walk.step, torch.device("cpu"), name="a walk"))
    assert (recorder.n_recorded, recorder.n_replayed) == (1, 5)


def test_other_shapes_and_moved_tensors_are_recorded_anew(recorder):
    held = torch.ones(3)
    step = Repeated(
        lambda x: x + held[: len(x)], torch.device("cpu"), name="s", holds=[held], n_plain=1
    )
    for size in (3, 3, 3, 2, 2, 2):
        x = torch.rand(size)
        assert torch.equal(step(x), x + 1)
    assert recorder.n_recorded == 2
    held.data = torch.full((3,), 5.0)
    for _ in range(3):
        assert torch.equal(step(x), x + 5)
    assert recorder.n_recorded == 3


def test_parameters_that_move_are_noticed(recorder):
    model = FeatureMLP(3, 2, (4,)).requires_grad_(False)
    step = Repeated(model, torch.device("cpu"), name="s", asked=model, n_plain=1)
    x = torch.rand(4, 3)
    for scale in (1.0, 2.0):
        for parameter in model.parameters():
            parameter.data = scale * parameter.data
        for _ in range(3):
            assert torch.equal(step(x), model(x))
    assert recorder.n_recorded == 2


def test_what_needs_the_host_goes_on_step_by_step(recorder, caplog):
    at = torch.zeros(())

    def step(x: Tensor) -> Tensor:
        at.add_(1)
        return x * 2 if bool(at > 3) else x

    repeated = Repeated(step, torch.device("cpu"), name="a doubtful step")
    found = [float(repeated(torch.tensor(1.0))) for _ in range(5)]
    assert found == [1, 1, 1, 2, 2]
    assert float(at) == 5
    assert recorder.n_recorded == 0
    assert "no CUDA graph of a doubtful step" in caplog.text
    assert "waits for the device" in caplog.text
    assert caplog.text.count("no CUDA graph") == 1


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x[x > 0.5],
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: x * x.max().item(),
        lambda x: x.unique(),
        lambda x: x + len(x.nonzero()),
    ],
)
def test_the_recorder_finds_what_a_graph_could_not_hold(recorder, step):
    repeated = Repeated(step, torch.device("cpu"), name="s", n_plain=1)
    x = torch.tensor([0.1, 0.9, 0.7])
    for _ in range(3):
        assert torch.equal(repeated(x), step(x))
    assert recorder.n_recorded == 0


def test_recording_computes_nothing(recorder):
    walk = Walk("cpu")
    before, state = walk.at.clone(), torch.get_rng_state()
    outputs = OpRecorder(torch.device("cpu")).record(lambda: walk.step(torch.ones(5)))
    assert torch.equal(walk.at, before)
    assert int(walk.n_steps) == 0
    assert bool(outputs["sum"].isnan())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_number_of_the_host_stays_what_it_was_at_the_recording(recorder):
    # Why a seed that changes from step to step must be a tensor, or be drawn before.
    numbers = iter(range(10))
    step = Repeated(lambda x: x + next(numbers), torch.device("cpu"), name="s", n_plain=1)
    assert [int(step(torch.zeros(1))) for _ in range(4)] == [0, 1, 1, 1]


def test_counts_on_the_host_are_of_every_step(recorder):
    counted = []

    def step(x: Tensor) -> Tensor:
        count_on_host(lambda: counted.append(len(x)))
        return x + 1

    repeated = Repeated(step, torch.device("cpu"), name="s")
    for n_steps in range(1, 6):
        repeated(torch.zeros(7))
        assert counted == [7] * n_steps
    assert recorder.n_replayed == 3


def test_within_what_is_recorded_nothing_is_recorded(recorder):
    def outer(x: Tensor) -> Tensor:
        inner = Repeated(lambda x: x + 1, torch.device("cpu"), name="inner", n_plain=1)
        for _ in range(3):
            x = inner(x)
        return x

    repeated = Repeated(outer, torch.device("cpu"), name="outer", n_plain=1)
    repeated(torch.zeros(1))  # made as it is: the inner one is recorded
    assert recorder.n_recorded == 1
    assert [float(repeated(torch.zeros(1))) for _ in range(2)] == [3, 3]
    assert recorder.n_recorded == 2


def test_the_switch_and_the_reference_path_have_steps_made_as_they_are(recorder, monkeypatch):
    def n_recorded() -> int:
        walked("cpu", lambda walk: Repeated(walk.step, torch.device("cpu"), name="a walk"))
        return recorder.n_recorded

    with ops.reference_path():
        assert n_recorded() == 0
    monkeypatch.setenv("NNMF_CUDA_GRAPHS", "0")
    assert n_recorded() == 0
    monkeypatch.setenv("NNMF_CUDA_GRAPHS", "1")
    assert n_recorded() == 1


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * x


def test_only_what_is_known_is_recorded(recorder, caplog):
    caplog.set_level(logging.INFO)
    model = FeatureCNN(4, 2)
    assert why_not_replayed(model) == ""
    assert why_not_replayed(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == ""
    assert "a function is no module" in why_not_replayed(lambda x: x)
    assert "its part 1 is a Counting" in why_not_replayed(nn.Sequential(nn.ReLU(), Counting()))
    handle = model.head[0].register_forward_hook(lambda *_: None)
    assert why_not_replayed(model) == "its part head.0 has a hook"
    handle.remove()
    model.convolutions[1].forward = lambda x: x
    assert why_not_replayed(model) == "its part convolutions.1 has a hook or another forward"

    counting = Counting()
    step = Repeated(counting, torch.device("cpu"), name="s", asked=counting)
    assert [float(step(torch.ones(()))) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert recorder.n_recorded == 0
    assert "no CUDA graph of s" in caplog.text
    assert "it is a Counting, neither of torch.nn nor of nnmf_cuda" in caplog.text


def test_on_a_device_without_graphs_steps_are_made_as_they_are():
    assert "cpu" not in graphs.RECORDERS
    assert not Repeated(lambda: None, torch.device("cpu"), name="s").records
