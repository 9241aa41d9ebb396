from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import (
    Account,
    LazyImage,
    ReadOptions,
    iter_image_batches,
    iter_images,
    load_dataset,
    read_image,
)
from nnmf_cuda.data.readers import Records, table
from tests.medical_files import save_dicom, save_nifti

SaveImage = Callable[..., Path]
SaveTable = Callable[..., Path]


@pytest.fixture
def save_table(tmp_path: Path, save_image: SaveImage) -> SaveTable:
    """Return a function that writes a table in a folder, beside images/0.png .. 5.png."""
    for number in range(6):
        save_image(tmp_path / "set" / "images" / f"{number}.png")

    def save(text: str | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / "set" / name
        content = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(content)
        return path

    return save


def read(path: Path, account: Account | None = None, **options: Any) -> Records:
    label_key = options.pop("label_key", "labels")
    account = Account() if account is None else account
    return table.read(path, ReadOptions(**options), account, label_key=label_key)


def rows(header: str, *cells: str, delimiter: str = ",") -> str:
    """Return a table of images 0, 1, ... with further cells of each row."""
    lines = [header, *(f"images/{at}.png,{cell}" for at, cell in enumerate(cells))]
    return "".join(f"{line}\n" for line in lines).replace(",", delimiter)


PLAIN = rows("file,label", "no", "yes", "no")
HARD = 'file,label,note\nimages/0.png,no,"two\nlines, and ""quotes"""\nimages/1.png,yes,\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", PLAIN),
        ("semicolon.csv", PLAIN.replace(",", ";")),
        ("tab.csv", PLAIN.replace(",", "\t")),
        ("pipe.csv", PLAIN.replace(",", "|")),
        ("tab.tsv", PLAIN.replace(",", "\t")),
        ("mark.csv", b"\xef\xbb\xbf" + PLAIN.encode()),
        ("windows.csv", PLAIN.replace("\n", "\r\n")),
        ("old_mac.csv", PLAIN.replace("\n", "\r")),
        ("excel.csv", "sep=;\r\n" + PLAIN.replace("\n", "\r\n").replace(",", ";")),
        ("blank_lines.csv", PLAIN.replace("\n", "\n\n")),
        ("no_last_line_end.csv", PLAIN.rstrip("\n")),
        ("quoted.csv", '"' + PLAIN.rstrip().replace(",", '","').replace("\n", '"\n"') + '"'),
        ("spaces.csv", PLAIN.replace(",", " , ")),
        ("paths.csv", PLAIN.replace("images/", "images\\")),
        ("upper.CSV", PLAIN.replace("file,label", "Filename,Class")),
    ],
)  # fmt: skip
def test_dialects(save_table: SaveTable, name: str, content: str | bytes) -> None:
    path = save_table(content, name)
    assert table.recognises(path)
    records = read(path)
    assert records.values.tolist() == ["no", "yes", "no"]
    assert records.files.tolist() == ["images/0.png", "images/1.png", "images/2.png"]
    assert records.names == {"no": "no", "yes": "yes"}


def test_cells_in_quotes_may_hold_anything(save_table: SaveTable) -> None:
    records = read(save_table(HARD))
    assert records.columns["note"].tolist() == ['two\nlines, and "quotes"', ""]


def test_the_delimiter_is_one_that_gives_known_names(save_table: SaveTable) -> None:
    text = "file;label;a, b, c, d\nimages/0.png;no;x\nimages/1.png;yes;y\n"
    records = read(save_table(text))
    assert records.values.tolist() == ["no", "yes"]
    assert records.columns["a, b, c, d"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "has no column of files"),
        ("file,label\n", "no row with a label"),
        ("a,b\n1,2\n", r"has no column of files .*; it has 'a', 'b'; name it with --columns"),
        ("file,x\nimages/0.png,1\n", "no column of labels .* nor of masks; it has 'file', 'x'"),
        ("file,file,label\na,b,c\n", "names 'file' more than once"),
        ("path,image,label\na,b,c\n", "'path', 'image' may each be the file; choose one"),
        (PLAIN + "images/3.png,no,\n", r"line 5: 3 cells, but the header names 2 columns"),
        (PLAIN + "images/3.png\n", "line 5: 1 cells"),
        (HARD + "images/3.png,no\n", "line 5: 2 cells"),
        ('file,label\n"images/0.png,no\nimages/1.png,yes\n', "line 2: .*mend the quotes"),
        ('file,label\n"images/0"x,no\n', "line 2: .*mend the quotes"),
        ('"file,label\nimages/1.png,yes\n', "quotes of its header are not closed"),
        (PLAIN + ",no\n", "line 5: 'file' is empty"),
        ("file,label\nim\0age,no\n", "is no path"),
        (PLAIN.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("file,label\nimages/0.png,glücklich\n".encode("latin-1"), "is not UTF-8 .byte 0xfc"),
        (rows("file,label,patient", "no,1", "yes,"), "line 3: 'patient' is empty"),
        (rows("file,label,split", "no,train", "yes,dev"), "line 3: 'split' is 'dev'; give train"),
        (rows("file,label,frame", "no,0", "yes,x"), "line 3: frame 'x' is no number"),
        (rows("file,label,frame", "no,-1"), "line 2: frame '-1' is no number"),
        (PLAIN + "images/1.png,no\n", "line 3 and line 5 say different things of 'images/1.png'"),
        (PLAIN + "images/../images/1.png,no\n", "line 3 and line 5 say different things"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    save_table: SaveTable, content: str | bytes, message: str
) -> None:
    path = save_table(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "table.csv" in str(caught.value)


def test_missing_files_are_counted_and_named(save_table: SaveTable) -> None:
    text = PLAIN + "".join(f"gone/{at}.png,no\n" for at in range(7))
    message = r"7 files that do not exist: 'gone/0.png', 'gone/1.png', 'gone/2.png' and 4 more"
    for use in (read, lambda path: list(table.images(path, ReadOptions(), Account()))):
        with pytest.raises(ValueError, match=message):
            use(save_table(text))
    account = Account()
    records = read(save_table(text), account, on_error="skip")
    assert len(records.files) == 3
    assert [failure.file.name for failure in account.skipped] == [f"{at}.png" for at in range(7)]
    assert account.lines()[0] == "Files: 10 .png"


def test_paths_are_relative_to_the_table(
    save_table: SaveTable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = save_table(PLAIN)
    monkeypatch.chdir(tmp_path)
    first = read(path.relative_to(tmp_path)).images[0]
    assert isinstance(first, LazyImage)
    expected = read_image(path.parent / "images" / "0.png")
    np.testing.assert_array_equal(first.read((128, 128)), expected)
    wrong = save_table(PLAIN.replace("images/", "set/images/"))
    with pytest.raises(ValueError, match="relative to .*set, not to the current folder: move the"):
        read(wrong)


@pytest.mark.parametrize(
    ("written", "hint"), [("images\\9.png", "with / between"), ("9", "FOLDER/{NAME}.png")]
)
def test_why_files_may_be_missing(save_table: SaveTable, written: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        read(save_table(f"file,label\n{written},no\n"))


def test_paths_may_lead_anywhere(
    save_table: SaveTable, tmp_path: Path, save_image: SaveImage
) -> None:
    one, two = (save_image(tmp_path / f"{name}.png") for name in ("one", "two"))
    records = read(save_table(f"file,label\n../one.png,no\n{two},yes\n"))
    for image, file in zip(records.images, (one, two), strict=True):
        assert isinstance(image, LazyImage)
        np.testing.assert_array_equal(image.read((128, 128)), read_image(file))
    assert records.files.tolist() == ["../one.png", str(two)]


def test_rows_repeated_and_without_label_are_left_out(save_table: SaveTable) -> None:
    unknown = "images/3.png,\nimages/4.png, \nimages/5.png,NA\n"
    records = read(save_table(PLAIN + "images/0.png,no\n" + unknown))
    assert records.values.tolist() == ["no", "yes", "no"]
    assert records.notes == (
        "1 rows that repeat another are left out",
        "3 rows without a label are left out",
    )
    assert read(save_table(rows("file,label", "none", "nan"))).values.tolist() == ["none"]


def test_columns_are_known_by_usual_names_or_named(save_table: SaveTable) -> None:
    header = "image_path,Class Name,Patient ID,Series,Fold,Subset,age"
    usual = read(save_table(rows(header, "no,P1,s,10,Training,7", "yes,P2,s,9,val,8")))
    header = "where,diagnosis,pid 2,session,cv,part,age"
    named = read(
        save_table(rows(header, "no,P1,s,10,Training,7", "yes,P2,s,9,val,8")),
        columns="file=where,label=diagnosis,patient=pid 2,series=session,fold=cv,split=part",
    )
    for records in (usual, named):
        assert records.values.tolist() == ["no", "yes"]
        assert records.groups["patient"].tolist() == ["P1", "P2"]
        assert records.groups["series"].tolist() == ["s", "s"]
        assert records.groups["patient_fold"].tolist() == [10, 9]
        assert records.split is not None
        assert records.split.tolist() == ["train", "valid"]
        assert {name: found.tolist() for name, found in records.columns.items()} == {
            "age": ["7", "8"]
        }


def test_another_column_of_labels(save_table: SaveTable) -> None:
    path = save_table(rows("file,label,grade", "no,10", "yes,9", "no,10"))
    records = read(path, label_key="grade")
    assert records.values.tolist() == ["10", "9", "10"]
    assert list(records.names) == ["9", "10"]  # as numbers
    assert records.columns["label"].tolist() == ["no", "yes", "no"]
    with pytest.raises(ValueError, match="no column 'stage' .for label.; it has 'file', 'label'"):
        read(path, label_key="stage")


def test_files_put_together_from_columns(save_table: SaveTable) -> None:
    text = "id,kind,label\n0,png,no\n1,png,yes\n"
    records = read(save_table(text), columns="file=images/{id}.{kind}")
    assert records.files.tolist() == ["images/0.png", "images/1.png"]
    assert records.columns["id"].tolist() == ["0", "1"]
    with pytest.raises(ValueError, match="no column 'nr'"):
        read(save_table(text), columns="file=images/{nr}.png")
    with pytest.raises(ValueError, match="is no pattern"):
        read(save_table(text), columns="file=images/{id:05d}.png")
    with pytest.raises(ValueError, match="which only file and mask can"):
        read(save_table(text), columns="file=images/{id}.png,label={kind}")
    with pytest.raises(ValueError, match="line 3: a cell of .* is empty"):
        read(save_table("id,label\n0,no\n,yes\n"), columns="file=images/{id}.png")


def test_patients_by_the_path(save_table: SaveTable) -> None:
    records = read(save_table(PLAIN), patient_from="*/{patient}.png")
    assert records.groups["patient"].tolist() == ["0", "1", "2"]
    given = rows("file,label,patient", "no,A", "yes,B")
    assert read(save_table(given), patient_from="{patient}/*").groups["patient"].tolist() == [
        "A",
        "B",
    ]


def save_masks(folder: Path) -> None:
    """Write masks 0 .. 4 of 10 x 10 pixels, of which 0, 1, 10, 50 and 100 are in the mask."""
    for number, n_inside in enumerate((0, 1, 10, 50, 100)):
        pixels = np.zeros(100, np.uint8)
        pixels[:n_inside] = 255
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels.reshape(10, 10)).save(folder / f"{number}.png")


def test_labels_come_from_masks_where_there_is_no_other(save_table: SaveTable) -> None:
    text = rows("file,mask", *(f"masks/{at}.png" for at in range(5))) + "images/5.png,\n"
    path = save_table(text)
    save_masks(path.parent / "masks")
    for mask_area, n_negative in ((0.0, 1), (0.01, 2), (0.1, 3), (0.6, 4)):
        records = read(path, mask_area=mask_area)
        assert records.values.tolist() == ["negative"] * n_negative + ["positive"] * (
            5 - n_negative
        )
        assert list(records.names) == ["negative", "positive"]
        assert "1 rows without a mask are left out" in records.notes
    with_label = save_table(rows("file,mask,label", *(f"masks/{at}.png,{at}" for at in range(5))))
    assert read(with_label).values.tolist() == list("01234")
    (path.parent / "masks" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read mask '.*3.png'"):
        read(save_table(text))
    account = Account()
    records = read(save_table(text), account, on_error="skip")
    assert records.files.tolist() == [f"images/{at}.png" for at in (0, 1, 2, 4)]
    assert [failure.file.name for failure in account.skipped] == ["3.png"]


def test_frames_of_files(save_table: SaveTable, rng: np.random.Generator) -> None:
    stack = rng.integers(0, 256, (3, 20, 30), dtype=np.uint8)
    pages = [Image.fromarray(page) for page in stack]
    text = rows("file,label,frame", "no,0").splitlines()[0] + "\n"
    for at in (2, 0, 1):
        text += f"pages.tif,no,{at}\nstack.npy,yes,{at}.0\n"
    path = save_table(text)
    pages[0].save(path.parent / "pages.tif", save_all=True, append_images=pages[1:])
    np.save(path.parent / "stack.npy", stack)
    records = read(path)
    assert records.files.tolist()[:2] == ["pages.tif[2]", "stack.npy[2]"]
    for image, at in zip(records.images, (2, 2, 0, 0, 1, 1), strict=True):
        assert isinstance(image, LazyImage)
        np.testing.assert_array_equal(image.read((20, 30)), stack[at])
    bad = save_table("file,label,frame\npages.tif,no,3\nstack.npy,no,3\nimages/0.png,no,1\n")
    for image, message in zip(
        read(bad).images, ("has 3 pages", "there are 3", "has one frame, 0"), strict=True
    ):
        assert isinstance(image, LazyImage)
        with pytest.raises(ValueError, match=message):
            image.read((20, 30))
    bare = save_table("file,label\npages.tif,no\nstack.npy,no\n")
    for image, message in zip(read(bare).images, ("3 pages", "many images"), strict=True):
        assert isinstance(image, LazyImage)
        with pytest.raises(ValueError, match=f"{message}; give a column 'frame'"):
            image.read((20, 30))


def test_images_come_with_all_that_the_table_says(save_table: SaveTable) -> None:
    path = save_table(rows("file,label,patient,split,age", "a,P,x,7", "b,,y,", "a,P,x,7"))
    found = list(iter_images(path))
    assert [image.name for image in found if isinstance(image, LazyImage)] == [
        path.parent / "images" / f"{at}.png" for at in range(3)
    ]
    assert [dict(image.columns) for image in found if isinstance(image, LazyImage)] == [
        {"label": "a", "patient": "P", "split": "x", "age": "7"},
        {"label": "b", "patient": "", "split": "y", "age": ""},
        {"label": "a", "patient": "P", "split": "x", "age": "7"},
    ]
    with pytest.raises(ValueError, match="has no row below its header"):
        next(iter_images(save_table("file,label\n")))


def test_memory_does_not_grow_with_the_rows(save_table: SaveTable) -> None:
    def peak(n_rows: int) -> int:
        path = save_table("file,label\n" + "images/0.png,no\n" * n_rows)
        tracemalloc.start()
        n_images = sum(1 for _ in table.images(path, ReadOptions(), Account()))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_images == n_rows
        return found

    # Parts of paths are interned, and the table of all such strings would be copied now and then.
    kept = Path("images/0.png")
    assert peak(4000) < peak(500) + 50_000
    assert kept.parts


@pytest.fixture
def parquet() -> Iterator[Any]:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    return pyarrow


def test_parquet(save_table: SaveTable, parquet: Any) -> None:
    path = save_table(b"", "table.parquet")
    content = {
        "file": [f"images/{at}.png" for at in range(3)],
        "label": [1, 0, None],
        "patient": ["a", "b", "c"],
        "age": [1.5, None, 2.0],
    }
    parquet.parquet.write_table(parquet.table(content), path)
    records = read(path)
    assert records.values.tolist() == ["1", "0"]
    assert records.columns["age"].tolist() == ["1.5", ""]
    assert records.groups["patient"].tolist() == ["a", "b"]
    assert len(list(iter_images(path))) == 3
    parquet.parquet.write_table(parquet.table({"file": [["a"]], "label": [1]}), path)
    with pytest.raises(ValueError, match="column 'file' holds structures or lists"):
        read(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read '.*table.parquet'"):
            read(path)


def test_a_table_becomes_a_data_set(save_table: SaveTable, save_image: SaveImage) -> None:
    folder = save_table("").parent
    for at in range(40):
        save_image(folder / "images" / f"{at}.png")
    text = rows("file,label,patient", *(f"{'ny'[at % 2]},P{at // 4}" for at in range(40)))
    dataset = load_dataset(save_table(text))
    assert dataset.label_names == ("n", "y")
    for patient in range(10):
        assert len(set(dataset.split[dataset.groups["patient"] == f"P{patient}"].tolist())) == 1


def test_parquet_without_its_library(
    save_table: SaveTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'nnmf-cuda\[parquet\]'"):
        read(save_table(b"", "table.parquet"))


def test_dicom_files_of_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("pydicom")
    rows = ["file,label,patient,age"]
    for n in range(20):
        name = f"IM{n}" if n % 2 else f"IM{n}.dcm"
        pixels = rng.integers(0, 4096, size=(16, 16), dtype=np.uint16)
        save_dicom(tmp_path / name, pixels, PhotometricInterpretation=f"MONOCHROME{1 + n % 2}")
        rows.append(f"{name},{'ill' if n % 4 < 2 else 'well'},p{n // 2},{n}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    dataset = load_dataset(tmp_path / "list.csv", reading=ReadOptions(window="0:4095"))
    assert dataset.label_names == ("ill", "well")
    assert dataset.images.shape == (20, 128, 128)
    assert set(dataset.groups["patient"].tolist()) == {f"p{n}" for n in range(10)}
    (batch,) = iter_image_batches(iter_images(tmp_path / "list.csv"))
    assert batch.columns[3]["age"] == "3"
    (tmp_path / "IM4.dcm").write_bytes((tmp_path / "IM4.dcm").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot read DICOM file .*IM4\.dcm.* cut short"):
        load_dataset(tmp_path / "list.csv")


def test_slices_of_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("nibabel")
    rows = ["file,frame,label,patient"]
    for n in range(6):
        voxels = rng.integers(0, 1000, size=(8, 9, 4)).astype(np.int16)
        save_nifti(tmp_path / f"v{n}.nii.gz", voxels)
        rows += [f"v{n}.nii.gz,{k},{'a' if k < 2 else 'b'},p{n}" for k in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    reading = ReadOptions(window="0:999")
    dataset = load_dataset(tmp_path / "list.csv", image_shape=(9, 8), reading=reading)
    assert dataset.images.shape == (24, 9, 8)
    expected = np.clip(voxels[::-1, ::-1, 3].T / 999, 0, 1)
    np.testing.assert_allclose(dataset.images[-1], expected, atol=1e-6)
    rows[1] = "v0.nii.gz,4,a,p0"
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="there are 4 axial slices, counted from 0"):
        load_dataset(tmp_path / "list.csv")
