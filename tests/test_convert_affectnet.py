"""AffectNet's releases become the same class folders, and no row is lost without a word."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.releases import (
    GOOD,
    report,
    tree,
    write_csv,
    write_image,
    write_manual_release,
    write_npy_release,
)
from utils import convert_affectnet
from utils.convert_affectnet import convert
from utils.data import conversion
from utils.data.datasets import TOY_MARKER, UNFINISHED
from utils.errors import UserError

LIST_COLUMNS = ["phase", "img_path", "label"]


@pytest.fixture
def npy(tmp_path):
    return write_npy_release(tmp_path / "aff", train=["3", 7.0, 0, 1], val=[np.int64(5), "2"])


@pytest.fixture
def manual(tmp_path):
    train = [GOOD, ("b/1.jpg", "20", "5.0", 40, 40, "1.0"), ("b/2.PNG", 0, 0, 100, 80, 7)]
    return write_manual_release(tmp_path, train, [("c/3.jpeg", 5, 5, 60, 60, 4)])


# ---- npy release ---------------------------------------------------------------------------------


def test_npy_release_becomes_class_folders_of_hard_links(npy):
    """Also of images that only look damaged: with other bytes behind them, or a PNG by name."""
    images = npy / "train_set/images"
    (images / "0.jpg").write_bytes((images / "0.jpg").read_bytes() + bytes(500))
    Image.new("RGB", (8, 8)).save(images / "1.jpg", "PNG")
    summary = " ".join(convert(npy).split())
    train = {"train/3/0.jpg", "train/7/1.jpg", "train/0/2.jpg", "train/1/3.jpg"}
    assert set(tree(npy)) == train | {"val/5/0.jpg", "val/2/1.jpg"}
    assert os.path.samefile(npy / "train/7/1.jpg", images / "1.jpg")
    assert report(npy) == {} and not (npy / UNFINISHED).exists()
    assert "1 happy 1 134,415 0 500" in summary and "all 4 287,651 2 3,999" in summary


def test_npy_bad_rows_are_listed(tmp_path):
    write_npy_release(tmp_path, [0, 8, "9.0", "x", np.nan, 2.5, 1, 1, 1, 1, [1, 2], 3], [0])
    images, annotations = tmp_path / "train_set/images", tmp_path / "train_set/annotations"
    (images / "6.jpg").unlink()
    (images / "7.jpg").unlink()
    (images / "7.jpg").symlink_to("nowhere.jpg")
    (images / "8.jpg").write_bytes(b"not an image")
    (images / "9.jpg").write_bytes((images / "9.jpg").read_bytes()[:-200])
    whole = (annotations / "11_exp.npy").read_bytes()
    (annotations / "11_exp.npy").write_bytes(whole[:-1])
    write_image(images / "13.jpg")
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/0/0.jpg", "val/0/0.jpg"}
    expression = "expression {!r} is not one of the eight classes".format
    reasons = [expression(label) for label in ("8", "9.0", "x", "nan", "2.5")]
    reasons += ["missing image", *3 * ["unreadable image"], *2 * ["unreadable annotation"]]
    names = [f"{i}.jpg" for i in (*range(1, 12), 13)]
    assert report(tmp_path) == dict(zip(names, [*reasons, "no annotation"], strict=True))


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
    train = {"train/0/1.jpg", "train/1/1.jpg", "train/7/2.jpg"}
    assert set(tree(manual)) == train | {"val/4/3.jpg"}
    Image.new("RGB", (8, 8)).save(manual / "reference.jpg", quality=95)
    with Image.open(manual / "train/7/2.jpg") as face, Image.open(manual / "reference.jpg") as like:
        assert (face.size, face.format, face.mode) == ((224, 224), "JPEG", "RGB")
        assert face.quantization == like.quantization


def test_manual_release_as_its_archives_unpack(manual):
    """With paths from where it was made."""
    training = (manual / "training.csv").read_text()
    there = "C:\\AffectNet\\Manually_Annotated_Images\\b\\2.PNG"
    (manual / "training.csv").write_text(training.replace("b/2.PNG", there))
    for name, folder in (
        ("Manually_Annotated_Images", "Manually_Annotated"),
        ("training.csv", "Manually_Annotated_file_lists"),
        ("validation.csv", "Manually_Annotated_file_lists"),
    ):
        (manual / folder).mkdir(exist_ok=True)
        (manual / name).rename(manual / folder / name)
    convert(manual, workers=1)
    assert report(manual) == {} and len(tree(manual)) == 4


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
    rows = [(f"a/{name}.jpg", *bad, 0) for name, bad in boxes.items()]
    rows += [("a/8.jpg", *box, 8), ("a/noexp.jpg", *box, ""), (None, *box, 0)]
    rows += [("a/missing.jpg", *box, 0), ("a/broken.jpg", *box, 0), GOOD, (*GOOD[:5], 3)]
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
        "training.csv:10": "missing image",
        "missing.jpg": "missing image",
        "broken.jpg": "unreadable image",
        "1.jpg": "listed before",
    }


def test_images_of_one_name_in_one_class_keep_apart(tmp_path):
    rows = [GOOD, ("b/1.jpg", 10, 10, 50, 50, 0), ("b/1.png", 10, 10, 50, 50, 0)]
    write_manual_release(tmp_path, rows, [])
    convert(tmp_path, workers=1)
    names = {"a_1.jpg", "b_1.jpg", "b_1-2.jpg"}
    assert set(tree(tmp_path)) == {f"train/0/{name}" for name in names}


@pytest.mark.parametrize(("left", "top"), [(30, 40), (200, -56)], ids=["within", "beyond"])
def test_crop_is_the_box_and_black_beyond_the_photo(tmp_path, left, top):
    """A box of 224 pixels is not resized: the same pixels, but for JPEG's rounding."""
    write_manual_release(tmp_path, [("a/1.png", left, top, 224, 224, 0)], [])
    x, y = np.meshgrid(np.arange(300), np.arange(300))
    photo = np.uint8(128 + 60 * np.sin(x / 3) + 60 * np.sin(y / 4))
    Image.fromarray(photo).save(tmp_path / "Manually_Annotated_Images/a/1.png")
    convert(tmp_path, workers=1)
    expected = np.pad(photo, 224)[224 + top : 448 + top, 224 + left : 448 + left]
    with Image.open(tmp_path / "train/0/1.jpg") as crop:
        np.testing.assert_allclose(np.asarray(crop.convert("L")), expected, atol=25)


# ---- lists ---------------------------------------------------------------------------------------


def test_list_release(tmp_path, monkeypatch):
    """With the unnamed index column of the released list, relative to the working folder or not,
    and with words for labels."""
    words = ["Neutral", "happy", "sadness", "surprise", "fear", "disgust", "angry", "contempt"]
    rows = [(i, "Training", f"x/{i}.png", word) for i, word in enumerate([*words, "bored"])]
    rows += [(9, "valid", "y/9.png", "2.0"), (10, "test", "y/9.png", 2)]
    write_csv(tmp_path / "data/affectnet.csv", ["", *LIST_COLUMNS], rows)
    for i in range(9):
        write_image(tmp_path / f"x/{i}.png")
    write_image(tmp_path / "data/y/9.png")
    monkeypatch.chdir(tmp_path)
    convert("data")
    found = {f"train/{i}/{i}.png" for i in range(8)} | {"val/2/9.png"}
    assert set(tree(tmp_path / "data")) == found
    assert report(tmp_path / "data") == {
        "8.png": "expression 'bored' is not one of the eight classes",
        "9.png": "phase is neither train nor val",
    }


@pytest.mark.parametrize(
    "folder", ["a/", "a\\", "/home/other/faces/a/", "C:\\other\\faces\\a\\", "../other/a/"]
)
def test_paths_of_other_machines_are_matched_by_their_end(tmp_path, folder):
    """And a missing image is not replaced by one of its name in another folder."""
    rows = [("train", f"{folder}{name}.jpg", 3) for name in ("0", "gone")]
    write_csv(tmp_path / "affectnet.csv", LIST_COLUMNS, rows)
    for name in ("a/0.jpg", "b/0.jpg", "gone.jpg"):
        write_image(tmp_path / name)
    convert(tmp_path)
    assert set(tree(tmp_path)) == {"train/3/0.jpg"}
    assert list(report(tmp_path).values()) == ["missing image"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_row_of_another_length_does_not_shift_the_columns(tmp_path, separator):
    write_image(tmp_path / "x/caf\xe9.jpg")
    write_image(tmp_path / "x/1.jpg")
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
    ("content", "says"),
    [
        (b"", "no column"),
        (b"phase,label\ntrain,1\n", "no column img_path"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read as a CSV"),
        (b'phase,img_path,label\ntrain,0.jpg,1\n"val,0.jpg,1\n', "cannot be read as a CSV"),
        (b"phase,img_path,label\n", "the data set lists no"),
    ],
    ids=["empty", "no paths", "binary", "open quote", "no rows"],
)
def test_what_is_no_list_is_one_error(tmp_path, content, says):
    (tmp_path / "affectnet.csv").write_bytes(content)
    with pytest.raises(UserError, match=f": {says}"):
        convert(tmp_path)


# ---- once more -----------------------------------------------------------------------------------


def test_a_failed_conversion_leaves_nothing_and_can_be_mended(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"no image")
    rows = [("train", "9.jpg", 1), ("train", "8.jpg", 1), ("val", "1.jpg", 2)]
    write_csv(tmp_path / "affectnet.csv", LIST_COLUMNS, rows)
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match="no image can be used: left out 2: missing"):
            convert(tmp_path, output=out)
        assert os.listdir(out) == ["convert_report.csv"] and len(report(out)) == 3
    write_image(tmp_path / "1.jpg")
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
        shutil.rmtree(folder / "train_set")
    before, listed = tree(folder), (folder / "affectnet.csv").read_bytes()
    convert(folder)
    assert report(folder) == {} and tree(folder) == before
    assert (folder / "affectnet.csv").read_bytes() == listed


def test_images_of_another_data_set_are_not_mixed_in(npy):
    write_image(npy / "train/2/mine.png")
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


def test_script_converts_the_working_directory(npy, monkeypatch, capsys):
    monkeypatch.chdir(npy)
    convert_affectnet.main(["--aff_path", "."])
    assert "found the npy release, 6 rows" in capsys.readouterr().out and len(tree(npy)) == 6
