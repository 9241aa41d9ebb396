"""Reader for tar shards, as webdataset writes them: ``key.jpg`` with ``key.cls`` or ``key.json``.

A shard is an archive, or a folder that holds nothing but shards. Files that follow each other and
have one name up to its first dot are one sample. Nothing is ever written to disk: names in an
archive are names, wherever they point.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.decoding import decode_image
from nnmf_cuda.data.images import IMAGE_SUFFIXES, ImageSource, LazyImage
from nnmf_cuda.data.readers.base import Records, as_folds, as_splits, in_order
from nnmf_cuda.data.reading import Account, PathPattern, ReadOptions, first_few

SUFFIXES = (".tar", ".tar.gz", ".tgz")

_MAX_BYTES = 2**30
"""Size from where a member is refused, whatever it is: no image has it, but a bomb may."""

_MAX_TEXT = 2**20
"""Size from where a label or description is refused."""

_LABEL_KEYS = ("label", "labels", "class", "cls")
_OF_ALL = ("patient", "series", "split", "fold")
"""What has to be said of every image, or of none."""


HEEDS = frozenset({"decode", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell a shard by its suffix, a folder of them by all of its files."""
    if not path.is_dir():
        return _is_shard(path)
    try:
        names = [name for name in path.iterdir() if not name.name.startswith(".")]
    except OSError:
        return False
    return any(_is_shard(name) for name in names) and not any(name.is_dir() for name in names)


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the image of each sample in order; of a shard, only what is asked for is in memory."""
    empty = True
    for shard in _shards(path, account):
        for sample in _samples(shard, account):
            if sample.image is not None:
                empty = False
                yield sample.lazy(options, sample.content)
    if empty:
        raise ValueError(
            f"{path} holds no image; looked for KEY{first_few(list(IMAGE_SUFFIXES), 4)}"
        )


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the labelled images of shards.

    The label is what ``key.cls`` holds, or "label" of ``key.json``; `label_key` chooses another
    key. "patient", "series", "split" and "fold" of ``key.json`` are what they say; all else there
    passes through. ``patient_from`` takes patient, series and label from names in the archive, such
    as those of class folders that were packed. Images are read from their place in the archive when
    they are asked for, which a compressed one does not allow.
    """
    samples: list[_Sample] = []
    n_unlabelled, pattern = 0, options.pattern
    for shard in _shards(path, account):
        if shard.suffix.lower() != ".tar":
            raise ValueError(
                f"{shard} is compressed, and a run reads images in any order: unpack it to a plain"
                " .tar (gunzip), which is hardly larger for images"
            )
        for sample in _samples(shard, account, contents=False):
            if sample.image is None:
                continue
            if pattern is not None:
                sample.take_from_name(pattern)
            if sample.label(label_key):
                samples.append(sample)
            else:
                n_unlabelled += 1
    if not samples:
        wanted = "KEY.cls or 'label' in KEY.json" if label_key == "labels" else repr(label_key)
        raise ValueError(
            f"{path}: none of {n_unlabelled} images has a label ({wanted}); where the names of the"
            " files have it, give --patient_from, as in '{label}/{name}'"
        )
    values = [sample.label(label_key) for sample in samples]
    columns = _columns(samples, label_key)
    split = columns.pop("split", None)
    groups: dict[str, NDArray[Any]] = {
        name: columns.pop(name) for name in ("patient", "series") if name in columns
    }
    if "fold" in columns:
        groups["patient_fold"] = as_folds(columns.pop("fold").tolist())
    return Records(
        images=[sample.lazy(options, sample.at_its_place) for sample in samples],
        values=np.array(values),
        names={value: value for value in in_order(values)},
        split=None if split is None else as_splits(split, called=f"{path}: 'split'"),
        files=np.array([str(sample.name.relative_to(path)) for sample in samples]),
        groups=groups,
        columns=columns,
        notes=(f"{n_unlabelled} images without a label are left out",) if n_unlabelled else (),
    )


@dataclass
class _Sample:
    """Files of a shard that belong together."""

    shard: Path
    key: str
    image: tarfile.TarInfo | None = None
    image_bytes: bytes = b""
    cls: str = ""
    about: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> Path:
        """The shard's path, and below it the image's name; an absolute name is below it too."""
        assert self.image is not None
        return Path(f"{self.shard}/{self.image.name.lstrip('/')}")

    def take_from_name(self, pattern: PathPattern) -> None:
        """Let patient, series and label be what a pattern takes from the image's name."""
        assert self.image is not None
        found = dict(pattern.match(self.image.name.lstrip("/")))
        found.pop("name", None)
        self.cls = found.get("label", self.cls)
        self.about |= found

    def label(self, label_key: str) -> str:
        """Return the label, or "" where there is none."""
        if label_key != "labels":
            return self.about.get(label_key, "")
        found = (self.about[key] for key in _LABEL_KEYS if key in self.about)
        return self.cls or next(found, "")

    def content(self) -> bytes:
        """Return the image's bytes, which were read in passing."""
        return self.image_bytes

    def at_its_place(self) -> bytes:
        """Read the image's bytes from the archive."""
        assert self.image is not None
        try:
            with self.shard.open("rb") as file:
                file.seek(self.image.offset_data)
                return file.read(self.image.size)
        except OSError as error:
            raise ValueError(f"cannot read {str(self.shard)!r}: {error.strerror}") from error

    def lazy(self, options: ReadOptions, content: Callable[[], bytes]) -> LazyImage:
        """Return the image, which takes label and description with it."""
        beside = ({"label": self.cls} if self.cls else {}) | self.about
        return LazyImage(self.name, partial(_decode, content, self.name, options), beside)


def _decode(
    content: Callable[[], bytes], name: Path, options: ReadOptions, image_shape: tuple[int, int]
) -> NDArray[Any]:
    return decode_image(content(), name=name, image_shape=image_shape, reading=options)


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.is_dir()


def _shards(path: Path, account: Account) -> Iterator[Path]:
    """Give the archives of a path in order."""
    if not path.is_dir():
        account.met(path)
        yield path
        return
    for name in sorted(path.iterdir()):
        if name.name.startswith("."):
            continue
        account.met(name)
        if _is_shard(name):
            yield name
        else:
            account.skip(name, "files beside tar shards")


def _samples(shard: Path, account: Account, *, contents: bool = True) -> Iterator[_Sample]:
    """Give the samples of a shard; with `contents` with the bytes of their images."""
    with _opened(shard) as archive:
        for key, members in groupby(_members(archive, shard, account), key=_key_of):
            sample = _Sample(shard, key)
            for member in members:
                suffix = member.name[len(key) :].lower()
                if suffix in IMAGE_SUFFIXES:
                    if sample.image is not None:
                        raise ValueError(
                            f"{shard}: {key!r} has two images, {sample.image.name!r} and"
                            f" {member.name!r}; give every image a key of its own"
                        )
                    sample.image = member
                    if contents:
                        sample.image_bytes = _content(archive, member)
                elif suffix == ".cls":
                    sample.cls = _text(archive, member, shard).strip()
                elif suffix == ".json":
                    sample.about = _about(_text(archive, member, shard), member, shard)
                account.by_ending[suffix or "no ending"] += 1
            yield sample


class _Header(tarfile.TarInfo):
    """A header that is told from the end of an archive, which a damaged one would pass for."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        """Read the next header."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            reason = "an archive that was cut short" if "empty" in str(error) else str(error)
            raise tarfile.ReadError(f"{reason}, at byte {archive.offset}") from error


@contextmanager
def _opened(shard: Path) -> Iterator[tarfile.TarFile]:
    # A stream where it is compressed: seeking in it would unpack it again and again.
    mode: Any = "r:" if shard.suffix.lower() == ".tar" else "r|gz"
    try:
        with tarfile.open(shard, mode, tarinfo=_Header) as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError) as error:  # zlib.error comes as a ReadError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"cannot read {str(shard)!r}: {reason}; fetch the file anew") from error


def _members(archive: tarfile.TarFile, shard: Path, account: Account) -> Iterator[tarfile.TarInfo]:
    """Give the files of an archive in order, without those that macOS puts beside them."""
    n_links = 0
    for member in archive:
        # Otherwise the archive keeps a list of all members.
        archive.members.clear()  # type: ignore[attr-defined]
        if member.size >= _MAX_BYTES:
            raise ValueError(
                f"{shard}: {member.name!r} claims {member.size} bytes, which no image has"
            )
        hidden = any(
            part.startswith("._") or part == "__MACOSX" for part in Path(member.name).parts
        )
        if member.isfile() and not hidden:
            yield member
        elif member.issym() or member.islnk():
            n_links += 1
    if n_links:
        account.notes.append(f"{n_links} links in {shard.name} are left out")


def _key_of(member: tarfile.TarInfo) -> str:
    """Return a name up to the first dot of its last part."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.split(".", 1)[0]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = archive.extractfile(member)
    assert file is not None  # as it is for files
    return file.read()


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    if member.size > _MAX_TEXT:
        raise ValueError(f"{shard}: {member.name!r} has {member.size} bytes, too many for a label")
    try:
        return _content(archive, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shard}: {member.name!r} is not UTF-8") from error


def _about(text: str, member: tarfile.TarInfo, shard: Path) -> dict[str, str]:
    """Return what a description says in plain values, as text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}: {member.name!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        return {"label": str(content)} if isinstance(content, str | int) else {}
    plain = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    return {key: str(value) for key, value in plain.items()}


def _columns(samples: list[_Sample], label_key: str) -> dict[str, NDArray[np.str_]]:
    """Return what descriptions say, "" where one does not; of `_OF_ALL` all must say it."""
    used = (label_key,) if label_key != "labels" else _LABEL_KEYS
    names = [name for name in samples[0].about if name not in used]
    names += sorted({n for s in samples for n in s.about} - set(names) - set(used))
    columns: dict[str, NDArray[np.str_]] = {}
    for name in names:
        found = [sample.about.get(name) for sample in samples]
        n_without = sum(value is None for value in found)
        if n_without and name in _OF_ALL:
            at = found.index(None)
            raise ValueError(
                f"{samples[at].name} says nothing of {name!r}, which {len(found) - n_without} of"
                f" {len(found)} images do; say it of all, or of none"
            )
        columns[name] = np.array([value or "" for value in found])
    return columns
