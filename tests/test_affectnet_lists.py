"""AffectNet as a list of images, `affectnet.csv`."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.affectnet_layouts import (
    snapshot,
    tree,
    write_image,
    write_list,
    write_npy_release,
)
from utils.affectnet import releases
from utils.convert_affectnet import convert
from utils.errors import UserError


@pytest.fixture
def npy(tmp_path):
    return write_npy_release(tmp_path, train=["3", 7.0, 0, 1], val=[np.int64(5), "2"])


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("base", ["repository", "working folder", "list"])
def test_list_release(tmp_path, monkeypatch, capsys, index, base):
    if base == "repository":
        monkeypatch.setattr(releases, "REPOSITORY", tmp_path.parent)
    if base == "working folder":
        monkeypatch.chdir(tmp_path.parent)
    folder = "faces" if base == "list" else f"{tmp_path.name}/faces"
    for i in range(3):
        write_image(tmp_path / f"faces/{i}.png", i)
    rows = [("train", f"{folder}/0.png", 6), ("train", f"{folder}/1.png", "2.0"),
            ("val", f"{folder}/2.png", 6)]  # fmt: skip
    write_list(tmp_path, rows, index=index)
    users = (tmp_path / "affectnet.csv").read_bytes()
    convert(tmp_path)
    assert "affectnet.csv" in capsys.readouterr().out
    assert set(tree(tmp_path)) == {"train/6/0.png", "train/2/1.png", "val/6/2.png"}
    assert (tmp_path / "affectnet.csv").read_bytes() == users
    before = snapshot(tmp_path)
    convert(tmp_path, output=os.path.join(tmp_path, "faces", ".."))
    assert snapshot(tmp_path) == before


def test_list_bad_rows_are_listed(tmp_path):
    write_image(tmp_path / "x/good.jpg", 0)
    write_image(tmp_path / "x/bad.jpg", 0)
    rows = [
        ("train", "x/good.jpg", 0),
        ("val", "x/good.jpg", 0),
        ("train", "x/good.jpg", 1),
        ("test", "x/bad.jpg", 0),
        ("train", "x/code.jpg", 9),
        ("train", "x/gone.jpg", 2),
        ("train", None, 2),
        ("train", "x/text.jpg", "happy"),
        ("train", "x/notes.txt", 2),
        ("train", "x/.hidden.jpg", 2),
        ("train", "x/nan.jpg", "nan"),
        ("train", "x/minus.jpg", -1),
    ]
    write_list(tmp_path, rows, index=False)
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/0/good.jpg", "val/0/good.jpg"}
    reasons = pd.read_csv(tmp_path / "convert_report.csv")["reason"].tolist()
    assert reasons == [
        "listed before",
        "phase is neither train nor val",
        "expression 9 (uncertain)",
        "missing image",
        "no image path",
        "no expression",
        "not named as an image is",
        "not named as an image is",
        "no expression",
        "unknown expression code",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_of_any_encoding_and_spacing(tmp_path, encoding, end, separator):
    write_image(tmp_path / "x/caf\xe9.jpg", 0)
    write_image(tmp_path / "x/1.jpg", 1)
    lines = [("", "phase", " img_path", "label "), ("0", "train ", "x/caf\xe9.jpg", " 3"),
             ("1", " val", r"x\1.jpg ", "2\t" if separator != "\t" else "2")]  # fmt: skip
    text = "".join(separator.join(line) + end for line in lines)
    (tmp_path / "affectnet.csv").write_bytes(text.encode(encoding))
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/3/caf\xe9.jpg", "val/2/1.jpg"}


def test_classes_without_images_are_named(tmp_path):
    write_image(tmp_path / "x/0.jpg", 0)
    write_list(tmp_path, [("train", "x/0.jpg", code) for code in range(1)], index=False)
    summary = convert(tmp_path).summary()
    assert "no image in train/ of 1, 2, 3, 4, 5, 6, 7," in summary
    assert "no image in val/ of 0, 1, 2, 3, 4, 5, 6, 7," in summary


CELLS = st.sampled_from(["train", "val", "test", "x/0.jpg", "/", "..", "3", "nan", "-1", "1e400",
                         "2.5", "inf", "", "'", '"', "\xe9", "a" * 300, "x\\0.jpg"])  # fmt: skip
GOOD_ROWS = st.sampled_from([["train", "x/0.jpg", "3"], ["val", "x/0.jpg", "7.0"]])
BAD_ROWS = st.lists(CELLS | st.text(max_size=5), min_size=1, max_size=5)
LISTS = st.builds(
    lambda header, rows, encoding: "\n".join([header, *map(",".join, rows)]).encode(encoding),
    st.sampled_from(["phase,img_path,label", "phase,phase,label,img_path", "phase;img_path;label"]),
    st.lists(GOOD_ROWS | BAD_ROWS, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)


@settings(max_examples=80)
@given(st.binary(max_size=200) | LISTS)
def test_no_list_leads_to_anything_but_a_conversion_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("list")
    write_image(folder / "x/0.jpg", 0)
    (folder / "affectnet.csv").write_bytes(content)
    try:
        result = convert(folder)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 800
    else:
        assert sum(map(sum, result.counts.values())) == len(tree(folder)) > 0


def test_own_list_is_a_release_too(npy):
    """Class folders and the list can outlive the release; converting again changes nothing."""
    convert(npy)
    for phase in ("train_set", "val_set"):
        (npy / phase).rename(npy.parent / f"{npy.name}_{phase}")
    before = snapshot(npy)
    assert convert(npy).release == "list affectnet.csv"
    assert snapshot(npy) == before


def test_a_list_that_the_user_brought_is_kept(npy, capsys):
    write_list(npy, [("train", "somewhere/0.jpg", 3)], index=False)
    users = (npy / "affectnet.csv").read_bytes()
    convert(npy)
    assert (npy / "affectnet.original.csv").read_bytes() == users
    assert len(pd.read_csv(npy / "affectnet.csv")) == 6
    assert "affectnet.original.csv" in capsys.readouterr().out
