"""What a reader hands over, checked before anything is trained on it."""

import re
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.face_data import FaceData, Split

NAMES = ("calm", "glad", "low")


def split(*labels, images=None):
    count = len(labels) if images is None else images
    names = np.array([f"{i}.png" for i in range(count)], dtype="S")
    return Split(Path("faces"), names, np.array(labels, np.int64))


@pytest.mark.parametrize("names", [list(NAMES), np.array(NAMES), np.array(NAMES, dtype=object)])
def test_class_names_become_plain_text(names):
    data = FaceData("Own", "own", names, split(0, 1, 2), split())
    assert data.class_names == NAMES
    assert {type(name) for name in data.class_names} == {str}


def test_numbers_can_name_classes():
    data = FaceData("Own", "own", (1, 2, 3), split(0, 1, 2), split(2))
    assert data.class_names == ("1", "2", "3")
    assert "total" in data.summary()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("Own", ("calm", "glad", "calm"), split(0), split(1)), "twice (calm, glad, calm)"),
        (
            ("Own", ("calm", "glad", " "), split(0), split(1)),
            "calm, glad,  : not all of it is text",
        ),
        (("", NAMES, split(0), split(1)), "not all of it is text"),
        (("Own", NAMES, split(1, 3), split(1)), "labels from 1 to 3, but those of 3 classes are 0"),
        (("Own", NAMES, split(1), split(-1, 0)), "labels from -1 to 0, but those of 3 classes"),
        (("Own", NAMES, split(1), split(0, 1, images=3)), "2 labels for 3 images"),
    ],
)
def test_what_cannot_be_trained_on(given, says):
    name, *rest = given
    with pytest.raises(UserError, match=f"^faces: .*{re.escape(says)}"):
        FaceData(name, "own", *rest)
