"""How long an iteration of a fit takes over several processes: its work, its exchanges, its memory.

A rank makes of its rows what they say of both factors, adds those sums to the others', and makes
the new H of them. The first is divided among ranks; the last, `H_seconds`, each does in full. Bytes
and steps of the exchange are those of the calls that `nnmf_cuda.distributed.ranks` makes, which
tests count. Everything that is assumed about a machine or a network is a number with a name in
`Machine` or `Network`; what has been measured comes from a record of `python -m bench ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np

from nnmf_cuda.distributed.ranks import SMALL
from nnmf_cuda.nnmf.minimisation import CHECK_EVERY

__all__ = [
    "Cost",
    "Exchange",
    "Fit",
    "Machine",
    "Memory",
    "Network",
    "Parts",
    "binding_ranks",
    "cost_of",
    "exchanged",
    "fastest_ranks",
    "gathered_bytes",
    "in_a_record",
    "memory_of",
    "operations",
    "sum_of",
    "waiting",
]

Solver = Literal["mu", "accelerated-mu", "hals", "semi", "semi-hals"]
_WIDE, _WORD = 8, 8
"""Bytes of a number of the sums, and of the word before each call."""
_MOST_RANKS = 2**20
_MOST_DRAWN, _LEAST_DRAWS = 4_000_000, 20
"""Of a simulation: times in all, and iterations."""


@dataclass(frozen=True)
class Fit:
    """A fit to dense X, as far as its cost depends on it.

    Attributes
    ----------
    n_samples, n_features, n_components : int
    solver : str
    beta_loss : float
    weighted : bool
        Whether X has a mask or weights.
    entry_bytes, factor_bytes : int
        Of X, and of W and H.
    """

    n_samples: int
    n_features: int
    n_components: int
    solver: Solver = "mu"
    beta_loss: float = 1.0
    weighted: bool = False
    entry_bytes: int = 1
    factor_bytes: int = 4

    @property
    def numbers_of_H(self) -> int:
        """Entries of H."""
        return self.n_components * self.n_features

    def rows(self, ranks: int) -> int:
        """Return how many rows the rank has that has most."""
        return -(-self.n_samples // ranks)

    def entries(self, ranks: int) -> int:
        """Return how many entries of X that rank has."""
        return self.rows(ranks) * self.n_features

    def sums(self) -> tuple[int, ...]:
        """Return how many numbers each sum over the ranks has, in an iteration."""
        k, f = self.n_components, self.n_features
        if self.solver == "hals":
            return (k * f + (k * k * f if self.weighted else k * k),)
        if self.solver in ("semi", "semi-hals"):
            return k * f, k * k
        if self.weighted or self.beta_loss not in (1, 2):
            return (2 * k * f,)
        return (k * f + (k if self.beta_loss == 1 else k * k),)


def operations(fit: Fit, ranks: int) -> float:
    """Return the multiplications and additions of an iteration of a rank that grow with its rows.

    Two for each entry of X, each component and each product of X's size: W H and what is divided by
    it, once for each factor; where denominators are sums over X too, those, and again for all
    ranks' sum of them.
    """
    if fit.solver in ("hals", "semi", "semi-hals"):
        products = 6 if fit.weighted else 2
    elif fit.weighted or fit.beta_loss not in (1, 2):
        products = 8
    else:
        products = 4 if fit.beta_loss == 1 else 2
    return 2.0 * products * fit.entries(ranks) * fit.n_components


# What is exchanged --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """Collective calls of a rank.

    Attributes
    ----------
    calls : int
    messages : int
        To other ranks.
    steps, ring_steps : int
        That wait for each other, by gloo and by nccl. gloo sends to all at once (gloo/alltoall.cc);
        gathering goes around a ring, from each neighbour to the next, in nccl (src/graph/tuning.cc)
        and in gloo where torch itself gathers objects (gloo/allgather.cc).
    received_bytes : int
        By a rank, which sends as many.
    """

    calls: int = 0
    messages: int = 0
    steps: int = 0
    ring_steps: int = 0
    received_bytes: int = 0

    def __add__(self, other: Exchange) -> Exchange:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Exchange(*(one + another for one, another in pairs))


def _call(n_bytes: int, ranks: int, *, steps: int = 1, ring_steps: int = 1) -> Exchange:
    """Return a call in which each rank sends so many bytes to each other."""
    others = ranks - 1
    return Exchange(1, others, steps, ring_steps, others * n_bytes)


def _gather(n_bytes: int, ranks: int) -> Exchange:
    return _call(n_bytes, ranks, ring_steps=ranks - 1)


def sum_of(numbers: int, ranks: int) -> Exchange:
    """Return what `Ranks.totals` does for a sum of so many numbers."""
    if ranks == 1:
        return Exchange()
    word = _gather(_WORD, ranks)
    if numbers <= SMALL or ranks == 2:
        return word + _gather(_WIDE * numbers, ranks)
    part = _WIDE * -(-numbers // ranks)
    return word + _call(part, ranks) + _gather(part, ranks)


def exchanged(fit: Fit, ranks: int) -> Exchange:
    """Return what a rank exchanges in an iteration."""
    return sum((sum_of(numbers, ranks) for numbers in fit.sums()), Exchange())


def gathered_bytes(fit: Fit, ranks: int) -> int:
    """Return what a rank would receive in an iteration if all sent their sums to all."""
    return (ranks - 1) * _WIDE * sum(fit.sums())


_ANSWER = 16
"""Bytes of a pickled pair of True or False."""


def in_a_record(ranks: int) -> Exchange:
    """Return what a rank exchanges in a record.

    The divergence, whether a callback stops, and whether a checkpoint is due.
    """
    if ranks == 1:
        return Exchange()
    around = {"steps": ranks - 1, "ring_steps": ranks - 1}
    told = _call(_WORD, ranks, **around) + _call(_ANSWER, ranks, **around)
    return sum_of(1, ranks) + _gather(_WORD, ranks) + told


# How long it takes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What an exchange takes.

    Attributes
    ----------
    name : str
    backend : str
    call_s, step_s, message_s : float
        Of each call, of each step that waits for another, and of each message to a rank.
    bytes_per_s : float
        That a rank receives while it sends as many.
    """

    name: str
    backend: Literal["gloo", "nccl"]
    call_s: float
    step_s: float
    message_s: float
    bytes_per_s: float

    def seconds(self, exchange: Exchange) -> float:
        """Return how long an exchange takes where all ranks begin at once."""
        steps = exchange.steps if self.backend == "gloo" else exchange.ring_steps
        waited = exchange.calls * self.call_s + steps * self.step_s
        sent = exchange.messages * self.message_s + exchange.received_bytes / self.bytes_per_s
        return waited + sent


@dataclass(frozen=True)
class Machine:
    """What a rank computes with.

    Attributes
    ----------
    name : str
    entry_s : float
        Of an iteration, for each entry of X.
    record_share : float
        Of that, what the divergence takes for each entry, once in `CHECK_EVERY` iterations.
    H_s, H_number_s : float
        Of an iteration, whatever rows there are: a part that is the same for all, and one for each
        number of H.
    crowd : float
        How many ranks share what one of them would have.
    """

    name: str
    entry_s: float
    record_share: float
    H_s: float
    H_number_s: float
    crowd: float = 1.0


@dataclass(frozen=True)
class Cost:
    """Seconds of an iteration, a tenth of a record included.

    Attributes
    ----------
    X_s, H_s : float
        Of what a rank computes: of its rows, and of H.
    exchange_s : float
    """

    X_s: float
    H_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Of all three: nothing overlaps."""
        return self.X_s + self.H_s + self.exchange_s

    @property
    def exchange_share(self) -> float:
        """How much of the time goes into the exchange."""
        return self.exchange_s / self.seconds


def cost_of(fit: Fit, ranks: int, machine: Machine, network: Network) -> Cost:
    """Return what an iteration takes where all ranks are equally fast."""
    each = 1 / CHECK_EVERY
    X = fit.entries(ranks) * machine.entry_s * (1 + each * machine.record_share)
    H = machine.H_s + machine.H_number_s * fit.numbers_of_H
    sent = network.seconds(exchanged(fit, ranks)) + each * network.seconds(in_a_record(ranks))
    return Cost(machine.crowd * X, machine.crowd * H, machine.crowd * sent)


def _counts() -> Iterator[int]:
    """Yield numbers of ranks, each at most a tenth larger than the one before."""
    ranks = 1
    while ranks <= _MOST_RANKS:
        yield ranks
        ranks = max(ranks + 1, int(1.1 * ranks))


def binding_ranks(
    fit: Fit, machine: Machine, network: Network, *, share: float = 0.5
) -> int | None:
    """Return from which number of ranks on the exchange takes more than a share; None: never."""
    for ranks in _counts():
        if cost_of(fit, ranks, machine, network).exchange_share > share:
            return ranks
    return None


def fastest_ranks(fit: Fit, machine: Machine, network: Network) -> int:
    """Return with how many ranks an iteration takes least; more only wait for each other."""
    return min(_counts(), key=lambda ranks: cost_of(fit, ranks, machine, network).seconds)


# Memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """How often a rank has something at a time, at most.

    Attributes
    ----------
    W_times : float
        The rows of W that are its own.
    H_times : float
        H in float64.
    """

    W_times: float
    H_times: float


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank needs at a time."""

    X_bytes: int
    W_bytes: int
    H_bytes: int

    @property
    def total(self) -> int:
        """Of all three, beside the program itself."""
        return self.X_bytes + self.W_bytes + self.H_bytes


def memory_of(fit: Fit, ranks: int, parts: Parts) -> Memory:
    """Return what a rank needs that has X in memory; a memory map leaves that to the system."""
    W = fit.rows(ranks) * fit.n_components * fit.factor_bytes
    return Memory(
        fit.entries(ranks) * fit.entry_bytes,
        math.ceil(parts.W_times * W),
        math.ceil(parts.H_times * _WIDE * fit.numbers_of_H),
    )


# Ranks wait for the slowest -----------------------------------------------------------------------


def waiting(
    relative: Sequence[float], ranks: int, *, blocks: int, draws: int = 2000, seed: int = 0
) -> float:
    """Return by how much an iteration takes longer because all wait for the slowest rank.

    A simulation: each rank takes for each of its `blocks` of work a time that is drawn, alone, from
    those that were measured. With one block a rank that is slow is so for a whole iteration. There
    are `draws` of iterations, or as many as `_MOST_DRAWN` times make.

    Parameters
    ----------
    relative : sequence of float
        Measured times of the same work, as multiples of their median.
    ranks, blocks, draws, seed : int

    Returns
    -------
    float
        0.1 where the iteration takes a tenth longer than the median says.
    """
    rng = np.random.default_rng(seed)
    times = np.asarray(relative, dtype=np.float64)
    n_draws = max(_LEAST_DRAWS, min(draws, _MOST_DRAWN // (ranks * blocks)))
    slowest = [rng.choice(times, (ranks, blocks)).mean(1).max() for _ in range(n_draws)]
    return float(np.mean(slowest) - 1)
