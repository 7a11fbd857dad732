"""AffectNet's releases become the same class folders, and no row is lost without a word."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.releases import (
    GOOD,
    MANUAL_COLUMNS,
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
    assert set(tree(tmp_path)) == {"val/4/0.jpg", *(f"train/4/{i}.jpg" for i in range(9))}


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
        "1.jpg": "expression '8' is not one of the eight classes",
        "2.jpg": "expression '9.0' is not one of the eight classes",
        "3.jpg": "unreadable image",
        "4.jpg": "missing image",
        "5.jpg": "unreadable image",
        "6.jpg": "unreadable image",
        "7.jpg": "expression 'x' is not one of the eight classes",
        "8.jpg": "expression 'nan' is not one of the eight classes",
        "9.jpg": "unreadable annotation",
        "10.jpg": "unreadable annotation",
        "11.jpg": "expression '2.5' is not one of the eight classes",
        "13.jpg": "no annotation",
    }


@pytest.mark.parametrize("part", ["val_set", "val_set/images", "train_set/annotations"])
def test_npy_release_that_lacks_a_part(npy, part):
    shutil.rmtree(npy / part)
    with pytest.raises(UserError, match=f"{part}.*missing from the npy release"):
        convert(npy)
    assert tree(npy) == {}


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
        "8.jpg": "expression '8' is not one of the eight classes",
        "noexp.jpg": "expression '' is not one of the eight classes",
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


@pytest.mark.parametrize(("box", "margin"), [((30, 40, 224, 224), 0), ((86, 96, 112, 112), 0.5)])
def test_crop_takes_the_box_and_its_margin(box, margin):
    """Every pixel of a square of 224 lands on a pixel of the crop: equal, not merely close."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    left, top = (int(side - margin * 112) for side in box[:2])
    crop = np.asarray(crop_face(Image.fromarray(pixels), box, margin))
    assert (crop == pixels[top : top + 224, left : left + 224]).all()


def test_what_lies_beyond_the_photo_is_black():
    crop = np.asarray(crop_face(Image.new("RGB", (300, 300), "red"), (200, -56, 224, 224), 0.0))
    assert (crop[56:, :100] == (255, 0, 0)).all()
    assert (crop[:56] == 0).all() and (crop[:, 100:] == 0).all()


# ---- lists ---------------------------------------------------------------------------------------


def test_list_release(tmp_path, monkeypatch):
    """With the unnamed index column of the released list, relative to the working folder or not,
    and with words for labels."""
    words = ["Neutral", "happy", "sadness", "surprise", "fear", "disgust", "angry", "contempt"]
    rows = [(i, "Training", f"x/{i}.png", word) for i, word in enumerate([*words, "bored"])]
    rows += [(9, "valid", "y/9.png", "2.0"), (10, "test", "y/9.png", 2)]
    write_csv(tmp_path / "data/affectnet.csv", ["", "phase", "img_path", "label"], rows)
    for i in range(9):
        write_image(tmp_path / f"x/{i}.png", 0)
    write_image(tmp_path / "data/y/9.png", 0)
    monkeypatch.chdir(tmp_path)
    convert("data")
    found = {f"train/{i}/{i}.png" for i in range(8)} | {"val/2/9.png"}
    assert set(tree(tmp_path / "data")) == found
    assert report(tmp_path / "data") == {
        "8.png": "expression 'bored' is not one of the eight classes",
        "9.png": "phase is neither train nor val",
    }


@pytest.mark.parametrize("release", ["list", "manual"])
@pytest.mark.parametrize("folder", ["", "/home/other/faces/", "C:\\other\\faces\\", "../other/"])
@pytest.mark.parametrize("place", ["a/", "a\\"])
def test_paths_of_other_machines_are_matched_by_their_end(tmp_path, release, folder, place):
    """And a missing image is not replaced by one of its name in another folder."""
    rows = [("train", f"{folder}{place}{name}.jpg", 3) for name in ("0", "gone")]
    photos = tmp_path
    if release == "manual":
        write_manual_release(tmp_path, [], [])
        rows = [[path, 10, 10, 50, 50, "", label, 0] for _, path, label in rows]
        write_csv(tmp_path / "training.csv", MANUAL_COLUMNS, rows)
        photos = tmp_path / "Manually_Annotated_Images"
    else:
        write_list(tmp_path, rows)
    for name in ("a/0.jpg", "b/0.jpg", "gone.jpg"):
        write_image(photos / name, 0, size=(100, 80))
    convert(tmp_path, workers=1)
    assert set(tree(tmp_path)) == {"train/3/0.jpg"}
    assert list(report(tmp_path).values()) == ["missing image"]


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
    (tmp_path / "1.jpg").write_bytes(b"no image")
    write_list(tmp_path, [("train", "9.jpg", 1), ("train", "8.jpg", 1), ("val", "1.jpg", 2)])
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match="no image can be used: left out 2: missing"):
            convert(tmp_path, output=out)
        assert os.listdir(out) == ["convert_report.csv"] and len(report(out)) == 3
    write_image(tmp_path / "1.jpg", 0)
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

    def interrupted(reasons, **kwargs):
        yield from list(reasons)[:2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conversion, "progress", interrupted)
        convert(folder, output=output, workers=1)
    assert (output / UNFINISHED).exists()
    (output / sorted(tree(output))[-1]).unlink()
    times = {name: (output / name).stat().st_mtime_ns for name in tree(output)}
    for _ in range(2):
        convert(folder, output=output, workers=2)
        assert tree(output) == tree(whole) and not (output / UNFINISHED).exists()
    assert times == {name: (output / name).stat().st_mtime_ns for name in times}


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
