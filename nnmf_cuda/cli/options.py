"""Options that several commands of `nnmf-cuda` have in common."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", type=str, default="auto", help="auto (CUDA where there is one), cpu or cuda"
    )


def say(line: str) -> None:
    """Print a line about what is going on, apart from the results."""
    print(line, file=sys.stderr, flush=True)
