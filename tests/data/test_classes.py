from __future__ import annotations

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
        ("1=a,2=a", "two classes the same name"),
        ("1=a", "names one class; name at least two"),
    ],
)
def test_what_is_no_mapping_is_refused(classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_classes(classes)


def test_only_two_classes_have_a_positive_one() -> None:
    def note(values: str, classes: str | None) -> str:
        found = np.array(list(values))
        images = np.zeros((len(found), 2, 2), np.uint8)
        records = Records(images, found, {value: value for value in values}, None, found)
        *_, notes = choose_classes(records, classes=classes, source="here")
        return notes[0]

    two = note("12", "2=Normal,1=Tumor")
    assert two.endswith("label 1 is 'Tumor' (1 in the source), the positive class")
    assert "positive" not in note("abc", None)
