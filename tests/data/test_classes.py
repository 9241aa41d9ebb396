from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import parse_classes
from nnmf_cuda.data.load import choose_classes
from nnmf_cuda.data.readers import Records


def test_the_mapping_keeps_the_order_given() -> None:
    mapping = parse_classes(" 2=Normal, 1 = Tumor ")
    assert list(mapping.items()) == [("2", "Normal"), ("1", "Tumor")]


def test_a_name_alone_stands_for_itself() -> None:
    assert parse_classes("no,yes=Tumor") == {"no": "no", "yes": "Tumor"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "'' is not value=name"),
        ("1=a,", "'' is not value=name"),
        ("1=a,2=", "'2=' is not value=name"),
        ("=a,2=b", "'=a' is not value=name"),
        ("1=a,1=b", "'1' occurs twice"),
        ("1=a,2=a", "names one class; name at least two, as in no=no,glioma=tumor"),
        ("1=Tumor,2=tumor ", "'Tumor' and 'tumor' differ in case or spaces alone"),
        ("1=a", "names one class; name at least two"),
    ],
)
def test_what_is_no_mapping_is_refused(classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_classes(classes)


def choice(values: str, names: dict[str, str] | None = None, classes: str | None = None) -> Any:
    found = np.array(list(values))
    images = np.zeros((len(found), 2, 2), np.uint8)
    records = Records(images, found, names or {value: value for value in values}, None, found)
    return choose_classes(records, classes=classes, source="here")


def test_values_of_one_name_become_one_class_at_the_place_of_the_first() -> None:
    assert parse_classes("n=no,g=tumor,p=tumor") == {"n": "no", "g": "tumor", "p": "tumor"}
    records, labels, names, notes = choice("ngpxgn", classes="g=tumor,n=no,p=tumor")
    assert names == ("tumor", "no")
    assert labels.tolist() == [1, 0, 0, 0, 1]
    assert records.values.tolist() == ["n", "g", "p", "g", "n"]
    assert (
        "label 0 is 'tumor' (g and p in the source), label 1 is 'no' (n in the source)"
        in (notes[0])
    )
    assert notes[1] == "1 images of classes not chosen are left out"


def test_names_that_nobody_can_tell_apart_are_refused_with_what_to_type() -> None:
    names = {"1": "tumor", "2": "no", "3": "tumor"}
    with pytest.raises(ValueError, match=r"here: the classes 1 \('tumor'\) and 3 \('tumor'\)") as e:
        choice("1233", names)
    merged, apart = (part.split("'")[0] for part in str(e.value).split("--classes '")[1:])
    assert choice("1233", names, merged)[2] == ("tumor", "no")
    assert choice("1233", names, apart)[2] == ("tumor 1", "tumor 3", "no")
    with pytest.raises(ValueError, match="cannot be told apart by their names"):
        choice("12", {"1": "Tumor ", "2": "tumor"})
    assert choice("1122", names)[2] == ("tumor", "no")  # class 3 has no image: nothing to confuse


def test_only_two_classes_have_a_positive_one() -> None:
    def note(values: str, classes: str | None) -> str:
        return str(choice(values, classes=classes)[-1][0])

    two = note("12", "2=Normal,1=Tumor")
    assert two.endswith("label 1 is 'Tumor' (1 in the source), the positive class")
    assert "positive" not in note("abc", None)
