"""What is told of fast decoding, by the function and by the commands."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnmf_cuda.cli.main import main
from nnmf_cuda.data import ReadOptions, read_images
from nnmf_cuda.models import FeatureExtractor
from nnmf_cuda.pipeline.fast_decoding import fast_decoding_note
from tests.saved_runs import SMALL

FAST = ReadOptions(decode="fast")


def save_jpegs(folder: Path, n: int, *, side: int = 640, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (80, 80), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.jpg")
    return folder


@pytest.fixture
def extractor() -> FeatureExtractor:
    generator = torch.Generator().manual_seed(0)
    components = torch.rand(3, 128 * 128, generator=generator)
    return FeatureExtractor(components, torch.arange(3), image_shape=(128, 128))


def test_the_note_has_the_differences(tmp_path: Path, extractor: FeatureExtractor) -> None:
    folder = save_jpegs(tmp_path / "jpegs", 4)
    files = sorted(folder.glob("*.jpg"))
    exact, fast = read_images(files), read_images(files, reading=FAST)
    difference = np.abs(exact.astype(int) - fast)
    want, found = (
        extractor.coefficients(torch.from_numpy(images)).double() for images in (exact, fast)
    )
    share = 100 * (found - want).norm(dim=1) / want.norm(dim=1)
    note = fast_decoding_note(str(folder), FAST, extractor)
    assert note.startswith("--decode fast: grey values of the first 4 images differ ")
    assert f"by {difference.mean():.2f} of 255 on average and {difference.max()} at most" in note
    assert f"by {share.mean():.2g} % of their length and {share.max():.2g} % at most" in note
    assert difference.max() > 0


def test_small_images_are_told_to_be_the_same(tmp_path: Path, extractor: FeatureExtractor) -> None:
    folder = save_jpegs(tmp_path / "jpegs", 2, side=200)
    note = fast_decoding_note(str(folder), FAST, extractor)
    assert "the first 2 images are the same as exactly" in note


def test_without_a_readable_image_that_is_said(tmp_path: Path, extractor: FeatureExtractor) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff no image")
    note = fast_decoding_note(str(tmp_path), FAST, extractor)
    assert "none of the first images can be compared" in note


def test_the_commands_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for label, name in enumerate(("no", "yes")):
        save_jpegs(data / name, 20, seed=label)
    assert main(["run", f"--data={data}", "--decode=fast", f"--out={run}", *SMALL]) == 0
    told = "--decode fast: grey values of the first 32 images differ"
    capsys.readouterr()
    notes = json.loads((run / "metrics.json").read_text())["notes"]
    assert sum(told in note for note in notes) == 1
    out = tmp_path / "features.npy"
    extract = ["extract", str(data / "yes"), f"--model={run}", f"--out={out}"]
    assert main([*extract, "--decode=fast"]) == 0
    assert "--decode fast: grey values of the first 20 images" in capsys.readouterr().err
    fast = np.load(out)
    assert main([*extract, "--overwrite"]) == 0
    assert "--decode fast" not in capsys.readouterr().err
    exact = np.load(out)
    assert 0 < np.abs(fast - exact).max() < 0.05 * np.abs(exact).max()
    assert main(["predict", str(data / "yes"), f"--model={run}", "--decode=fast"]) == 0
    printed = capsys.readouterr()
    assert "--decode fast: grey values" in printed.err
    assert "--decode" not in printed.out
    assert len(io.StringIO(printed.out).readlines()) == 21
