"""What annotations of AffectNet's releases can hold besides what they should."""

import io
import tokenize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.affectnet_layouts import write_image
from utils.affectnet.releases import read_release
from utils.errors import UserError
from utils.labels import AFFECTNET

NUMBERS = st.integers(-3, 11) | st.floats(width=32) | st.sampled_from(["3", "7.0", "nan", "happy"])
VALUES = st.builds(
    lambda number, shape: np.array(number).reshape(shape), NUMBERS, st.sampled_from([(), (1,)])
)


def npy_file(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


@pytest.fixture(scope="module")
def npy(tmp_path_factory):
    """A release of one training and one validation image, whose annotation is 0."""
    folder = tmp_path_factory.mktemp("npy")
    for split in ("train_set", "val_set"):
        write_image(folder / split / "images/0.jpg", 0)
        (folder / split / "annotations").mkdir()
        np.save(folder / split / "annotations/0_exp.npy", 0)
    return folder


def what_numpy_reads(annotation: bytes) -> float:
    try:
        return float(np.load(io.BytesIO(annotation), allow_pickle=False).item())
    # All that it raises on damaged headers and texts.
    except (ValueError, EOFError, SyntaxError, TypeError, SystemError, tokenize.TokenError):
        return np.nan


@settings(max_examples=150)
@given(st.binary(max_size=150) | VALUES.map(npy_file), st.integers(0, 200), st.integers(0, 255))
def test_an_annotation_is_what_numpy_reads_or_named(npy, content, place, byte):
    """Of whole files, and of files of which one byte is another."""
    damaged = bytearray(content)
    if place < len(damaged):
        damaged[place] = byte
    for annotation in (content, bytes(damaged)):
        (npy / "train_set/annotations/0_exp.npy").write_bytes(annotation)
        row = read_release(npy).faces.iloc[0]
        expected = what_numpy_reads(annotation)
        if row["reason"] == "":
            assert row["label"] == expected and expected in range(len(AFFECTNET))
        elif row["reason"] == "unreadable annotation":
            assert annotation != content or np.isnan(expected)
        else:
            assert row["reason"].startswith(("unknown expression code", "expression "))
            assert row["label"] == expected and expected not in range(len(AFFECTNET))


@pytest.fixture(scope="module")
def manual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manual")
    write_image(folder / "Manually_Annotated_Images/a/1.jpg", 0)
    return folder


HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression"
CELLS = st.sampled_from(["a/1.jpg", "5", "-2", "nan", "", "1e999", "7", "8", "x", '"']) | st.text(
    max_size=4
)
TABLES = st.builds(
    lambda rows, encoding: "\n".join([HEADER, *map(",".join, rows)]).encode(encoding),
    st.lists(
        st.just("a/1.jpg,1,1,5,5,1;2,3".split(",")) | st.lists(CELLS, min_size=6, max_size=8),
        max_size=4,
    ),
    st.sampled_from(["utf-8", "utf-16"]),
)


@settings(max_examples=100)
@given(st.binary(max_size=150) | TABLES, TABLES)
def test_no_table_leads_to_anything_but_faces_or_one_line(manual, training, validation):
    (manual / "training.csv").write_bytes(training)
    (manual / "validation.csv").write_bytes(validation)
    try:
        faces = read_release(manual).faces
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 500
        return
    used = faces[faces["reason"] == ""]
    assert used["label"].isin(range(len(AFFECTNET))).all()
    assert (used[["face_width", "face_height"]] > 0).all(axis=None)
    assert np.isfinite(used[["face_x", "face_y"]].astype(float)).all(axis=None)
    assert used["source"].str.startswith(str(manual)).all()
