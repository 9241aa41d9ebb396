"""A launch of a kernel in a problem: how many blocks and warps a multiprocessor has of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.launches import Launch
from bench.machine_code import Kernel
from bench.time_model import Device

__all__ = ["SCHEDULERS", "WARP", "Launched"]

SCHEDULERS = 4
"""Of a multiprocessor."""

WARP = 32
"""Threads."""

_RESERVED = 1024  # bytes of shared memory that a block takes besides


@dataclass(frozen=True)
class Launched:
    """A launch of a kernel in a problem.

    Attributes
    ----------
    launch : Launch
    code : Kernel
        Its machine code.
    sizes : mapping of str to float
        Of the problem, and what of its cut is known ("W_splits").
    device : Device
    before : int
        Launches of kernels of that name before it in the call.
    """

    launch: Launch
    code: Kernel
    sizes: Mapping[str, float]
    device: Device
    before: int = 0

    @property
    def warps_of_block(self) -> int:
        """Warps of a block, the last one perhaps not whole."""
        return -(-self.launch.threads // WARP)

    @property
    def blocks_here(self) -> int:
        """Blocks of the busiest multiprocessor."""
        return -(-self.launch.blocks // self.device.multiprocessors)

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor has at one time."""
        registers = max(self.code.registers, 16) + -max(self.code.registers, 16) % 8
        most = min(
            65536 // (registers * self.warps_of_block * WARP),
            self.device.shared_bytes // (self.launch.shared_bytes + _RESERVED),
            64 // self.warps_of_block,
            32,
        )
        return max(1, min(most, self.blocks_here))

    @property
    def busiest(self) -> int:
        """Warps that the busiest scheduler has in all, one after the other or at once."""
        return -(-self.blocks_here * self.warps_of_block // SCHEDULERS)

    @property
    def turns(self) -> int:
        """How many blocks come after one another in a place."""
        return -(-self.blocks_here // self.resident)

    def has(self, *parts: str) -> bool:
        """Say whether all of these are in the mangled name."""
        return all(part in self.launch.symbol for part in parts)
