"""The npy release, and what conversions of all releases have in common."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.affectnet_layouts import (
    report,
    snapshot,
    tree,
    write_image,
    write_list,
    write_npy_release,
)
from utils import convert_affectnet
from utils.affectnet import lists
from utils.convert_affectnet import convert
from utils.errors import UserError
from utils.readers import UNFINISHED

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def npy(tmp_path):
    return write_npy_release(tmp_path, train=["3", 7.0, 0, 1], val=[np.int64(5), "2"])


@pytest.mark.parametrize(
    "stored", ["4", "4.0", b"4", 4, 4.0, np.float32(4), np.uint8(4), np.array(["4"]), np.array([4])]
)
def test_npy_labels_of_any_type(tmp_path, stored):
    write_npy_release(tmp_path, [stored], [stored])
    assert convert(tmp_path).counts["train"] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_npy_release_becomes_class_folders_of_hard_links(npy, capsys):
    result = convert(npy)
    assert set(tree(npy)) == {
        "train/3/0.jpg", "train/7/1.jpg", "train/0/2.jpg", "train/1/3.jpg",
        "val/5/0.jpg", "val/2/1.jpg",
    }  # fmt: skip
    assert os.path.samefile(npy / "train/7/1.jpg", npy / "train_set/images/1.jpg")
    assert all((npy / p / str(i)).is_dir() for p in ("train", "val") for i in range(8))
    assert result.counts == {"train": [1, 1, 0, 1, 0, 0, 0, 1], "val": [0, 0, 1, 0, 0, 1, 0, 0]}
    assert result.dropped.empty and report(npy) == {}
    assert not (npy / UNFINISHED).exists()
    assert "npy release" in capsys.readouterr().out
    summary = " ".join(result.summary().split())
    assert "1 happy 1 134,415 0 500" in summary
    assert "all 4 287,651 2 3,999" in summary


def test_list_has_the_released_columns(npy):
    convert(npy)
    rows = pd.read_csv(npy / "affectnet.csv")
    assert list(rows) == ["phase", "img_path", "label"]
    assert rows.iloc[0].tolist() == ["train", f"{npy.as_posix()}/train/3/0.jpg", 3]
    assert all(map(os.path.isfile, rows["img_path"])) and len(rows) == 6


def test_list_is_relative_to_the_repository(npy, monkeypatch):
    monkeypatch.setattr(lists, "REPOSITORY", npy.parent)
    convert(npy)
    assert pd.read_csv(npy / "affectnet.csv")["img_path"][0] == f"{npy.name}/train/3/0.jpg"


def test_npy_bad_rows_are_listed(tmp_path):
    write_npy_release(tmp_path, [0, 8, 9.0, "10", 1, 1, 1, "x", np.nan, [1, 2], 3, -1, 2.5], [0])
    images, annotations = tmp_path / "train_set/images", tmp_path / "train_set/annotations"
    (images / "4.jpg").unlink()
    (images / "5.jpg").write_bytes(b"not an image")
    whole = (images / "6.jpg").read_bytes()
    (images / "6.jpg").write_bytes(whole[:-200])
    (annotations / "10_exp.npy").write_bytes(b"\x93NUMPY broken")
    np.save(annotations / "13_exp.npy", {"pickled": 1}, allow_pickle=True)
    write_image(images / "13.jpg", 13)
    write_image(images / "14.jpg", 14)
    (images / "15.jpg").touch()
    np.save(annotations / "15_exp.npy", 0)
    result = convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/0/0.jpg", "val/0/0.jpg"}
    assert report(tmp_path) == {
        "1.jpg": "expression 8 (none)",
        "2.jpg": "expression 9 (uncertain)",
        "3.jpg": "expression 10 (non-face)",
        "4.jpg": "missing image",
        "5.jpg": "unreadable image",
        "6.jpg": "unreadable image",
        "7.jpg": "unreadable annotation",
        "8.jpg": "unreadable annotation",
        "9.jpg": "unreadable annotation",
        "10.jpg": "unreadable annotation",
        "11.jpg": "unknown expression code",
        "12.jpg": "unknown expression code",
        "13.jpg": "unreadable annotation",
        "14.jpg": "no annotation",
        "15.jpg": "unreadable image",
    }
    assert len(result.dropped) == 15


def test_images_without_an_end_marker_and_png_files_are_kept(tmp_path):
    """Only doubtful files are decoded, and only those that cannot be are dropped."""
    write_npy_release(tmp_path, [0, 1], [0])
    first = tmp_path / "train_set/images/0.jpg"
    first.write_bytes(first.read_bytes() + bytes(500))
    Image.new("RGB", (8, 8)).save(tmp_path / "train_set/images/1.jpg", "PNG")
    assert convert(tmp_path).dropped.empty


def test_copy_makes_files_of_their_own_also_after_linking(npy):
    convert(npy)
    linked = tree(npy)
    (npy / "train/3/.0.jpg.tmp").write_bytes(b"half")
    convert(npy, copy=True)
    assert tree(npy) == linked
    for image in npy.glob("train/*/*"):
        assert image.stat().st_nlink == 1
    before = snapshot(npy)
    convert(npy, copy=True)
    assert snapshot(npy) == before


def test_copies_where_links_are_refused(npy, monkeypatch):
    def refuse(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    convert(npy)
    assert len(tree(npy)) == 6
    assert not os.path.samefile(npy / "train/7/1.jpg", npy / "train_set/images/1.jpg")


def test_linked_sources_are_followed(npy):
    image = npy / "train_set/images/0.jpg"
    image.rename(npy / "elsewhere.jpg")
    image.symlink_to("../../elsewhere.jpg")
    convert(npy)
    assert not (npy / "train/3/0.jpg").is_symlink()
    assert (npy / "train/3/0.jpg").read_bytes() == (npy / "elsewhere.jpg").read_bytes()


def test_output_elsewhere_leaves_the_release_alone(npy, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    before = snapshot(npy)
    convert(npy, output=output)
    assert snapshot(npy) == before and len(tree(output)) == 6


def test_running_twice_changes_nothing(npy):
    (npy / "train_set/images/1.jpg").write_bytes(b"broken")
    convert(npy)
    before = snapshot(npy)
    convert(npy)
    assert snapshot(npy) == before


@pytest.mark.parametrize("copy", [False, True])
def test_interrupted_and_continued_ends_the_same(npy, tmp_path_factory, monkeypatch, copy):
    whole = tmp_path_factory.mktemp("whole")
    convert(npy, output=whole)
    place, calls = convert_affectnet.place_file, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return place(*args, **kwargs)

    monkeypatch.setattr(convert_affectnet, "place_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(npy, copy=copy)
    assert len(tree(npy)) == 3 and (npy / UNFINISHED).exists()
    assert not (npy / "affectnet.csv").exists()
    (npy / "train/3/.9.jpg.tmp").write_bytes(b"half")
    convert(npy, copy=copy)
    assert tree(npy) == tree(whole)
    assert not (npy / UNFINISHED).exists()


def test_nothing_usable_is_an_error(tmp_path):
    write_list(tmp_path, [("train", "x.jpg", 1)], index=False)
    with pytest.raises(UserError, match="convert_report.csv says why"):
        convert(tmp_path)
    assert report(tmp_path) == {"x.jpg": "missing image"}


def test_script_converts(npy):
    script = [sys.executable, "utils/convert_affectnet.py", "--aff_path"]
    done = subprocess.run([*script, npy], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "found the npy release, 6 rows" in done.stdout and len(tree(npy)) == 6
    assert f"{npy}: 6 images in train/ and val/" in done.stdout
