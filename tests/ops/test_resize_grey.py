"""`resize_grey` against Pillow, whose bytes it has, and against the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import DEVICES, poison_free_memory

SIZES = [
    ((640, 640), (128, 128)),
    ((512, 509), (128, 128)),
    ((160, 160), (128, 128)),
    ((128, 128), (128, 128)),
    ((129, 31), (33, 128)),
    ((3, 5), (128, 127)),
    ((1, 1), (9, 4)),
    ((1, 70), (3, 1)),
    ((997, 13), (7, 13)),
    ((41, 2), (40, 3)),
    ((2000, 30), (1, 1)),
]


def by_pillow(images: Tensor, height: int, width: int) -> Tensor:
    """Resize along the rows, then along the columns: which goes first hangs on Pillow's version."""
    resized = [
        np.asarray(
            Image.fromarray(image)
            .resize((width, len(image)), Image.Resampling.BILINEAR)
            .resize((width, height), Image.Resampling.BILINEAR)
        )
        for image in images.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized))


def pictures(shape: tuple[int, ...], kind: str) -> Tensor:
    if kind == "noise":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    if kind == "black and white":
        return torch.randint(0, 2, shape, dtype=torch.uint8) * 255
    return torch.full(shape, 255, dtype=torch.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["noise", "black and white", "white"])
@pytest.mark.parametrize(("size", "to"), SIZES)
def test_every_byte_is_pillows(
    device: str, size: tuple[int, int], to: tuple[int, int], kind: str
) -> None:
    poison_free_memory(device)
    images = pictures((3, *size), kind)
    want = by_pillow(images, *to)
    got = ops.resize_grey(images.to(device), height=to[0], width=to[1])
    assert (got.device.type, got.dtype) == (device, torch.uint8)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)
    by_reference = reference.resize_grey(images.to(device), height=to[0], width=to[1])
    torch.testing.assert_close(by_reference.cpu(), want, rtol=0, atol=0)


def test_random_sizes_are_pillows() -> None:
    draw = np.random.default_rng(torch.initial_seed() % 2**32)
    for _ in range(150):
        height, width, *to = (int(2**power) for power in draw.uniform(0, 9, size=4))
        images = pictures((1, height, width), "noise")
        want = by_pillow(images, *to)
        got = ops.resize_grey(images, height=to[0], width=to[1])
        assert torch.equal(got, want), (height, width, to)


def test_views_and_no_images() -> None:
    images = pictures((4, 40, 66), "noise")
    view = images[::2, 3:, 1::3]
    assert torch.equal(ops.resize_grey(view, height=9, width=7), by_pillow(view.contiguous(), 9, 7))
    assert ops.resize_grey(images[:0], height=9, width=7).shape == (0, 9, 7)


@pytest.mark.needs_ext
def test_every_instruction_set_gives_the_same_bytes() -> None:
    code = (
        "import torch; from nnmf_cuda import ops; torch.manual_seed(0);"
        "x = torch.randint(0, 256, (2, 203, 77), dtype=torch.uint8);"
        "y = ops.resize_grey(x, height=31, width=50);"
        "print(int((y.long() * torch.arange(y.numel()).reshape(y.shape)).sum()))"
    )
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 203, 77), dtype=torch.uint8)
    want = by_pillow(images, 31, 50).long()
    checksum = int((want * torch.arange(want.numel()).reshape(want.shape)).sum())
    for isa in ("baseline", ""):
        environment = os.environ | {"NNMF_CUDA_CPU_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == checksum, isa


def test_opcheck() -> None:
    images = pictures((2, 9, 11), "noise")
    torch.library.opcheck(torch.ops.nnmf_cuda.resize_grey, (images,), {"height": 4, "width": 20})


@pytest.mark.parametrize(
    ("images", "sides", "error", "match"),
    [
        (torch.zeros(1, 4, 4), (2, 2), TypeError, "images must be torch.uint8|uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), (2, 2), ValueError, "images must have 3 dim"),
        (torch.zeros(1, 0, 4, dtype=torch.uint8), (2, 2), ValueError, "must have pixels"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), (0, 2), ValueError, "height must be >= 1"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), (2, -1), ValueError, "width must be >= 1"),
    ],
)
def test_what_is_refused(
    images: Tensor, sides: tuple[int, int], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ops.resize_grey(images, height=sides[0], width=sides[1])
