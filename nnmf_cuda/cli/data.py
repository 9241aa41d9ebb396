"""The command `nnmf-cuda data`: data sets that this package knows."""

from __future__ import annotations

from dataclasses import dataclass

from nnmf_cuda.cli.options import say, show

SETS = ("sets", "darabi: the brain tumor slices of the paper.")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Download a data set, say its licence, and check that it is whole.

    `darabi` comes from Kaggle, by kagglehub (the extra `data`), and stays in its cache.
    """

    sets: list[str]
    folder: str | None = None
    """Check this unpacked copy instead, downloaded by hand."""


def data(options: Data) -> None:
    """Fetch a data set and tell how to use it."""
    from nnmf_cuda.data import darabi

    if options.sets != ["darabi"]:
        raise ValueError(f"there is no data set {' '.join(options.sets)!r}; there is: darabi")
    if options.folder is None:
        say(f"from {darabi.PAGE}")
    copy = darabi.inspect_copy(options.folder or darabi.fetch(), progress=True)
    counts = ", ".join(f"{count} {split}" for split, count in copy.counts.items())
    show(f"folder    {copy.folder}")
    show(f"licence   {darabi.LICENCE}")
    show(f"images    {counts}")
    show(f"checksum  {copy.checksum} (SHA-256 of names, labels and grey pixels)")
    if not copy.is_whole:
        raise ValueError(
            f"{copy.folder}: the checksum should be {darabi.CHECKSUM}; these are not the images"
            " that this package's documents speak of: download them again, or use what is there"
            " knowing that its figures are other ones"
        )
    show(f"use       nnmf-cuda run --data '{copy.folder}' --classes {darabi.CLASSES} --out RUN")
