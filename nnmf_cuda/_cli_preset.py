"""Which preset `nnmf-cuda run` is to start from: known before its options are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnmf_cuda.pipeline.config import PRESETS

__all__ = ["asked_preset"]


def asked_preset(argv: Sequence[str]) -> str:
    """Return the name of the preset whose values the other options start from.

    Parameters
    ----------
    argv : sequence of str
        Arguments of `run`. ``--preset`` counts before what a file of ``--config`` says; the last
        of several counts.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    name = "paper"
    for path in _values_of("--config", argv):
        name = _checked(_preset_in(path) or name, f"{path}: preset")
    for given in _values_of("--preset", argv):
        name = _checked(given, "--preset")
    return name


def _values_of(option: str, argv: Sequence[str]) -> Iterator[str]:
    for given, following in zip(argv, [*argv[1:], None], strict=True):
        if given == option and following is not None:
            yield following
        elif given.startswith(f"{option}="):
            yield given.removeprefix(f"{option}=")


def _preset_in(path: str) -> str | None:
    """Return the preset that a file names; None where it names none or cannot be read.

    What is wrong with the file is for the parser to say, which reads it after this.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    found = content.get("preset") if isinstance(content, dict) else None
    return None if found is None else str(found)


def _checked(name: str, where: str) -> str:
    if name in PRESETS:
        return name
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{where} {name}: no such preset; {hint}choose one of {', '.join(PRESETS)}")
