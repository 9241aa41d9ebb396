"""How a source is read, and what became of it."""

from __future__ import annotations

import errno
import math
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

OnError = Literal["raise", "skip"]
Axis = Literal["axial", "coronal", "sagittal"]
Decode = Literal["exact", "fast"]

TABLE_COLUMNS = ("file", "label", "patient", "series", "split", "fold", "mask", "frame")
"""What a table can say of an image."""

_PARTS = ("patient", "series", "name", "label")
"""What a pattern can take from a path."""


def is_special(path: Path) -> bool:
    """Tell whether a path names a pipe or a device, whose content may never begin or end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # of which reading says what is wrong
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_file(path: Path) -> IO[bytes]:
    """Open a file that is to be read; raises OSError for what is none."""
    if is_special(path):
        raise OSError(errno.EINVAL, "a pipe or a device, no file", str(path))
    return path.open("rb")


def reason(error: BaseException) -> str:
    """Return on one line why something failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class ReadFailure(NamedTuple):
    """A file that could not be read, or was left out, and why."""

    file: Path
    message: str


@dataclass(frozen=True)
class Window:
    """Which grey values become black and white: values, or percentiles of all values."""

    low: float
    high: float
    percentiles: bool = False

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read "low:high" or "p1:p99"; raises ValueError naming the option and what it takes."""
        parts = [part.strip() for part in text.split(":")]
        percentiles = all(part.startswith("p") for part in parts)
        try:
            low, high = (float(part.removeprefix("p") if percentiles else part) for part in parts)
        except ValueError:
            low = high = math.nan
        fits = math.isfinite(low) and math.isfinite(high) and low < high
        if not fits or (percentiles and not 0 <= low < high <= 100):
            raise ValueError(
                f"window must be low:high in the file's own grey values, as in -160:240, or "
                f"percentiles, as in p1:p99; got {text!r}"
            )
        return cls(low, high, percentiles)

    def limits(self, values: NDArray[Any]) -> tuple[float, float]:
        """Return the values that become black and white; percentiles are those of `values`."""
        if not self.percentiles:
            return self.low, self.high
        low, high = np.percentile(values, (self.low, self.high))
        return float(low), float(high)


DEFAULT_WINDOW = Window(1.0, 99.0, percentiles=True)
"""Of volumes and DICOM files that say nothing of one."""


def to_unit_range(values: NDArray[Any], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Map values to [0, 1], the limits to its ends and what lies beyond them too.

    Where the limits are equal, as percentiles of a constant image are, everything becomes 0.
    """
    low, high = limits
    if not high > low:
        return np.zeros(values.shape, np.float32)
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


class PathPattern:
    """A pattern such as "{patient}/{name}" that takes names out of paths below a source.

    Levels are matched one by one from the left; ``*`` stands for anything of one level, {patient},
    {series}, {label} and {name} for a part of one, and a level may have text beside them, as in
    "{patient}_{series}/{name}.png". A pattern with fewer levels than a path matches its first ones.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        levels = [self._level(level) for level in text.strip("/").split("/")]
        names = re.findall(r"\{(\w+)\}", text)
        if not names or len(set(names)) < len(names) or not all(levels):
            raise ValueError(self._usage())
        self._expression = re.compile("/".join(levels) + "(?:/.*)?", re.DOTALL)
        self.names = frozenset(names)

    def _level(self, level: str) -> str:
        expression = ""
        for part in re.split(r"(\{\w*\}|\*)", level):
            name = part[1:-1] if part.startswith("{") and part.endswith("}") else None
            if name is not None and name not in _PARTS:
                raise ValueError(self._usage())
            if name is not None:
                expression += f"(?P<{name}>[^/]+?)"
            else:
                expression += "[^/]*" if part == "*" else re.escape(part)
        return expression

    def _usage(self) -> str:
        return (
            "patient_from must be a pattern of the path below the source, of "
            f"{', '.join(f'{{{name}}}' for name in _PARTS)}, each once, and * for anything of one "
            f"level, as in '{{patient}}/{{name}}'; got {self.text!r}"
        )

    def match(self, below: str | PurePath) -> Mapping[str, str]:
        """Return the names in a path below the source; raises ValueError where it does not fit."""
        path = PurePath(below).as_posix()
        found = self._expression.fullmatch(path)
        if found is None:
            raise ValueError(
                f"patient_from={self.text!r} does not fit {path!r}; give a pattern that fits every "
                "path below the source"
            )
        return found.groupdict()


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How sources are read: the same for every command and every kind of source."""

    window: str | None = None
    """Grey values that become black and white: "low:high" in the file's own units, as
    -160:240 in CT, or percentiles such as "p1:p99" of the image (NIfTI: of the volume, DICOM: of
    the series)."""
    patient_from: str | None = None
    """Where a path below the source names its patient, as in "{patient}/{name}"; {series}, {label}
    and * for anything of one level can stand there too."""
    columns: str | None = None
    """What a table calls its columns, as in "file=path,label=diagnosis,patient=pid"."""
    axis: Axis = "axial"
    """Slices of a volume: axial, coronal or sagittal."""
    mask_area: float = 0.0
    """An image with a mask is positive if more than this share of its pixels is in the mask."""
    decode: Decode = "exact"
    """JPEGs: exact, or fast, at a half or quarter of their size where the result is smaller still;
    pixels then differ by some grey levels."""
    on_error: OnError = "raise"
    """What unreadable images do: raise ends the command, skip leaves them out and names them."""
    keep_ids: bool = False
    """Show the patient ids of DICOM files as they are, not hashed."""

    def __post_init__(self) -> None:
        if self.window is not None:
            Window.parse(self.window)
        if self.patient_from is not None:
            PathPattern(self.patient_from)
        if self.columns is not None:
            parse_columns(self.columns)
        if not 0 <= self.mask_area < 1:
            raise ValueError(
                f"mask_area must be a share of the pixels, in [0, 1); got {self.mask_area!r}"
            )
        for name, choices in (("axis", Axis), ("decode", Decode), ("on_error", OnError)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}"
                )

    @property
    def grey_window(self) -> Window | None:
        """`window`, read."""
        return None if self.window is None else Window.parse(self.window)

    @property
    def pattern(self) -> PathPattern | None:
        """`patient_from`, read."""
        return None if self.patient_from is None else PathPattern(self.patient_from)

    def takes(self, part: str) -> bool:
        """Return whether the pattern takes a part, such as "label", from a path."""
        return self.pattern is not None and part in self.pattern.names

    @property
    def column_names(self) -> dict[str, str]:
        """From what this package calls a column (`TABLE_COLUMNS`) to what the table does."""
        return {} if self.columns is None else parse_columns(self.columns)

    def changed(self) -> list[str]:
        """Return the names of the options that are not at their defaults."""
        options = (option for option in fields(ReadOptions))
        return [o.name for o in options if getattr(self, o.name) != o.default]


def parse_columns(columns: str) -> dict[str, str]:
    """Read a mapping of columns such as "file=path,label=diagnosis": ours to the table's."""
    mapping: dict[str, str] = {}
    for item in columns.split(","):
        ours, _, theirs = (part.strip() for part in item.partition("="))
        if ours not in TABLE_COLUMNS or not theirs or ours in mapping:
            raise ValueError(
                f"columns={columns!r}: {item!r} is not ours=theirs, each of ours once, out of "
                f"{', '.join(TABLE_COLUMNS)}; as in 'file=path,label=diagnosis'"
            )
        mapping[ours] = theirs
    return mapping


DEFAULT_READING = ReadOptions()
"""Sources as they are."""

UNREADABLE = "unreadable"
"""Why an image is left out that ``on_error="skip"`` has let pass."""
_DOUBLE_ENDINGS = (".nii.gz", ".tar.gz")
_MOST_REASONS = 20
"""Lines of an account on what was left out."""


@dataclass
class Account:
    """What became of every file of a source.

    Attributes
    ----------
    n_read : int
        Images that were decoded.
    by_ending : Counter of str
        Files that were met, by ending; those without one count as "no ending".
    skipped : list of ReadFailure
        What was left out, and why.
    notes : list of str
        What was decided, one sentence each.
    """

    n_read: int = 0
    by_ending: Counter[str] = field(default_factory=Counter)
    skipped: list[ReadFailure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def met(self, path: PurePath) -> None:
        """Count a file of the source, whatever becomes of it."""
        ending = "".join(path.suffixes[-2:]).lower()
        if ending not in _DOUBLE_ENDINGS:
            ending = path.suffix.lower()
        self.by_ending[ending or "no ending"] += 1

    def skip(self, path: PurePath, reason: str) -> None:
        """Count something that is left out; equal reasons are told together."""
        self.skipped.append(ReadFailure(Path(path), reason))

    def lines(self) -> list[str]:
        """Return the account in a few lines of text, for the terminal and the report."""
        endings = ", ".join(f"{n} {ending}" for ending, n in self.by_ending.most_common())
        lines = [f"Files: {endings}"] if endings else []
        lines.append(f"Images read: {self.n_read}")
        by_reason: dict[str, list[str]] = {}
        for file, reason in self.skipped:
            by_reason.setdefault(reason, []).append(file.name)
        most = sorted(by_reason.items(), key=lambda found: -len(found[1]))
        for reason, names in most[:_MOST_REASONS]:
            named = first_few(names, limit=100 if reason == UNREADABLE else 3)
            lines.append(f"Left out, {reason}: {len(names)} ({named})")
        if n_others := sum(len(names) for _, names in most[_MOST_REASONS:]):
            lines.append(f"Left out for other reasons: {n_others}")
        return lines + self.notes


def first_few(names: list[str], limit: int = 3) -> str:
    """Return at most `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
