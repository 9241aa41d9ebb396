"""Files that are made to fill a memory, to reach outside, or to be read for ever."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.samples import coco, npz, png
from tests.fuzz.watch import problems_of

ZEROS = bytes(2**20)


def zip_bomb(home: Path) -> Path:
    """Write a megabyte that claims, and holds, ten gigabytes of pixels; here it is cut short."""
    path = home / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            shape = {"descr": "|u1", "fortran_order": False, "shape": (10_000, 1024, 1024)}
            np.lib.format.write_array_header_1_0(member, shape)
            for _ in range(64):
                member.write(ZEROS)
    return path


def png_bomb(home: Path) -> Path:
    """Write a PNG of 225 million pixels in a megabyte."""
    side = 15_000
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (home / "bomb").mkdir()
    with (home / "bomb" / "bomb.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")):
            crc = zlib.crc32(kind + body)
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc))
    return home / "bomb"


def text_bomb(home: Path) -> Path:
    """Write a PNG whose comment unpacks to a thousand times its size."""
    path = png(home) / "no" / "00.png"
    data = path.read_bytes()
    body = b"zTXtComment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:])
    return home / "classes"


def deep_coco(home: Path) -> Path:
    """Write annotations that are nested too deep for any reader."""
    folder = coco(home)
    for path in folder.rglob("*.json"):
        path.write_text("[" * 200_000)
    return folder


def coco_outside(home: Path) -> Path:
    """Write annotations that name files outside."""
    folder = coco(home)
    (home / "secret.jpg").write_bytes((folder / "train" / "0.jpg").read_bytes())
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        content["images"][0]["file_name"] = "../../secret.jpg"
        path.write_text(json.dumps(content))
    return folder


def zip_outside(home: Path) -> Path:
    """Write an archive whose members would land outside if they were unpacked."""
    path = npz(home)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil.npy", b"x")
        archive.writestr("/evil.npy", b"x")
    return path


def tar_outside(home: Path) -> Path:
    """Write a shard with links, devices and names that lead outside."""
    path = home / "shard.tar"
    image = io.BytesIO()
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(image, format="PNG")
    with tarfile.open(path, "w") as archive:
        for name in ("../evil.png", "/evil.png", "a/0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(image.getvalue())
            archive.addfile(member, io.BytesIO(image.getvalue()))
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../x")):
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = kind, target
            archive.addfile(member)
        device = tarfile.TarInfo("device.png")
        device.type = tarfile.FIFOTYPE
        archive.addfile(device)
    return path


def endless(home: Path) -> Path:
    """Write class folders with a pipe, a device and loops of links among the images."""
    folder = png(home)
    os.mkfifo(folder / "no" / "pipe.png")
    (folder / "no" / "zero.png").symlink_to("/dev/zero")
    (folder / "yes" / "itself.png").symlink_to(folder / "yes" / "itself.png")
    (folder / "yes" / "above").symlink_to(folder)
    return folder


def pipe(home: Path) -> Path:
    """Make a pipe, from which nothing ever comes."""
    os.mkfifo(home / "data.npz")
    return home / "data.npz"


MADE = (
    *(zip_bomb, png_bomb, text_bomb, deep_coco, coco_outside),
    *(zip_outside, tar_outside, endless, pipe),
)


@pytest.mark.parametrize("make", MADE, ids=lambda make: str(make.__name__))
def test_bombs_and_tricks(
    make: Callable[[Path], Path], small_run: tuple[Path, str], tmp_path: Path
) -> None:
    home, outside = tmp_path / "in", tmp_path / "out"
    home.mkdir()
    outside.mkdir()
    source = make(home)
    before = sorted(tmp_path.rglob("*"))
    for skip in ("raise", "skip"):
        command = ["predict", str(source), f"--model={small_run[0]}", f"--on_error={skip}"]
        assert problems_of(command, outside / "of")[1] == []
    assert problems_of(["audit", f"--data={source}", "--resolution=8"], outside / "of")[1] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_that_names_itself(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "c.yaml").symlink_to(tmp_path / "c.yaml")
    command = ["run", f"--config={tmp_path / 'c.yaml'}", f"--out={tmp_path / 'out' / 'of'}"]
    assert problems_of(command, tmp_path / "out" / "of") == (2, [])
