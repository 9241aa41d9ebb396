from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.data import load_dataset


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder: '.*/none.npz'"):
        load_dataset(tmp_path / "none.npz")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.touch()
    with pytest.raises(ValueError, match=r"data.csv' is neither an .npz nor a folder"):
        load_dataset(path)


def test_label_key_is_for_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_key='kind' picks an array of an .npz, but"):
        load_dataset(tmp_path, label_key="kind")


def test_a_bad_mapping_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes='1' names one class"):
        load_dataset(tmp_path / "none.npz", classes="1")


def test_groups_follow_the_images_that_are_kept(save_npz: Callable[..., Path]) -> None:
    path = save_npz(labels=np.arange(40) % 4, patient=np.arange(40), series=np.arange(40) * 2)
    dataset = load_dataset(path, classes="3=c,1=a", split_by="random")
    assert dataset.groups["patient"].tolist() == list(range(1, 40, 2))
    assert dataset.groups["series"].tolist() == list(range(2, 80, 4))
    assert dataset.labels.tolist() == [1, 0] * 10
    np.testing.assert_array_equal(dataset.images, np.load(path)["images"][1::2])
    assert dataset.source == str(path)


def test_importing_does_not_load_pillow_or_tqdm() -> None:
    code = (
        "import sys, nnmf_cuda.data; "
        "loaded = {'PIL', 'tqdm', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_rare_class_is_named_before_any_image_is_decoded(
    tmp_path: Path, save_npz: Callable[..., Path], save_image: Callable[..., Path]
) -> None:
    for name, n in (("no", 6), ("rare", 4), ("yes", 6)):
        for index in range(n):
            save_image(tmp_path / name / f"{index}.png")
    assert load_dataset(tmp_path, n_train_needed=2).n_classes == 3
    (tmp_path / "rare" / "3.png").unlink()
    for path in tmp_path.glob("*/*.png"):
        path.write_text("no image: reading it would be another error")
    with pytest.raises(ValueError, match="'rare' has 1 train image of 2 needed .no 4, rare 1, yes"):
        load_dataset(tmp_path, n_train_needed=2)
