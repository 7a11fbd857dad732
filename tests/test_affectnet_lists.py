"""AffectNet as a list of images, `affectnet.csv`."""

import os

import numpy as np
import pandas as pd
import pytest

from tests.affectnet_layouts import (
    snapshot,
    tree,
    write_image,
    write_list,
    write_npy_release,
)
from utils.affectnet import releases
from utils.convert_affectnet import convert


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
    ]


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
