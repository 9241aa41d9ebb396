"""Commands that write to one place at the same time, or are killed while they write."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.cli.main import main
from nnmf_cuda.data import iter_images
from tests.processes import TRIALS, at_once, killed_after
from tests.saved_runs import SMALL

N_IMAGES = {"a": 20, "b": 33}
"""So that the two sets can be told apart by their number."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name, n in N_IMAGES.items():
        (home / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(home / name / f"{i:02d}.png")
    return home


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def read_features(out: Path) -> tuple[str, np.ndarray]:
    """Return of which set a file is and its rows; fail where they are not of one set."""
    features = np.load(out)
    names = Path(f"{out}.files.txt").read_text().splitlines()
    sets = {Path(name).parent.name for name in names}
    assert len(sets) == 1
    (which,) = sets
    assert len(features) == len(names) == N_IMAGES[which]
    return which, features


@pytest.fixture(scope="module")
def wanted(
    folders: Path, small_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    found = {}
    for name in N_IMAGES:
        out = tmp_path_factory.mktemp("wanted") / f"{name}.npy"
        assert (
            main(["extract", str(folders / name), f"--model={small_run[0]}", f"--out={out}"]) == 0
        )
        found[name] = read_features(out)[1]
    return found


def extractor(folders: Path, model: Path, name: str, out: Path, *more: str) -> Callable[[], int]:
    command = ["extract", str(folders / name), f"--model={model}", f"--out={out}", *more]
    return lambda: main([*command, "--batch_size=4"])


@pytest.mark.parametrize("trial", range(TRIALS))
def test_two_extracts_to_one_file(
    trial: int, folders: Path, small_run: tuple[Path, str], wanted: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:  # fmt: skip
    out, said = tmp_path / "out" / "f.npy", tmp_path
    out.parent.mkdir()
    overwrite = ["--overwrite"] if trial % 2 else []
    works = [extractor(folders, small_run[0], name, out, *overwrite) for name in N_IMAGES]
    ended = at_once(works, said)
    codes = [code for code, _ in ended]
    assert sorted(codes) in ([[0, 2]] if not overwrite else [[0, 0], [0, 2]]), ended
    for code, text in ended:
        if code:
            assert "is being written by another nnmf-cuda" in text or "exists: give" in text
    which, features = read_features(out)
    assert dict(zip(N_IMAGES, codes, strict=True))[which] == 0  # no false success
    np.testing.assert_array_equal(features, wanted[which])
    assert not hidden(out.parent)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_two_runs_to_one_directory(trial: int, small_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    overwrite = ["--overwrite"] if trial % 2 else []
    works = [
        lambda seed=seed: main(
            ["run", f"--data={small_npz}", f"--out={out}", f"--seed={seed}", *SMALL, *overwrite]
        )
        for seed in (1, 2)
    ]
    ended = at_once(works, tmp_path)
    codes = [code for code, _ in ended]
    assert sorted(codes) in ([[0, 2]] if not overwrite else [[0, 0], [0, 2]]), ended
    seed = json.loads((out / "model" / "model.json").read_text())["info"]["seed"]
    assert codes[seed - 1] == 0
    assert f"seed: {seed}\n" in (out / "config.yaml").read_text()
    assert (out / "metrics.json").exists()
    assert not hidden(out)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_an_extract_that_is_killed(
    trial: int, folders: Path, small_run: tuple[Path, str], wanted: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:  # fmt: skip
    """At some moment: what was there stays, or the new is there whole; the next start works."""
    rng = random.Random(trial)
    out = tmp_path / "out" / "f.npy"
    out.parent.mkdir()
    if trial % 2:
        assert extractor(folders, small_run[0], "a", out)() == 0
    work = extractor(folders, small_run[0], "b", out, "--overwrite")
    code = killed_after(work, rng.uniform(0, 0.4), tmp_path)
    assert code in (0, -signal.SIGKILL)
    if out.exists():
        which, features = read_features(out)
        np.testing.assert_array_equal(features, wanted[which])
    assert extractor(folders, small_run[0], "a", out, "--overwrite")() == 0
    which, features = read_features(out)
    assert which == "a"
    np.testing.assert_array_equal(features, wanted["a"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["f.npy", "f.npy.files.txt"]


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_that_is_killed(trial: int, small_npz: Path, tmp_path: Path) -> None:
    rng = random.Random(trial)
    out = tmp_path / "out"

    def run(seed: int) -> int:
        return main(
            ["run", f"--data={small_npz}", f"--out={out}", f"--seed={seed}", *SMALL, "--overwrite"]
        )

    assert killed_after(lambda: run(1), rng.uniform(0, 8), tmp_path) in (0, -signal.SIGKILL)
    if (out / "metrics.json").exists():
        assert json.loads((out / "model" / "model.json").read_text())["info"]["seed"] == 1
    ((code, text),) = at_once([lambda: run(2)], tmp_path)
    assert code == 0, text
    assert json.loads((out / "model" / "model.json").read_text())["info"]["seed"] == 2
    assert not hidden(out)


def test_an_extract_into_which_another_one_comes(
    folders: Path, small_run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts when the first is surely at work, and is refused at once."""
    out, ended = tmp_path / "f.npy", []

    def images(*given: object, **settings: object) -> object:
        with monkeypatch.context() as undone:
            undone.setattr("nnmf_cuda.data.iter_images", iter_images)
            ended.append(extractor(folders, small_run[0], "b", out, "--overwrite")())
        yield from iter_images(*given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("nnmf_cuda.data.iter_images", images)
    assert extractor(folders, small_run[0], "a", out)() == 0
    assert ended == [2]
    assert read_features(out)[0] == "a"
