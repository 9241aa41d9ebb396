"""Fast NNMF and diffusion kernels for torch, and an experiment built on them."""

from __future__ import annotations

__version__ = "0.1.0"
