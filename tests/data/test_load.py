from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import LazyImage, ReadOptions, load_dataset, read_image, read_images


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder: '.*/none.npz'"):
        load_dataset(tmp_path / "none.npz")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.touch()
    with pytest.raises(
        ValueError, match=r"data.txt' is no data set, but one file .* give class folders, a table"
    ):
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


def test_importing_loads_no_library_that_reads_or_computes() -> None:
    code = (
        "import sys, nnmf_cuda.data; "
        "names = {'PIL', 'tqdm', 'matplotlib', 'torch', 'pydicom', 'nibabel', 'h5py'}; "
        "loaded = names & set(sys.modules); "
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


@pytest.fixture
def with_bad(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    for name in ("no", "yes"):
        for index in range(8):
            save_image(tmp_path / name / f"{index}.png")
    for name in ("no/2", "no/7", "yes/0"):
        (tmp_path / f"{name}.png").write_text("no image")
    return tmp_path


def test_all_bad_files_are_named(with_bad: Path) -> None:
    with pytest.raises(ValueError, match="3 of 16 images cannot be read: .*--on_error skip") as e:
        load_dataset(with_bad)
    assert all(f"{name}.png" in str(e.value) for name in ("no/2", "no/7", "yes/0"))


def test_bad_files_can_be_skipped_and_are_named_in_the_account(with_bad: Path) -> None:
    dataset = load_dataset(with_bad, reading=ReadOptions(on_error="skip"))
    good = [f"{c}/{i}.png" for c in ("no", "yes") for i in range(8)]
    good = [name for name in good if name not in ("no/2.png", "no/7.png", "yes/0.png")]
    assert dataset.files.tolist() == good
    assert dataset.labels.tolist() == [0] * 6 + [1] * 7
    for image, name in zip(dataset.images, good, strict=True):
        np.testing.assert_array_equal(image, read_image(with_bad / name))
    assert "Left out, unreadable: 3 (2.png, 7.png, 0.png)" in dataset.notes
    assert "Images read: 13" in dataset.notes
    assert "Files: 16 .png" in dataset.notes
    assert dataset.notes[-1].startswith("Labels: 6 no, 7 yes; patients: unknown; splits: ")


def test_equal_images_of_two_classes_or_splits_are_warned_of(
    tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    for split in ("train", "valid", "test"):
        for name in ("no", "yes"):
            for index in range(3):
                save_image(tmp_path / split / name / f"{index}.png")
    assert not any("Warning" in note for note in load_dataset(tmp_path).notes)
    shutil.copy(tmp_path / "train/no/1.png", tmp_path / "train/yes/1.png")
    shutil.copy(tmp_path / "train/no/0.png", tmp_path / "test/no/2.png")
    shutil.copy(tmp_path / "test/no/1.png", tmp_path / "valid/no/1.png")  # neither trains
    warnings = [note for note in load_dataset(tmp_path).notes if "Warning" in note]
    assert warnings == [
        "Warning: 1 images equal one of another class, as train/yes/1.png (yes) does"
        " train/no/1.png (no): a label is wrong, or a folder is a copy",
        "Warning: 1 images of valid and test equal a training image, as test/no/2.png (test) does"
        " train/no/0.png",
    ]


def test_images_with_nothing_on_them_are_warned_of(
    tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    for name in ("no", "yes"):
        for index in range(8):
            save_image(tmp_path / name / f"{index}.png")
        for index in range(2):
            Image.new("L", (20, 20), 40).save(tmp_path / name / f"9{index}.png")
    warnings = [note for note in load_dataset(tmp_path).notes if "Warning" in note]
    assert warnings == [
        "Warning: 4 images are of one grey value, as no/90.png: nothing is on them, or --window "
        "does not fit"
    ]


def test_bytes_and_floats_in_one_source_become_floats(tmp_path: Path) -> None:
    def source(index: int) -> LazyImage:
        value = np.uint8(51 * (index % 3)) if index % 2 else np.float32(0.5)
        return LazyImage(Path(str(index)), lambda shape: np.full(shape, value))

    images = read_images([source(index) for index in range(6)], image_shape=(2, 3))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[:, 0, 0], [0.5, 0.2, 0.5, 0, 0.5, 0.4], rtol=1e-6)
