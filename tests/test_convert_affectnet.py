"""AffectNet's releases become the same class folders, and no row is lost without a word."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.affectnet_layouts import (
    GOOD,
    MANUAL_COLUMNS,
    counts,
    report,
    tree,
    write_csv,
    write_image,
    write_list,
    write_manual_release,
    write_npy_release,
)
from utils import convert_affectnet
from utils.convert_affectnet import convert, crop_face
from utils.data import conversion
from utils.data.datasets import TOY_MARKER, UNFINISHED
from utils.errors import UserError


@pytest.fixture
def npy(tmp_path):
    return write_npy_release(tmp_path / "aff", train=["3", 7.0, 0, 1], val=[np.int64(5), "2"])


@pytest.fixture
def manual(tmp_path):
    train = [GOOD, ("b/1.jpg", "20", "5.0", 40, 40, "1.0"), ("b/2.PNG", 0, 0, 100, 80, 7)]
    return write_manual_release(tmp_path, train, [("c/3.jpeg", 5, 5, 60, 60, 4)])


# ---- npy release ---------------------------------------------------------------------------------


def test_npy_release_becomes_class_folders_of_hard_links(npy):
    summary = " ".join(convert(npy).split())
    assert set(tree(npy)) == {
        "train/3/0.jpg", "train/7/1.jpg", "train/0/2.jpg", "train/1/3.jpg",
        "val/5/0.jpg", "val/2/1.jpg",
    }  # fmt: skip
    assert os.path.samefile(npy / "train/7/1.jpg", npy / "train_set/images/1.jpg")
    assert report(npy) == {} and not (npy / UNFINISHED).exists()
    assert "1 happy 1 134,415 0 500" in summary and "all 4 287,651 2 3,999" in summary


def test_npy_labels_of_any_type_and_images_that_only_look_damaged(tmp_path):
    stored = ["4", "4.0", b"4", 4, 4.0, np.float32(4), np.uint8(4), np.array(["4"]), np.array([4])]
    write_npy_release(tmp_path, stored, [4])
    image = tmp_path / "train_set/images/0.jpg"
    image.write_bytes(image.read_bytes() + bytes(500))
    Image.new("RGB", (8, 8)).save(tmp_path / "train_set/images/1.jpg", "PNG")
    convert(tmp_path)
    assert counts(tmp_path)["train"] == [0, 0, 0, 0, len(stored), 0, 0, 0]


def test_npy_bad_rows_are_listed(tmp_path):
    write_npy_release(tmp_path, [0, 8, 9.0, 3, 1, 1, 1, "x", np.nan, [1, 2], 3, 2.5], [0])
    images, annotations = tmp_path / "train_set/images", tmp_path / "train_set/annotations"
    (images / "3.jpg").unlink()
    (images / "3.jpg").symlink_to("nowhere.jpg")
    (images / "4.jpg").unlink()
    (images / "5.jpg").write_bytes(b"not an image")
    (images / "6.jpg").write_bytes((images / "6.jpg").read_bytes()[:-200])
    whole = (annotations / "10_exp.npy").read_bytes()
    (annotations / "10_exp.npy").write_bytes(whole[:-1])
    write_image(images / "13.jpg", 13)
    (images / "Thumbs.db").touch()
    (annotations / "._0_exp.npy").touch()
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/0/0.jpg", "val/0/0.jpg"}
    assert report(tmp_path) == {
        "1.jpg": "expression '8' is not one of the eight",
        "2.jpg": "expression '9.0' is not one of the eight",
        "3.jpg": "unreadable image",
        "4.jpg": "missing image",
        "5.jpg": "unreadable image",
        "6.jpg": "unreadable image",
        "7.jpg": "expression 'x' is not one of the eight",
        "8.jpg": "expression 'nan' is not one of the eight",
        "9.jpg": "unreadable annotation",
        "10.jpg": "unreadable annotation",
        "11.jpg": "expression '2.5' is not one of the eight",
        "13.jpg": "no annotation",
    }


# ---- older release -------------------------------------------------------------------------------


def test_manual_release_is_cropped(manual):
    convert(manual)
    assert report(manual) == {}
    assert set(tree(manual)) == {
        "train/0/1.jpg", "train/1/1.jpg", "train/7/2.jpg", "val/4/3.jpg"
    }  # fmt: skip
    Image.new("RGB", (8, 8)).save(manual / "reference.jpg", quality=95)
    with Image.open(manual / "train/7/2.jpg") as face, Image.open(manual / "reference.jpg") as like:
        assert (face.size, face.format, face.mode) == ((224, 224), "JPEG", "RGB")
        assert face.quantization == like.quantization


def test_manual_bad_rows_are_listed(tmp_path):
    box = (10, 10, 50, 50)
    boxes = {
        "width": (10, 10, -1, 50),
        "empty": ("", 10, 50, 50),
        "null": (10, "NULL", 50, 50),
        "inf": (10, 10, "inf", 50),
        "outside": (100, 10, 50, 50),
        "huge": (-1e6, -1e6, 2e6, 2e6),
    }
    rows = [
        GOOD,
        *((f"a/{name}.jpg", *bad, 0) for name, bad in boxes.items()),
        ("a/8.jpg", *box, 8),
        ("a/noexp.jpg", *box, ""),
        ("a/missing.jpg", *box, 0),
        ("a/broken.jpg", *box, 0),
        (None, *box, 0),
        GOOD[:5] + (3,),
    ]
    write_manual_release(tmp_path, rows, [GOOD])
    photos = tmp_path / "Manually_Annotated_Images/a"
    (photos / "missing.jpg").unlink()
    (photos / "broken.jpg").write_bytes((photos / "1.jpg").read_bytes()[:300])
    convert(tmp_path, workers=1)
    assert set(tree(tmp_path)) == {"train/0/1.jpg", "val/0/1.jpg"}
    assert report(tmp_path) == {
        **{f"{name}.jpg": "no face box in the image" for name in boxes},
        "8.jpg": "expression '8' is not one of the eight",
        "noexp.jpg": "expression '' is not one of the eight",
        "missing.jpg": "missing image",
        "broken.jpg": "unreadable image",
        "training.csv:13": "missing image",
        "1.jpg": "listed before",
    }


def test_images_of_one_name_in_one_class_keep_apart(tmp_path):
    rows = [GOOD, ("b/1.jpg", 10, 10, 50, 50, 0), ("b/1.png", 10, 10, 50, 50, 0)]
    write_manual_release(tmp_path, rows, [GOOD])
    convert(tmp_path, workers=1)
    assert set(tree(tmp_path)) == {
        "train/0/a_1.jpg", "train/0/b_1.jpg", "train/0/b_1-2.jpg", "val/0/1.jpg"
    }  # fmt: skip


def test_crop_takes_the_box_and_its_margin():
    # Every pixel of a 224 box lands on a pixel of the crop: equal, not merely close.
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    photo = Image.fromarray(pixels)
    crop = np.asarray(crop_face(photo, (30, 40, 224, 224), margin=0.0))
    assert (crop == pixels[40:264, 30:254]).all()
    # A box of 112 with half of it on each side is the same square.
    crop = np.asarray(crop_face(photo, (86, 96, 112, 112), margin=0.5))
    assert (crop == pixels[40:264, 30:254]).all()
    # What lies beyond the photo is black.
    crop = np.asarray(crop_face(photo, (200, -56, 224, 224), margin=0.0))
    assert (crop[56:, :100] == pixels[:168, 200:]).all()
    assert (crop[:56] == 0).all() and (crop[:, 100:] == 0).all()


# ---- lists ---------------------------------------------------------------------------------------


def test_list_release(tmp_path, monkeypatch):
    """With the unnamed index column of the released list, which stays as it is."""
    folder, working = tmp_path / "data", tmp_path / "working folder"
    for path in (working / "x/0.png", folder / "y/1.png", folder / "y/2.png"):
        write_image(path, 0)
    rows = [(0, "train", "x/0.png", 6), (1, "Train", "y/1.png", "2.0"), (2, "val", "y/2.png", 6)]
    write_csv(folder / "affectnet.csv", ["", "phase", "img_path", "label"], rows)
    users = (folder / "affectnet.csv").read_bytes()
    monkeypatch.chdir(working)
    convert(folder)
    assert set(tree(folder)) == {"train/6/0.png", "train/2/1.png", "val/6/2.png"}
    assert (folder / "affectnet.csv").read_bytes() == users


@pytest.mark.parametrize(
    "path",
    [
        r"faces\a\0.jpg",
        "/home/other/AffectNet/faces/a/0.jpg",
        r"C:\other\AffectNet\faces\a\0.jpg",
        "../AffectNet/faces/a/0.jpg",
        "a/0.jpg",
        "0.jpg",
    ],
)
def test_list_paths_of_other_machines_are_matched_by_their_end(tmp_path, path):
    there = tmp_path / path.replace("\\", "/")[-len("faces/a/0.jpg") :]
    write_image(there, 0)
    write_image(tmp_path / "b/0.jpg", 1)
    write_list(tmp_path, [("train", path, 3), ("train", path.replace("0.jpg", "gone.jpg"), 3)])
    convert(tmp_path)
    assert (tmp_path / "train/3/0.jpg").samefile(there)
    assert list(report(tmp_path).values()) == ["missing image"]


def test_a_missing_image_is_not_replaced_by_one_of_its_name(tmp_path):
    write_image(tmp_path / "val/0.jpg", 0)
    write_image(tmp_path / "1.jpg", 0)
    write_list(tmp_path, [("val", "/there/val/0.jpg", 0), ("val", "/there/val/1.jpg", 0)])
    convert(tmp_path)
    assert report(tmp_path) == {"1.jpg": "missing image"}


@pytest.mark.parametrize(
    "path", ["a/1.jpg", r"a\1.jpg", "Manually_Annotated_Images/a/1.jpg", r"D:\other\a\1.jpg"]
)
def test_manual_paths_are_matched_by_their_end(manual, path):
    row = [path, 10, 10, 50, 50, "", "happiness", 0]
    write_csv(manual / "training.csv", MANUAL_COLUMNS, [row])
    convert(manual, workers=1)
    assert counts(manual)["train"][1] == 1


def test_labels_as_words(tmp_path):
    words = ["Neutral", "happy", "sadness", "surprise", "fear", "disgust", "angry", "contempt"]
    rows = [("train", f"x/{i}.jpg", word) for i, word in enumerate([*words, "bored"])]
    write_list(tmp_path, [*rows, ("val", "x/0.jpg", "happiness"), ("test", "x/1.jpg", 1)])
    for i in range(9):
        write_image(tmp_path / f"x/{i}.jpg", 0)
    convert(tmp_path)
    assert counts(tmp_path) == {"train": [1] * 8, "val": [0, 1, 0, 0, 0, 0, 0, 0]}
    assert report(tmp_path) == {
        "8.jpg": "expression 'bored' is not one of the eight",
        "1.jpg": "phase is neither train nor val",
    }


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_row_of_another_length_does_not_shift_the_columns(tmp_path, separator):
    write_image(tmp_path / "x/caf\xe9.jpg", 0)
    write_image(tmp_path / "x/1.jpg", 1)
    lines = ["phase, img_path,label ", "train ,x/caf\xe9.jpg, 3", "0,train,x/1.jpg,1"]
    lines += ["val,x/1.jpg", "", ",,", "val,x/1.jpg,2,,"]
    text = "\r\n".join(lines).replace(",", separator)
    (tmp_path / "affectnet.csv").write_bytes(text.encode("utf-8-sig"))
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/3/caf\xe9.jpg", "val/2/1.jpg"}
    rows = report(tmp_path)
    assert set(rows) == {"affectnet.csv:3", "affectnet.csv:4"}
    assert "4 fields" in rows["affectnet.csv:3"] and "2 fields" in rows["affectnet.csv:4"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "phase,img_path,label\ntrain,x/0.jpg,1".encode("utf-16"),
        b'phase,img_path,label\ntrain,x/0.jpg,1\n"val,x/0.jpg,1\nval,x/1.jpg,1\n',
        b"phase,label\ntrain,1\n",
        b"phase,img_path,label\n",
    ],
)
def test_what_is_no_list_is_one_error(tmp_path, content):
    (tmp_path / "affectnet.csv").write_bytes(content)
    with pytest.raises(UserError, match=": no column|: cannot be read as|: the data set lists no"):
        convert(tmp_path)


# ---- once more -----------------------------------------------------------------------------------


def test_a_failed_conversion_leaves_nothing_and_can_be_mended(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1.jpg").write_bytes(b"no image")
    rows = [("train", "x/9.jpg", 1), ("train", "x/8.jpg", 1), ("val", "x/1.jpg", 2)]
    write_list(tmp_path, rows)
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match="no image can be used: left out 2: missing"):
            convert(tmp_path, output=out)
        assert os.listdir(out) == ["convert_report.csv"] and len(report(out)) == 3
    write_image(tmp_path / "x/1.jpg", 0)
    convert(tmp_path, output=out)
    assert set(tree(out)) == {"val/2/1.jpg"}


@pytest.mark.parametrize("with_release", [True, False])
def test_a_moved_data_set_and_the_list_in_it(npy, with_release):
    """Conversions used to write a list of the images in the class folders."""
    convert(npy)
    rows = [(*path.split("/")[:2], f"/there/aff/{path}") for path in tree(npy)]
    write_csv(npy / "affectnet.csv", ["phase", "label", "img_path"], rows)
    folder = npy.rename(npy.with_name("moved"))
    if not with_release:
        for phase in ("train_set", "val_set"):
            (folder / phase).rename(folder.parent / phase)
    before, listed = tree(folder), (folder / "affectnet.csv").read_bytes()
    convert(folder)
    assert report(folder) == {} and tree(folder) == before
    assert (folder / "affectnet.csv").read_bytes() == listed


def test_images_of_another_data_set_are_not_mixed_in(npy):
    write_image(npy / "train/2/mine.png", 0)
    with pytest.raises(UserError, match=r"1 image .*train/2/mine\.png"):
        convert(npy)


def test_links_are_followed_and_files_copied_where_links_are_refused(npy, monkeypatch):
    def refuse(*args):
        raise OSError(18, "Invalid cross-device link")

    image = npy / "train_set/images/0.jpg"
    image.rename(npy / "elsewhere.jpg")
    image.symlink_to("../../elsewhere.jpg")
    convert(npy)
    assert not (npy / "train/3/0.jpg").is_symlink()
    assert (npy / "train/3/0.jpg").samefile(npy / "elsewhere.jpg")
    monkeypatch.setattr(os, "link", refuse)
    convert(npy, output=npy / "out")
    assert tree(npy / "out") == tree(npy)
    assert not (npy / "out/train/7/1.jpg").samefile(npy / "train/7/1.jpg")


@pytest.mark.parametrize("release", ["npy", "manual"])
def test_interrupted_and_continued_ends_the_same(release, request, tmp_path, monkeypatch):
    folder, whole, output = request.getfixturevalue(release), tmp_path / "whole", tmp_path / "out"
    (folder / TOY_MARKER).touch()
    convert(folder, output=whole, workers=2)
    assert (whole / TOY_MARKER).exists()  # drawn faces stay known as such

    def interrupted(rows, desc, **kwargs):
        for i, row in enumerate(rows):
            if desc == "images" and i == 2:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conversion, "progress", interrupted)
        convert(folder, output=output, workers=1)
    assert (output / UNFINISHED).exists()
    done = sorted(tree(output))
    (output / done.pop()).unlink()
    times = {name: (output / name).stat().st_mtime_ns for name in done}
    convert(folder, output=output, workers=2)
    assert tree(output) == tree(whole) and not (output / UNFINISHED).exists()
    times |= {name: (output / name).stat().st_mtime_ns for name in set(tree(output)) - set(done)}
    convert(folder, output=output)
    assert times == {name: (output / name).stat().st_mtime_ns for name in tree(whole)}


def test_script_converts_the_working_directory(npy):
    script = [sys.executable, convert_affectnet.__file__, "--aff_path", "."]
    done = subprocess.run(script, cwd=npy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "found the npy release, 6 rows" in done.stdout and len(tree(npy)) == 6


def test_margins_are_not_mixed(manual):
    convert(manual, margin=0.25, workers=1)
    with pytest.raises(UserError, match="--margin 0.25"):
        convert(manual, workers=1)
    convert(manual, margin=0.25, workers=1)
