"""The cost of fits over several processes: the model, its record, and the page."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bench import ranks as measuring
from bench.__main__ import main
from bench.ranks_carried import ASSUMED, carried
from bench.ranks_model import (
    Exchange,
    Fit,
    Machine,
    Network,
    Parts,
    binding_ranks,
    cost_of,
    exchanged,
    fastest_ranks,
    gathered_bytes,
    in_a_record,
    memory_of,
    operations,
    sum_of,
    waiting,
)
from bench.ranks_page import PARTS, measured_table, parts_of, write_page
from bench.ranks_record import IterationTime, Rate, Record, SumTime, crowd_of
from nnmf_cuda import NNMF
from nnmf_cuda.distributed import Shard

ROOT = Path(__file__).parents[2]
NETWORK = Network("of a test", "gloo", 0.0, 1e-3, 1e-4, 1e9)
MACHINE = Machine("of a test", 1e-9, 0.5, 1e-3, 1e-8)


# What is exchanged: counted from the calls --------------------------------------------------------


@dataclass
class Alike:
    """torch.distributed as one rank sees it of so many that all do as this one."""

    size: int
    backend: str
    done: list[Exchange] = field(default_factory=list)

    def all_gather(self, parts: list[torch.Tensor], value: torch.Tensor, group: Any) -> None:
        for part in parts:
            part.copy_(value)
        self._add(self.size - 1, value.nbytes)

    def all_to_all_single(
        self, received: torch.Tensor, sent: torch.Tensor, group: Any = None
    ) -> None:
        received.copy_(sent)
        self._add(1, sent.nbytes // self.size)

    def all_gather_object(self, parts: list[Any], value: Any, group: Any) -> None:
        """As torch does it: sizes, then bytes."""
        parts[:] = [value] * self.size
        self._add(self.size - 1, 8)
        self._add(self.size - 1, len(pickle.dumps(value)))

    def _add(self, steps: int, n_bytes: int) -> None:
        others = self.size - 1
        self.done.append(Exchange(1, others, steps, steps, others * n_bytes))


def steps_of(exchange: Exchange, backend: str) -> Exchange:
    """Return an exchange of which the steps are those of one backend alone."""
    steps = exchange.steps if backend == "gloo" else exchange.ring_steps
    return replace(exchange, steps=steps, ring_steps=steps)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Alike]:
    def start(size: int, backend: str = "gloo") -> Alike:
        made = Alike(size, backend)
        for name in ("all_gather", "all_to_all_single", "all_gather_object"):
            monkeypatch.setattr(dist, name, getattr(made, name))
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)
        monkeypatch.setattr(dist, "get_world_size", lambda group=None: size)
        monkeypatch.setattr(dist, "get_backend", lambda group=None: backend)
        return made

    return start


FITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kullback-leibler": ({}, {}),
    "accelerated": ({"solver": "accelerated-mu"}, {"solver": "accelerated-mu"}),
    "frobenius": ({"beta_loss": 2}, {"beta_loss": 2.0}),
    "beta 0.5": ({"beta_loss": 0.5}, {"beta_loss": 0.5}),
    "mask": ({}, {"weighted": True}),
    "hals": ({"solver": "hals", "beta_loss": 2}, {"solver": "hals", "beta_loss": 2.0}),
    "hals, mask": (
        {"solver": "hals", "beta_loss": 2},
        {"solver": "hals", "beta_loss": 2.0, "weighted": True},
    ),
    "semi": ({"solver": "semi", "beta_loss": 2}, {"solver": "semi", "beta_loss": 2.0}),
    "semi-hals": (
        {"solver": "semi-hals", "beta_loss": 2},
        {"solver": "semi-hals", "beta_loss": 2.0},
    ),
}


@pytest.mark.parametrize("size", [2, 3, 64])
@pytest.mark.parametrize("name", FITS)
def test_what_is_exchanged_is_what_the_calls_send(alike, name: str, size: int) -> None:
    """Also below and above the number of sums from which on each rank adds up a part.

    "ucc" stands for nccl, which needs a GPU: backends but gloo gather by themselves.
    """
    parameters, of_fit = FITS[name]
    rng = np.random.default_rng(0)
    for f, backend in ((12, "gloo"), (3000, "gloo"), (3000, "ucc")):
        X = (rng.random((8, f)) + 0.1).astype(np.float32)
        call = {"mask": rng.random(X.shape) < 0.9} if of_fit.get("weighted") else {}
        done = []
        for n_iter in (10, 20):
            world = alike(size, backend)
            model = NNMF(3, max_iter=n_iter, tol=0, random_state=0, **parameters)
            model.fit(Shard(X, object()), **call)
            done.append(world.done)
        # The shorter fit is all but ten iterations and a record of the longer one.
        assert len(done[1]) > len(done[0])
        longer, shorter = (sum(calls, Exchange()) for calls in reversed(done))
        fit = Fit(8 * size, f, 3, **of_fit)
        ten = sum([exchanged(fit, size)] * 10, in_a_record(size))
        assert shorter + steps_of(ten, backend) == longer


def test_bytes_do_not_grow_with_ranks_but_messages_do() -> None:
    fit = Fit(10**7, 16_384, 15)
    numbers = 15 * 16_384 + 15
    assert fit.sums() == (numbers,)
    few, many = exchanged(fit, 4), exchanged(fit, 1024)
    assert few.received_bytes == 3 * 8 + 2 * 3 * 8 * -(-numbers // 4)
    assert many.received_bytes < 2.1 * 8 * numbers < gathered_bytes(fit, 4)
    assert (few.calls, few.messages, few.steps, few.ring_steps) == (3, 3 * 3, 3, 2 * 3 + 1)
    assert (many.calls, many.messages, many.steps) == (3, 3 * 1023, 3)
    assert many.ring_steps == 2 * 1023 + 1
    assert exchanged(fit, 1) == in_a_record(1) == Exchange()


def test_operations() -> None:
    """20 TFLOP for ten million images, as 8 n f k says."""
    fit = Fit(10**7, 16_384, 15)
    assert operations(fit, 1) == 8 * 1e7 * 16_384 * 15
    assert operations(fit, 64) == pytest.approx(operations(fit, 1) / 64)
    assert operations(replace(fit, beta_loss=2.0), 1) == 4 * 1e7 * 16_384 * 15
    assert operations(replace(fit, beta_loss=0.5), 1) == 16 * 1e7 * 16_384 * 15
    assert operations(replace(fit, solver="hals", beta_loss=2.0), 1) == 4 * 1e7 * 16_384 * 15


# How long it takes --------------------------------------------------------------------------------


def test_time_is_that_of_rows_of_H_and_of_the_exchange() -> None:
    fit = Fit(1001, 100, 10)
    found = cost_of(fit, 4, MACHINE, NETWORK)
    assert found.X_s == pytest.approx(251 * 100 * 1e-9 * 1.05)
    assert found.H_s == pytest.approx(1e-3 + 1000 * 1e-8)
    # A word and 1010 sums in two calls, each of a step and 3 messages; in a record there are five,
    # of which those of objects go around a ring.
    of_record = (3 + 2 * 3) * 1e-3 + 15 * 1e-4 + 3 * (8 + 8 + 8 + 8 + 4) / 1e9
    assert found.exchange_s == pytest.approx(
        2e-3 + 6e-4 + 3 * (8 + 8 * 1010) / 1e9 + of_record / 10
    )
    # Around a ring of four, three steps each; calls have a time of their own.
    ring = replace(NETWORK, backend="nccl", call_s=1e-2)
    assert ring.seconds(exchanged(fit, 4)) == pytest.approx(
        2e-2 + 6e-3 + 6e-4 + 3 * (8 + 8 * 1010) / 1e9
    )
    assert found.exchange_share == pytest.approx(found.exchange_s / found.seconds)
    crowded = cost_of(fit, 4, replace(MACHINE, crowd=2.0), NETWORK)
    assert crowded.seconds == pytest.approx(2 * found.seconds)
    assert [crowd_of(*of) for of in ((1, 2, 2), (3, 1, 2), (2, 2, 2))] == [1.0, 1.5, 2.0]


def test_where_communication_binds() -> None:
    fit = Fit(10**6, 1000, 10)
    first = binding_ranks(fit, MACHINE, NETWORK)
    assert first is not None
    assert cost_of(fit, first, MACHINE, NETWORK).exchange_share > 0.5
    assert cost_of(fit, first // 2, MACHINE, NETWORK).exchange_share < 0.5
    best = fastest_ranks(fit, MACHINE, NETWORK)
    for other in (best // 2, 2 * best):
        at_other, at_best = (cost_of(fit, n, MACHINE, NETWORK).seconds for n in (other, best))
        assert at_other > at_best
    free = Network("free", "gloo", 0.0, 0.0, 0.0, np.inf)
    assert binding_ranks(fit, MACHINE, free) is None


def test_memory() -> None:
    found = memory_of(Fit(1000, 50, 4), 3, Parts(2.5, 10.0))
    assert found.X_bytes == 334 * 50
    assert found.W_bytes == 2.5 * 334 * 4 * 4
    assert found.H_bytes == 10 * 8 * 200
    assert found.total == found.X_bytes + found.W_bytes + found.H_bytes


def test_waiting_for_the_slowest() -> None:
    assert waiting([1.0, 1.0], 64, blocks=1) == 0
    # One of two is twice as slow half of the time: three times of four an iteration takes two.
    assert waiting([1.0, 2.0], 2, blocks=1, draws=4000) == pytest.approx(0.75, abs=0.03)
    assert waiting([1.0, 2.0], 64, blocks=1) == pytest.approx(1.0)
    # What is drawn anew within an iteration averages out.
    assert 0.5 < waiting([1.0, 2.0], 64, blocks=100) < 0.7


# The record ---------------------------------------------------------------------------------------


def planted() -> Record:
    """What a machine would have measured that is as the model says."""
    fixed, number, entry = 2e-4, 3e-9, 1.5e-9
    rates = [
        Rate(n, f, k, 1e9 * entry, 0.2, 1e3 * (fixed + number * k * f), 1.0)
        for n, f, k in ((4000, 4096, 15), (1500, 16_384, 15), (600, 16_384, 64))
    ]
    sums = [
        SumTime(ranks, n, 1e3 * max(1, ranks / 2) * NETWORK.seconds(sum_of(n, ranks)))
        for ranks in (2, 3, 4)
        for n in (1, 4096, 61_455, 1_048_640)
    ]
    machine = dict.fromkeys(("load_average", "load_average_after"), 0.5)
    machine |= {"cpu_count": 2, "device_name": "a CPU", "cpu_isa": "avx2", "torch": "2"}
    record = Record(
        machine=machine | {"date": "2026-01-01T00:00:00+00:00"},
        rates=rates,
        sums=sums,
        iterations=[],
        relative_times=[0.9, 1.0, 1.1],
        update_ms=10.0,
        W_times=3.0,
        H_times=10.0,
        operations=40,
    )
    one = IterationTime(1500, 16_384, 15, 4, 1, 0.0, 0.0, 0.0)
    seconds = record.predicted(one).seconds
    return replace(record, iterations=[replace(one, ms=1.1e3 * seconds)])


def test_constants_follow_from_the_measurements(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(planted().text())
    record = Record.read(path)
    network = record.network()
    assert network.step_s == pytest.approx(NETWORK.step_s, rel=0.02)
    assert network.message_s == pytest.approx(NETWORK.message_s, rel=0.02)
    assert network.bytes_per_s == pytest.approx(NETWORK.bytes_per_s, rel=0.02)
    assert record.H_constants() == (pytest.approx(2e-4, rel=0.02), pytest.approx(3e-9, rel=0.02))
    (one,) = record.iterations
    cost = record.predicted(one)
    assert cost.X_s == pytest.approx(2 * 375 * 16_384 * 1.5e-9 * 1.02, rel=1e-3)  # two on a core
    busy = replace(record, rates=[replace(rate, busy=3.0) for rate in record.rates])
    assert busy.predicted(one).X_s == pytest.approx(3 * cost.X_s)
    assert busy.predicted(one).H_s == pytest.approx(3 * cost.H_s)
    assert busy.predicted(one).exchange_s == cost.exchange_s
    two_threads = record.here(one.fit, 1, 2)
    assert (two_threads.crowd, two_threads.entry_s) == (1.0, pytest.approx(0.75e-9))
    assert "| 1.10 " in measured_table(record)
    assert measured_table(record).endswith(
        "Measured over predicted: 1.10 to 1.10, median 1.10, where they share cores."
    )


def test_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text in ("{}", "[1]", "no JSON"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no record of the ranks"):
            Record.read(path)
    with pytest.raises(ValueError, match="is no record of the ranks"):
        Record.read(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no rate was measured"):
        planted().rate(Fit(1, 2, 3))


def test_rank_0_measures(alike, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All it does, with ranks that are alike in the place of processes."""
    for name in ("init_process_group", "destroy_process_group", "barrier"):
        monkeypatch.setattr(dist, name, lambda *args, **options: None)
    monkeypatch.setattr(dist, "new_group", lambda ranks: object())
    alike(2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    measuring._serve(0, str(tmp_path), measuring.SMOKE, False)
    record = pickle.loads((tmp_path / "found").read_bytes()).record(measuring.machine())
    setups = {(one.ranks, one.threads) for one in record.iterations}
    assert setups == {(1, 1), (1, 2), (2, 1), (3, 1), (4, 1)}
    assert all(one.ms > 0 and one.p25 <= one.ms <= one.p75 for one in record.iterations)
    assert {one.ranks for one in record.sums} == {2, 3, 4}
    assert all(one.ms > 0 for one in record.sums)
    assert all(rate.busy > 0.9 for rate in record.rates)
    assert len(record.rates) == len(measuring.SMOKE.shapes)
    assert np.median(record.relative_times) == pytest.approx(1, rel=0.5)
    assert record.operations > 20
    assert min(record.update_ms, record.W_times, record.H_times) > 0


@pytest.mark.slow
def test_the_command_measures_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ranks", "--smoke"]) == 0
    assert "Measured over predicted" in capsys.readouterr().out


# The page -----------------------------------------------------------------------------------------


def test_the_page_has_what_the_record_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever changes the model writes it anew, without measuring."""
    page = ROOT / "docs" / "scaling.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    copy = tmp_path / "scaling.md"
    text = page.read_text("utf-8")
    copy.write_text(text.replace(" 64 nodes", " 65 nodes"), "utf-8")
    record = ROOT / "bench" / "results" / "ranks-2-cores.json"
    command = ["ranks", "--measure", "false", "--record", str(record), "--page", str(copy)]
    assert main(command) == 0
    assert copy.read_text("utf-8") == text, (
        "python -m bench ranks --measure false --page docs/scaling.md writes it"
    )
    for part in parts_of(Record.read(record)).values():
        assert part in capsys.readouterr().out or part in text
    copy.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines '<!-- exchange -->'"):
        write_page(planted(), copy)
    assert main([*command[:3], "--record", str(copy)]) == 2


def test_carried_figures_follow_from_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    record = planted()
    found = {(one.name, one.fit.n_components): one for one in carried(record)}
    assert len(found) == 8
    node = found["64 nodes, 25 Gbit/s", 15]
    assert node.cost.X_s == pytest.approx(10**7 / 64 * 16_384 * 1.5e-9 / 64 * 1.02)
    assert node.memory.X_bytes == 156_250 * 16_384
    faster = found["64 nodes, 100 Gbit/s", 15]
    assert faster.cost.exchange_s < node.cost.exchange_s
    assert faster.cost.X_s == node.cost.X_s
    # The H200: what is predicted for the 1500 rows of the paper's problem, but for launches.
    lines = json.loads((ROOT / "bench" / "results" / "predictions-h200.json").read_text("utf-8"))
    (paper,) = (
        line
        for line in lines["predictions"]
        if (line["problem"], line["impl"]) == ("nnmf_mu paper uint8", "ours")
    )
    ms = paper["ms"] - paper["by_bound_ms"]["launch"]
    gpu = found["8 H200, NVLink", 15]
    assert gpu.cost.X_s == pytest.approx(ms / 1e3 / 1500 * 1.25e6 * 1.02, rel=0.01)
    assert found["8 H200, NVLink", 64].cost.X_s == pytest.approx(4 * gpu.cost.X_s)
    assert found["8 H200, InfiniBand", 15].cost.exchange_s > gpu.cost.exchange_s
    assert tuple(parts_of(record)) == PARTS
    slow = {**ASSUMED, "cores of a node": replace(ASSUMED["cores of a node"], value=1)}
    monkeypatch.setattr("bench.ranks_carried.ASSUMED", slow)
    (alone,) = (one for one in carried(record) if one.name == node.name and one.fit == node.fit)
    assert alone.cost.X_s == pytest.approx(64 * node.cost.X_s)
