from __future__ import annotations

import csv
import gc
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnmf_cuda import load_model
from nnmf_cuda.cli.main import main
from nnmf_cuda.data import LazyImage
from nnmf_cuda.data import images as streams
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.pipeline.extract import extract_to_file


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(7):
        pixels = rng.integers(0, 256, (128, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"slice_{i}.png")
    return folder


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_extract_writes_raw_coefficients(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npy"
    command = ["extract", str(image_folder), f"--model={small_run[0]}", f"--out={out}"]
    assert main([*command, "--batch_size=3"]) == 0
    features = np.load(out, mmap_mode="r")
    assert features.dtype == np.float32
    model = load_model(small_run[0])
    want = model.extractor.coefficients(torch.from_numpy(pixels(image_folder)))
    np.testing.assert_allclose(features, want.numpy(), rtol=1e-4, atol=1e-5)
    names = Path(f"{out}.files.txt").read_text().splitlines()
    assert names == [str(path) for path in sorted(image_folder.glob("*.png"))]
    assert {path.name for path in tmp_path.iterdir()} == {"features.npy", "features.npy.files.txt"}


def test_extract_normalized_npz(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npz"
    command = ["extract", str(image_folder), f"--model={small_run[0]}", f"--out={out}"]
    assert main([*command, "--normalize"]) == 0
    with np.load(out) as saved:
        want = load_model(small_run[0]).features(pixels(image_folder)).numpy()
        np.testing.assert_allclose(saved["features"], want, rtol=1e-4, atol=1e-5)
        assert list(saved["files"]) == [str(path) for path in sorted(image_folder.glob("*.png"))]
        assert saved["features"].dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_extract_takes_the_archive_of_a_training(
    small_run: tuple[Path, str], small_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npz"
    command = ["extract", str(small_npz), f"--model={small_run[0]}", f"--out={out}"]
    assert main([*command, "--normalize", "--batch_size=7"]) == 0
    with np.load(out) as saved, np.load(small_npz) as given:
        want = load_model(small_run[0]).features(given["images"]).numpy()
        np.testing.assert_allclose(saved["features"], want, rtol=1e-4, atol=1e-5)
        assert str(saved["files"][1]).startswith(f"{small_npz}/")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_extract_to_file_takes_files_as_they_come(tmp_path: Path, suffix: str) -> None:
    """Odd names, failures and batches that do not divide the files, from a generator."""
    rng = np.random.default_rng(1)
    extractor = FeatureExtractor(
        torch.tensor(rng.random((3, 12))), torch.arange(3), image_shape=(3, 4)
    )
    names = [
        "a.png",
        "b c.png",
        "\u00e4\u4e2d.png",
        os.fsdecode(b"raw\xff.png"),
        "gone.png",
        "z.png",
    ]
    for name in names[:4] + names[5:]:
        Image.fromarray(rng.integers(0, 256, (3, 4), dtype=np.uint8)).save(tmp_path / name)
    out = tmp_path / f"features{suffix}"
    Path(f"{out}.failed.txt").write_text("of an earlier run")
    files = (tmp_path / name for name in names)
    assert extract_to_file(files, extractor, out, on_error="skip", batch_size=2) == (5, 1)
    kept = [str(tmp_path / name) for name in names if name != "gone.png"]
    if suffix == ".npz":
        with np.load(out) as saved:
            features, listed = saved["features"], list(saved["files"])
    else:
        features = np.load(out)
        listed = Path(f"{out}.files.txt").read_text("utf-8").splitlines()
    escape = "\udcff" if suffix == ".npz" else r"\xff"
    assert listed == [name.replace("\udcff", escape) for name in kept]
    pictures = np.stack([np.asarray(Image.open(path)) for path in kept])
    want = extractor.coefficients(torch.from_numpy(pictures)).float().numpy()
    np.testing.assert_allclose(features, want, rtol=1e-5, atol=1e-6)
    failed = Path(f"{out}.failed.txt").read_text()
    assert failed.startswith(f"{tmp_path / 'gone.png'}\tcannot read image")
    assert failed.count("\n") == 1
    again = extract_to_file([tmp_path / "a.png"], extractor, out, overwrite=True)
    assert again == (1, 0)
    assert not Path(f"{out}.failed.txt").exists()


ODD_NAMES = {
    b"a\nb.png": r"a\nb.png",
    b"a\tb\x1b.png": r"a\tb\x1b.png",
    b"raw\xff\x85.png": r"raw\xff\x85.png",
    "\u4e2d\u2028\x85 \u00a0.png".encode(): "\u4e2d\\u2028\\u0085 \u00a0.png",
    b"a\\nb.png": r"a\\nb.png",
}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_odd_names_stay_on_one_line(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    files = [tmp_path / os.fsdecode(name) for name in ODD_NAMES]
    for file in files:
        Image.new("L", (4, 3)).save(file)
    extractor = FeatureExtractor(torch.rand(2, 12), torch.arange(2), image_shape=(3, 4))
    out = tmp_path / f"features{suffix}"
    gone = [tmp_path / "gone" / file.name for file in files]
    assert extract_to_file([*files, *gone], extractor, out, on_error="skip") == (5, 5)
    if suffix == ".npy":
        listed = Path(f"{out}.files.txt").read_bytes().decode().splitlines()
    else:
        listed = parquet.read_table(out)["file"].to_pylist()
    assert listed == [f"{tmp_path}/{name}" for name in ODD_NAMES.values()]
    failed = Path(f"{out}.failed.txt").read_bytes().decode().splitlines()
    names, reasons = zip(*(line.split("\t") for line in failed), strict=True)
    assert list(names) == [f"{tmp_path}/gone/{name}" for name in ODD_NAMES.values()]
    assert all("No such file" in reason for reason in reasons)


def test_a_surrogate_that_is_no_file_name_is_listed(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    extractor = FeatureExtractor(torch.rand(2, 12), torch.arange(2), image_shape=(3, 4))
    out = tmp_path / "features.npy"
    files = [str(tmp_path / "a.png"), "\ud800.png"]
    assert extract_to_file(files, extractor, out, on_error="skip") == (1, 1)
    assert Path(f"{out}.failed.txt").read_text("utf-8").startswith("\\ud800.png\tcannot read")


def test_extract_memory_does_not_grow_with_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *, image_shape: tuple[int, int], **_: object) -> np.ndarray:
        return np.full(image_shape, int(path.stem) % 256, dtype=np.uint8)

    def peak(n_files: int) -> int:
        gc.collect()
        tracemalloc.start()
        files = (f"/images/{i:09d}.png" for i in range(n_files))
        extract_to_file(files, extractor, tmp_path / "features.npz", batch_size=64, overwrite=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    monkeypatch.setattr(streams, "read_image", read)
    extractor = FeatureExtractor(torch.rand(2, 4), torch.arange(2), image_shape=(2, 2))
    peak(200)
    # What other threads of the process take meanwhile is in it too, but not each time: what the
    # files need is in every peak.
    small, large = (min(peak(n_files) for _ in range(3)) for n_files in (1000, 6000))
    # A list of the other 5000 names alone would take 400 kB.
    assert large < small + 150_000


def test_extract_parquet(small_run: tuple[Path, str], image_folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "features.parquet"
    command = ["extract", str(image_folder), f"--model={small_run[0]}", f"--out={out}"]
    assert main([*command, "--batch_size=3"]) == 0
    table = parquet.read_table(out)
    assert table.column_names == ["file", *(f"component_{i}" for i in range(4))]
    assert table.num_rows == 7
    assert table["file"].to_pylist() == [str(path) for path in sorted(image_folder.glob("*.png"))]
    assert parquet.ParquetFile(out).num_row_groups == 1


def test_extract_skips_and_lists_unreadable_images(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "images"
    folder.mkdir()
    for path in image_folder.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "slice_3.png").write_bytes((folder / "slice_3.png").read_bytes()[:200])
    out = tmp_path / "features.npy"
    command = ["extract", str(folder), f"--model={small_run[0]}", f"--out={out}"]
    assert main(command) == 2
    assert "slice_3.png" in capsys.readouterr().err
    assert not list(tmp_path.glob("*features*"))
    assert main([*command, "--on_error=skip", "--batch_size=2"]) == 0
    assert np.load(out).shape == (6, 4)
    assert "slice_3.png" in Path(f"{out}.failed.txt").read_text()
    assert "slice_3" not in Path(f"{out}.files.txt").read_text()


def test_extract_names_all_unreadable_images(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    for name in ("slice_1.png", "slice_3.png", "slice_6.png"):
        (folder / name).write_bytes(b"damaged")
    out = tmp_path / "features.npy"
    command = ["extract", str(folder), f"--model={small_run[0]}", f"--out={out}", "--batch_size=2"]
    capsys.readouterr()
    assert main(command) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "images:" not in x]
    said, _, first = line.partition("; the first: ")
    named = [str(folder / f"slice_{number}.png") for number in (1, 3, 6)]
    assert said == f"nnmf-cuda: error: 3 of 7 images cannot be read: {str(named)[1:-1]}"
    assert "slice_1.png" in first
    assert "leave them out with --on_error skip" in first
    assert [path.name for path in tmp_path.iterdir()] == ["images"]

    monkeypatch.setattr("nnmf_cuda.pipeline.feature_files.MOST_NAMED", 2)
    monkeypatch.setattr("nnmf_cuda.data.images.MOST_NAMED", 2)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"3 of 7 images cannot be read: {str(named[:2])[1:-1]} and 1 more; the first" in said


def test_extract_computes_nothing_after_an_unreadable_image(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = FeatureExtractor(torch.rand(2, 4), torch.arange(2), image_shape=(2, 2))
    asked = []

    def coefficients(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return torch.zeros(len(images), 2)

    monkeypatch.setattr(extractor, "coefficients", coefficients)
    good = sorted(map(str, image_folder.glob("*.png")))
    files = [*good[:4], "no_such.png", *good[4:], "nor_this.png"]
    with pytest.raises(ValueError, match="2 of 9 images cannot be read: 'no_such.png', 'nor_this"):
        extract_to_file(files, extractor, tmp_path / "f.npy", batch_size=2)
    assert asked == [2, 2]


def test_features_that_are_no_numbers_are_refused(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = FeatureExtractor(torch.rand(2, 4), torch.arange(2), image_shape=(2, 2))

    def coefficients(images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 2), 3e38) * 2

    monkeypatch.setattr(extractor, "coefficients", coefficients)
    files = sorted(map(str, image_folder.glob("*.png")))
    with pytest.raises(ValueError, match="slice_0.png' is not finite: its weights are damaged"):
        extract_to_file(files, extractor, tmp_path / "f.npy")
    assert not (tmp_path / "f.npy").exists()


def test_extract_with_no_readable_image_writes_nothing(
    small_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    out = tmp_path / "features.npy"
    command = ["extract", str(tmp_path / "bad.png"), f"--model={small_run[0]}", f"--out={out}"]
    assert main([*command, "--on_error=skip"]) == 2
    assert "none of the 1 images could be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features.csv", "the ending must be one of .npy, .npz, .parquet"),
        ("there.npy", "exists: give another name, or --overwrite"),
        ("missing/features.npy", "does not exist"),
    ],
)
def test_extract_rejects_a_bad_out(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path, name: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "there.npy").write_bytes(b"kept")
    command = ["extract", str(image_folder), f"--model={small_run[0]}", f"--out={tmp_path / name}"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.npy").read_bytes() == b"kept"


def test_predict_prints_probabilities_that_batches_do_not_change(
    small_run: tuple[Path, str], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(image_folder), f"--model={small_run[0]}"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    header, *rows = (line.split(",") for line in printed.splitlines())
    names = load_model(small_run[0]).label_names
    assert header == ["file", "label", *(f"p({name})" for name in names)]
    assert len(rows) == 7
    for _, label, *probabilities in rows:
        values = [float(p) for p in probabilities]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert label == names[int(np.argmax(values))]
    assert main([*command, "--batch_size=2"]) == 0
    again = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    for a, b in zip(rows, again, strict=True):
        assert a[1] == b[1]
        assert float(a[2]) == pytest.approx(float(b[2]), abs=1e-5)
    assert main([*command, "--undefended"]) == 0
    assert capsys.readouterr().out != printed


def sources_with_columns(columns: list[dict[str, str]]) -> list[LazyImage]:
    def source(index: int, said: dict[str, str]) -> LazyImage:
        value = np.uint8(index * 20)
        return LazyImage(Path(f"table.csv/{index}"), lambda shape: np.full(shape, value), said)

    return [source(index, said) for index, said in enumerate(columns)]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_columns_of_a_source_pass_through(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    said = [
        {"age": "61", "file": "theirs", "a/b": "x"},
        {"age": 'se"ven,\n', "file": "2", "a/b": "é"},
        {"age": "", "a/b": "long enough to widen"},
        {"age": "7", "later": "is left out"},
    ]
    extractor = FeatureExtractor(torch.rand(2, 12), torch.arange(2), image_shape=(3, 4))
    out = tmp_path / f"features{suffix}"
    assert extract_to_file(sources_with_columns(said), extractor, out, batch_size=2) == (4, 0)
    found: dict[str, list[str]]
    if suffix == ".npy":
        with Path(f"{out}.columns.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        found = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    elif suffix == ".npz":
        with np.load(out) as arrays:
            found = {name: arrays[name].tolist() for name in arrays.files if name != "features"}
        found["file"], found["given_file"] = found.pop("files"), found.pop("file")
        found["a/b"] = found.pop("a_b")
    else:
        table = parquet.read_table(out)
        found = {name: table[name].to_pylist() for name in table.column_names}
        found = {name: cells for name, cells in found.items() if "component" not in name}
    assert found == {
        "file": [f"table.csv/{index}" for index in range(4)],
        "age": [one.get("age", "") for one in said],
        "given_file": [one.get("file", "") for one in said],
        "a/b": [one.get("a/b", "") for one in said],
    }
    assert "columns that the first images do not have: later" in caplog.text


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_no_column_is_lost_to_another_of_the_same_name_in_the_file(
    tmp_path: Path, suffix: str
) -> None:
    names = [
        "a/b",
        "a_b",
        "a\\b",
        "a\0b",
        "a\0c",
        "features.npy",
        "\ud800",
        "",
        ".npy",
        "given_a_b",
    ]
    said = [{name: f"{row} of {name!r}" for name in names} for row in range(2)]
    extractor = FeatureExtractor(torch.rand(2, 12), torch.arange(2), image_shape=(3, 4))
    out = tmp_path / f"features{suffix}"
    assert extract_to_file(sources_with_columns(said), extractor, out) == (2, 0)
    if suffix == ".npz":
        with np.load(out) as arrays:
            assert arrays["features"].shape == (2, 2)
            found = [arrays[name].tolist() for name in arrays.files]
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        found = [column.to_pylist() for column in table.columns]
    for name in names:
        assert [one[name] for one in said] in found, name


def test_without_columns_there_is_no_file_of_them(tmp_path: Path) -> None:
    extractor = FeatureExtractor(torch.rand(2, 12), torch.arange(2), image_shape=(3, 4))
    out = tmp_path / "features.npy"
    extract_to_file(sources_with_columns([{"age": "1"}]), extractor, out)
    assert Path(f"{out}.columns.csv").exists()
    extract_to_file(sources_with_columns([{}]), extractor, out, overwrite=True)
    assert not Path(f"{out}.columns.csv").exists()


def test_predict_answers_all_that_can_be_read_and_names_the_others(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shutil.copytree(image_folder, tmp_path / "images")
    for index in (2, 5):
        (folder / f"slice_{index}.png").write_text("no image")
    (folder / "notes.gif").write_text("about")
    command = ["predict", str(folder), f"--model={small_run[0]}", "--batch_size=2"]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 5
    error = printed.err.splitlines()[-1]
    assert error.startswith("nnmf-cuda: error: 2 of 7 images cannot be read: ")
    assert "slice_2.png" in error
    assert "slice_5.png" in error
    assert "--on_error skip" in error
    assert main([*command, "--on_error=skip"]) == 0
    again = capsys.readouterr()
    assert again.out == printed.out
    lines = again.err.splitlines()
    assert "Files: 7 .png, 1 .gif" in lines
    assert "Images read: 5" in lines
    assert "Left out, unreadable: 2 (slice_2.png, slice_5.png)" in lines
    assert "Left out, no image by its ending .gif: 1 (notes.gif)" in lines
    for path in folder.glob("*.png"):
        path.write_text("no image")
    assert main([*command, "--on_error=skip"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: 7 of 7 images cannot be read; the first: cannot read image" in last
    assert "slice_5" not in last


def test_predict_passes_the_columns_of_a_table_through(
    small_run: tuple[Path, str], image_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table = tmp_path / "table.csv"
    names = sorted(path.name for path in image_folder.glob("*.png"))
    rows = [f'{image_folder / name},{index},"a, b"' for index, name in enumerate(names)]
    table.write_text("\n".join(["file,age,remark", *rows]))
    assert main(["predict", str(table), f"--model={small_run[0]}"]) == 0
    header, *found = csv.reader(capsys.readouterr().out.splitlines())
    assert header[:4] == ["file", "age", "remark", "label"]
    assert [row[1:3] for row in found] == [[str(index), "a, b"] for index in range(len(names))]
