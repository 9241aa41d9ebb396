from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import Account, ReadOptions
from nnmf_cuda.data.reading import PathPattern, Window, to_unit_range


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"window": "5"}, "window must be low:high .* got '5'"),
        ({"window": "5:5"}, "window must be low:high"),
        ({"window": "1:p99"}, "window must be low:high"),
        ({"window": "p1:p101"}, "percentiles, as in p1:p99; got 'p1:p101'"),
        ({"window": "nan:3"}, "window must be low:high"),
        ({"window": "1:2:3"}, "window must be low:high"),
        ({"patient_from": "plain"}, "patient_from must be a pattern .* got 'plain'"),
        ({"patient_from": "{patient}/{patient}"}, "each once"),
        ({"patient_from": "{person}/{name}"}, "of {patient}, {series}, {name}, {label}"),
        ({"columns": "file"}, "'file' is not ours=theirs"),
        ({"columns": "file=a,file=b"}, "'file=b' is not ours=theirs, each of ours once"),
        ({"columns": "age=a"}, "out of file, label, patient"),
        ({"mask_area": 1.0}, r"mask_area must be a share of the pixels, in \[0, 1\); got 1.0"),
        ({"axis": "oblique"}, "axis must be one of axial, coronal, sagittal; got 'oblique'"),
        ({"decode": "quick"}, "decode must be one of exact, fast; got 'quick'"),
        ({"on_error": "ignore"}, "on_error must be one of raise, skip; got 'ignore'"),
    ],
)
def test_options_are_checked_when_they_are_made(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadOptions(**option)


def test_options_are_read() -> None:
    options = ReadOptions(window="-160:240", columns="file=path, label = kind", axis="coronal")
    assert options.grey_window == Window(-160.0, 240.0)
    assert options.column_names == {"file": "path", "label": "kind"}
    assert options.changed() == ["window", "columns", "axis"]
    assert ReadOptions().changed() == []
    assert ReadOptions(window="p1:p99.5").grey_window == Window(1.0, 99.5, percentiles=True)


def test_a_window_maps_its_ends_to_black_and_white() -> None:
    values = np.array([-500, -160, 40, 240, 3000], np.int16)
    unit = to_unit_range(values, Window.parse("-160:240").limits(values))
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.array([0, 0, 0.5, 1, 1], np.float32))
    ramp = np.arange(101, dtype=np.float64)
    assert Window.parse("p10:p90").limits(ramp) == (10.0, 90.0)
    assert not to_unit_range(np.full(3, 7), Window.parse("p1:p99").limits(np.full(3, 7))).any()


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{patient}/{name}", "P1/a.png", {"patient": "P1", "name": "a.png"}),
        ("{patient}/{name}", "P1/deeper/a.png", {"patient": "P1", "name": "deeper"}),
        ("*/{patient}_*", "yes/P1_3_x.png", {"patient": "P1"}),
        (
            "{patient}_{series}/{name}.png",
            "A_b/c.png",
            {"patient": "A", "series": "b", "name": "c"},
        ),
        ("{label}/[{patient}]", "x/[é.+]", {"label": "x", "patient": "é.+"}),
    ],
)
def test_patterns_take_names_out_of_paths(pattern: str, path: str, found: dict[str, str]) -> None:
    assert PathPattern(pattern).match(path) == found


@pytest.mark.parametrize("path", ["a.png", "P1", "x/y"])
def test_a_path_that_does_not_fit_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"'{{patient}}_{{series}}/b' does not fit '{path}'"):
        PathPattern("{patient}_{series}/b").match(path)


def test_an_account_tells_equal_reasons_together() -> None:
    account = Account(n_read=7)
    for name in ("a.PNG", "b.png", "c", "d.gif", "e.gif"):
        account.met(Path("here", name))
    account.skip(Path("here/d.gif"), "no image")
    account.skip(Path("there/e.gif"), "no image")
    account.skip(Path("c"), "truncated")
    account.notes.append("All is said.")
    assert account.lines() == [
        "Files: 2 .png, 2 .gif, 1 no ending",
        "Images read: 7",
        "Left out, no image: 2 (d.gif, e.gif)",
        "Left out, truncated: 1 (c)",
        "All is said.",
    ]
