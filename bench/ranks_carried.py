"""What the model of ranks says of machines that are not here: ten million images on many of them.

Rates of a core and of the exchange's software are those that were measured here, rates of a GPU
those of bench/results/predictions-h200.json; all else is assumed, each number with its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.predictions import predictions, problem_key
from bench.ranks_model import (
    Cost,
    Fit,
    Machine,
    Memory,
    Network,
    binding_ranks,
    cost_of,
    exchanged,
    fastest_ranks,
    memory_of,
)
from bench.ranks_record import Record
from bench.time_model import EXPECTED

__all__ = ["ASSUMED", "MILLIONS", "Assumed", "Carried", "carried"]

MILLIONS = tuple(Fit(10_000_000, 16_384, k) for k in (15, 64))
"""Ten million images of 128 x 128 pixels, uint8, with the paper's components and with more."""
_GPUS, _NODES = 8, 64
_PADDED = 16
"""Components of which a kernel on a GPU works on as many or a multiple."""


@dataclass(frozen=True)
class Assumed:
    """A number that nobody has measured here.

    Attributes
    ----------
    text : str
        With its unit.
    value : float
        In SI units, where it has one.
    source : str
    """

    text: str
    value: float
    source: str


ASSUMED = {
    "cores of a node": Assumed(
        "64", 64, "assumed; all of them for X, each as fast as one here, and one for H"
    ),
    "memory of a node": Assumed(
        "300 GB/s", 3e11, "assumed: eight to twelve channels of DDR5; X is read twice"
    ),
    "Ethernet, a step": Assumed(
        "20 us", 20e-6, "assumed, beside what a step takes on loopback: TCP through a switch"
    ),
    "Ethernet, bytes": Assumed(
        "90 %", 0.9, "assumed share of 25 and 100 Gbit/s; what loopback takes comes on top"
    ),
    "nccl, a call": Assumed(
        "50 us", 50e-6, "assumed: torch's bookkeeping, a launch, and the host's wait for the word"
    ),
    "NVLink, a step": Assumed("3.4 us", 3.4e-6, "nccl's src/graph/tuning.cc, ring, Simple"),
    "NVLink, bytes": Assumed(
        "225 GB/s", 225e9, "assumed: half of NVLink 4's 450 GB/s, for messages are small"
    ),
    "InfiniBand, a step": Assumed("9.6 us", 9.6e-6, "nccl's src/graph/tuning.cc, ring, Simple"),
    "InfiniBand, bytes": Assumed("45 GB/s", 45e9, "assumed: 90 % of 400 Gbit/s, one for each GPU"),
    "an operation of torch": Assumed("10 us", 10e-6, "assumed: of the host, which waits each time"),
    "H in a GPU's memory": Assumed("40 times", 40, "assumed: reads and writes of an iteration"),
}


@dataclass(frozen=True)
class Carried:
    """What the model says of a fit on some machines.

    Attributes
    ----------
    name : str
    fit : Fit
    ranks : int
    cost : Cost
    received_bytes : int
        By a rank, in an iteration.
    binding : int, optional
        From which number of ranks on more than half of the time is exchange.
    fastest : int
        With which number of ranks an iteration takes least.
    memory : Memory
    """

    name: str
    fit: Fit
    ranks: int
    cost: Cost
    received_bytes: int
    binding: int | None
    fastest: int
    memory: Memory


def carried(record: Record) -> list[Carried]:
    """Return what the model says of `MILLIONS`, on 8 GPUs and on 64 nodes of CPUs."""
    loopback = record.network()
    found = []
    for fit in MILLIONS:
        gpu, node = _gpu(record, fit), _node(record, fit)
        found += [
            _carried(record, "8 H200, NVLink", fit, _GPUS, gpu, _nccl("NVLink")),
            _carried(record, "8 H200, InfiniBand", fit, _GPUS, gpu, _nccl("InfiniBand")),
            _carried(record, "64 nodes, 25 Gbit/s", fit, _NODES, node, _ethernet(loopback, 25)),
            _carried(record, "64 nodes, 100 Gbit/s", fit, _NODES, node, _ethernet(loopback, 100)),
        ]
    return found


def _carried(
    record: Record, name: str, fit: Fit, ranks: int, machine: Machine, network: Network
) -> Carried:
    return Carried(
        name,
        fit,
        ranks,
        cost_of(fit, ranks, machine, network),
        exchanged(fit, ranks).received_bytes,
        binding_ranks(fit, machine, network),
        fastest_ranks(fit, machine, network),
        memory_of(fit, ranks, record.parts),
    )


def _node(record: Record, fit: Fit) -> Machine:
    """Return a rank that has a node: its cores for X, and for H what one core takes here."""
    rate, (fixed, number) = record.rate(fit), record.H_constants()
    computed = rate.entry_ns / 1e9 / ASSUMED["cores of a node"].value
    read = 2 * fit.entry_bytes / ASSUMED["memory of a node"].value
    return Machine("a node", max(computed, read), rate.record_share, fixed, number)


def _gpu(record: Record, fit: Fit) -> Machine:
    """Return a rank that has an H200: the predicted rate of the paper's problem, for more rows.

    With more components each entry takes as much longer: at most, as part of it is the same.
    """
    key = problem_key("nnmf_mu", "paper", "uint8")
    (one,) = (p for p in predictions("h200") if (p.problem, p.impl) == (key, "ours"))
    of_entries = one.ms - one.by_bound_ms["launch"]
    padded = -(-fit.n_components // _PADDED)
    entry = of_entries / 1e3 / (1500 * 16_384) * padded
    memory = EXPECTED["h200"].memory_tb_per_s * 1e12
    return Machine(
        "an H200",
        max(entry, 2 * fit.entry_bytes / memory),
        record.rate(fit).record_share,
        record.operations * ASSUMED["an operation of torch"].value,
        8 * ASSUMED["H in a GPU's memory"].value / memory,
    )


def _nccl(link: str) -> Network:
    step, bytes_per_s = (ASSUMED[f"{link}, {what}"].value for what in ("a step", "bytes"))
    call = ASSUMED["nccl, a call"].value
    return Network(f"nccl over {link}", "nccl", call, step, 0.0, bytes_per_s)


def _ethernet(loopback: Network, gbit_per_s: float) -> Network:
    """Return gloo over Ethernet: what the CPUs do for it as here, and what the wire takes."""
    wire = ASSUMED["Ethernet, bytes"].value * gbit_per_s * 1e9 / 8
    return Network(
        f"gloo over {gbit_per_s:g} Gbit/s",
        "gloo",
        loopback.call_s,
        loopback.step_s + ASSUMED["Ethernet, a step"].value,
        loopback.message_s,
        1 / (1 / wire + 1 / loopback.bytes_per_s),
    )


def blocks_of(record: Record, of: Sequence[Carried]) -> int:
    """Return how many updates as long as those measured here the shortest of the iterations has."""
    shortest = min(one.cost.X_s for one in of)
    return max(1, round(1e3 * shortest / record.update_ms))
