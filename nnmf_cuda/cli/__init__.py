"""The command line, thin: a file a command; `main` is the entry."""

from __future__ import annotations

from nnmf_cuda.cli.main import main

__all__ = ["main"]
