"""What the processes of a group compute together: sums in a fixed order, and one fate for all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

SMALL = 2**13  # float64 numbers that each process sends to each: there waiting costs the most

# What the word before a call says: that a rank has failed, which call it is, or of how many numbers
# the sums are.
_FAILED, _END, _GATHER, _ROWS, _OF, _EXCHANGE = range(-6, 0)

_Result = TypeVar("_Result")


class RanksError(RuntimeError):
    """Another process of the group has failed, and so what all of them do together."""

    told = 0  # the `id` of the `Ranks` who all know


class Ranks:
    """The processes of a group, ranks 0 to size - 1, seen from one of them.

    Each method is called by all, in the same order. A result is the same bits on all of them, and
    in every run with as many: sums are made in the order of the ranks, in float64. (What
    `all_reduce` does with the order is left to a backend.)

    Before each call a word of all is gathered, whether they are well. One that raises inside
    `together` answers with its error, and all others raise `RanksError` with its words at once,
    where they would have waited for it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        backend = dist.get_backend(group)
        on_gpu, self._at_once = backend == "nccl", backend == "gloo"
        self._home = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make what is raised inside, by any rank, end the block for all of them."""
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, RanksError) and error.told == id(self)):
                self._tell(error)
            raise
        self._check(_END)

    def totals(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the sum over all ranks of each tensor, in its type."""
        if self.size == 1:
            return values
        flat = torch.cat([value.reshape(-1).double() for value in values])
        self._check(flat.numel())
        summed = self._connected(self._sum, flat).split([value.numel() for value in values])
        return tuple(
            part.reshape(value.shape).to(value.dtype)
            for part, value in zip(summed, values, strict=True)
        )

    def gathered(self, value: Any) -> list[Any]:
        """Return what each rank gives, by rank: a small object that pickle knows."""
        if self.size == 1:
            return [value]
        self._check(_GATHER)
        return self._objects(value)

    def rows(self, value: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows (sum(counts), ...) of all ranks, of which each gives its own."""
        if self.size == 1:
            return value
        self._check(_ROWS)
        parts = [value.new_empty(count, *value.shape[1:]) for count in counts]
        # Backends gather parts of one size alone.
        longest = max(counts)
        padded = value.new_zeros(longest, *value.shape[1:])
        padded[: len(value)] = value
        received = self._connected(self._gather_around, padded)
        for part, padded in zip(parts, received, strict=True):
            part.copy_(padded[: len(part)])
        return torch.cat(parts)

    def of(self, rank: int, value: Tensor) -> Tensor:
        """Return the tensor of one of the ranks, on which it has the same shape and type."""
        if self.size == 1:
            return value
        self._check(_OF)
        received = value.clone(memory_format=torch.contiguous_format)
        source = dist.get_global_rank(self._group, rank)
        self._connected(dist.broadcast, received, source, self._group)
        return received

    def exchanged(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return what each rank has for this one, given what it has for each: (n,) of one type."""
        if self.size == 1:
            return list(parts)
        self._check(_EXCHANGE)
        lengths = self._objects([len(part) for part in parts])
        own = [of_rank[self.rank] for of_rank in lengths]
        received = parts[0].new_empty(sum(own))
        self._connected(
            dist.all_to_all_single,
            received,
            torch.cat(list(parts)),
            own,
            lengths[self.rank],
            self._group,
        )
        return list(received.split(own))

    def _sum(self, flat: Tensor) -> Tensor:
        n = flat.numel()
        if n <= SMALL or self.size == 2:
            return _added(self._gather(flat))
        # Each rank adds up one part for all: as much is sent as around a ring.
        width = -(-n // self.size)
        padded = flat.new_zeros(self.size * width)
        padded[:n] = flat
        received = torch.empty_like(padded)
        dist.all_to_all_single(received, padded, group=self._group)
        return torch.cat(self._gather(_added(received.split(width))))[:n]

    def _gather(self, value: Tensor) -> list[Tensor]:
        """Return the values of all ranks, of which each may be held as often as there are ranks.

        gloo gathers around a ring, where a rank waits for each of the others in turn. What goes
        from each to each at once takes one round, for as many bytes.
        """
        if not self._at_once:
            return self._gather_around(value)
        sent = value.expand(self.size, *value.shape).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        return list(received)

    def _gather_around(self, value: Tensor) -> list[Tensor]:
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value, group=self._group)
        return parts

    def _objects(self, value: Any) -> list[Any]:
        parts: list[Any] = [None] * self.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, of what it calls itself
            self._connected(dist.all_gather_object, parts, value, self._group)
        return parts

    def _check(self, call: int, error: BaseException | None = None) -> None:
        """Tell the others of one's own error, if there is one, and raise for one of theirs.

        Also where they are not about to make the same call.
        """
        if self.size == 1:
            return
        word = torch.tensor([_FAILED if error is not None else call], device=self._home)
        words_of_all = torch.cat(self._connected(self._gather, word)).tolist()
        if _FAILED not in words_of_all:
            if len(set(words_of_all)) > 1:
                raise self._error(
                    f"the ranks are not at the same step ({words_of_all}): call the same methods "
                    "on all of them, with the same parameters"
                )
            return
        words = None if error is None else f"{type(error).__name__}: {error}"
        for rank, of_rank in enumerate(self._objects(words)):
            if of_rank is not None and error is None:
                raise self._error(
                    f"rank {rank} of {self.size} failed, which ends this on all of them: {of_rank}"
                )

    def _tell(self, error: BaseException) -> None:
        try:
            self._check(_FAILED, error)
        except RanksError:
            pass  # others have gone; what is raised says why this one does

    def _error(self, words: str) -> RanksError:
        error = RanksError(words)
        error.told = id(self)
        return error

    def _connected(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise self._error(
                f"rank {self.rank} of {self.size} has lost the others: one has ended, or did not "
                f"answer in time ({str(error).splitlines()[0]})"
            ) from error


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
