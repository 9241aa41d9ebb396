"""Blocks in which networks hold still: no training, no hidden randomness, the same convolutions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without parameter gradients; restore both after."""
    training = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which AutoAttack uses; restore them and the trace hook.

    AutoAttack's check for dynamic defences ends in sys.settrace(None), which would switch off a
    debugger or a coverage measurement.
    """
    trace = sys.gettrace()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            torch.manual_seed(seed)
            yield
    finally:
        sys.settrace(trace)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Have cuDNN choose deterministic algorithms inside the block; no effect on the CPU."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
