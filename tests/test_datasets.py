"""Readers of data sets as people have them, and how these can be wrong."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import labels
from utils.data.datasets import FaceData, Split, affectnet_run_name, read_affectnet, read_rafdb
from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB, RAFDB_COUNTS

LABELS = "EmoLabel/list_patition_label.txt"
RAF_LINES = [f"train_{code:05}.jpg {code}" for code in range(1, 8)]
RAF_LINES += [f"test_{code:04}.jpg {code}" for code in range(1, 8)]


@pytest.fixture
def raf(tmp_path):
    """RAF-DB's layout with an image of each class in each split, which readers do not open."""
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "Image/aligned").mkdir(parents=True)
    (tmp_path / LABELS).write_text("\n".join(RAF_LINES) + "\n")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Makes `<split>/<class>/` with as many files as asked; a list of classes has one file each."""

    def make(**splits):
        for split, classes in splits.items():
            counts = classes if isinstance(classes, dict) else dict.fromkeys(classes, 1)
            for name, count in counts.items():
                (tmp_path / split / name).mkdir(parents=True)
                for index in range(count):
                    (tmp_path / split / name / f"{index}.png").touch()
        return tmp_path

    return make


# ---- RAF-DB --------------------------------------------------------------------------------------


def test_rafdb(raf, monkeypatch):
    data = read_rafdb(raf)
    assert data.class_names == RAFDB and (len(data.train), len(data.val)) == (7, 7)
    assert data.train.path(2) == raf / "Image/aligned/train_00003_aligned.jpg"
    assert data.val.path(6) == raf / "Image/aligned/test_0007_aligned.jpg"
    np.testing.assert_array_equal(data.train.labels, np.arange(7))
    assert "It does not have the published numbers" in data.summary()
    monkeypatch.setattr(labels, "RAFDB_COUNTS", {"train": (1,) * 7, "test": (1,) * 7})
    assert "It has the published numbers" in read_rafdb(raf).summary()


@pytest.mark.parametrize(
    ("encoding", "space", "end"),
    [("utf-8-sig", "\t", "\r\n"), ("utf-8", " ", "\r"), ("utf-8", "  ", "  \n\n")],
    ids=["Windows", "old Mac", "blank lines"],
)
def test_rafdb_labels_of_any_spacing(raf, encoding, space, end):
    text = "".join(line.replace(" ", space) + end for line in RAF_LINES)
    (raf / LABELS).write_bytes(text.encode(encoding))
    np.testing.assert_array_equal(read_rafdb(raf).train.labels, np.arange(7))


@pytest.mark.parametrize(
    "line",
    [
        "train_00001",
        "train_00002.jpg 8",
        "train_00002.jpg 0",
        "photo.jpg 3",
        "../train_00002.jpg 3",
        "train_\xe9.jpg 3",
        "train_00001.jpg 1",  # once more
    ],
)
def test_rafdb_names_a_bad_line(raf, line):
    with open(raf / LABELS, "a", encoding="latin-1") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    shown = line.replace("\xe9", "\N{REPLACEMENT CHARACTER}")
    assert f"1 problem: {LABELS}:15: {shown!r} is not" in str(error.value)
    assert "label from 1 to 7" in str(error.value) and "\n" not in str(error.value)


def test_rafdb_reports_all_problems_together_and_five_by_name(raf):
    with open(raf / LABELS, "a") as file:
        file.write("train_00001.jpg\n" * 6)
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "6 problems" in str(error.value) and str(error.value).count(LABELS) == 5
    assert f"python utils/check_data.py {raf}" in str(error.value)


@pytest.mark.parametrize("missing", ["", "EmoLabel", "Image"])
def test_rafdb_not_there(raf, missing):
    shutil.rmtree(raf / missing)
    with pytest.raises(UserError, match=missing or "whdeng.*--toy"):
        read_rafdb(raf)


def test_rafdb_without_test_images(raf):
    (raf / LABELS).write_text("\n".join(RAF_LINES[:7]))
    with pytest.raises(UserError, match="1 problem: val: no images of class 1, 2, 3"):
        read_rafdb(raf)


def test_rafdb_as_class_folders(folders):
    """The form in which most people have it, with other files around them."""
    root = folders(**{"DATASET/train": "1234567", "DATASET/test": "1234567"})
    (root / "train_labels.csv").write_text("image,label\n")
    data = read_rafdb(root)
    assert (data.name, data.class_names) == ("RAF-DB", RAFDB)
    np.testing.assert_array_equal(data.val.labels, np.arange(7))
    assert data.train.path(2) == root / "DATASET/train/3/0.png"


def test_class_folders_that_are_not_rafdbs(folders):
    with pytest.raises(UserError, match="should hold .* or train/1 ... 7 and test/1 ... 7"):
        read_rafdb(folders(train="0123456", test="0123456"))


def test_a_toy_set_is_one_by_its_own_marker(raf):
    """A copy trained on without --toy passed for RAF-DB."""
    assert read_rafdb(raf).title == "RAF-DB"
    (raf / "toy.json").touch()
    assert read_rafdb(raf).title == "toy RAF-DB"


# ---- AffectNet, and class folders as people have them --------------------------------------------


@pytest.mark.parametrize("num_class", [7, 8])
def test_affectnet(folders, num_class):
    root = folders(train={str(code): code + 1 for code in range(8)}, val="01234567")
    data = read_affectnet(root, num_class=num_class)
    assert (data.name, data.class_names) == ("AffectNet", AFFECTNET[:num_class])
    assert affectnet_run_name(root, num_class) == f"affectnet-{num_class}"
    assert "taken for AffectNet's: 0 neutral, 1 happy" in data.summary()
    np.testing.assert_array_equal(data.train.counts(num_class), np.arange(num_class) + 1)
    assert data.train.path(1) == root / "train/1/0.png"


@pytest.mark.parametrize(
    ("classes", "image", "num_class", "says"),
    [
        ("0123456", "0.png", None, "--num_class 7"),
        ("1234567", "0.png", 7, r"not AffectNet's \(0 neutral.*rename the folders"),
        ("1234567", "train_00001_aligned.jpg", None, "these are RAF-DB's images.*rafdb.py"),
        ("0123456", "train_00001_aligned.jpg", 7, "these are RAF-DB's images.*rafdb.py"),
    ],
    ids=["no contempt", "from 1 on", "RAF-DB", "RAF-DB from 0 on"],
)
def test_numbered_folders_that_are_not_affectnet_8(folders, classes, image, num_class, says):
    root = folders(train=classes, val=classes)
    (root / "train" / classes[0] / "0.png").rename(root / "train" / classes[0] / image)
    with pytest.raises(UserError, match=says):
        read_affectnet(root, num_class=num_class)


def test_affectnet_without_contempt(folders):
    assert read_affectnet(folders(train="0123456", val="0123456"), num_class=7).num_class == 7


def test_fer2013_is_recognised_by_its_counts(folders, monkeypatch):
    """Its class 0 is angry, AffectNet's is neutral."""
    counts = (1, 2, 1, 3, 1, 1, 2)
    monkeypatch.setattr("utils.labels.FER2013_COUNTS", {"train": counts})
    classes = dict(zip("0123456", counts, strict=True))
    with pytest.raises(UserError, match="FER2013's folders"):
        read_affectnet(folders(train=classes, test=classes), num_class=7)


def test_any_class_folders(folders):
    root = folders(train={"sad": 2, "glad": 3, "mad": 1}, test=["mad", "glad", "sad"])
    data = read_affectnet(root)
    assert data.name == root.name and data.class_names == ("glad", "mad", "sad")
    np.testing.assert_array_equal(data.train.counts(3), [3, 1, 2])
    assert affectnet_run_name(root, None) == root.name


def test_splits_of_different_classes(folders):
    with pytest.raises(UserError, match="2 problems: train: no images of class d; val: .* c;"):
        read_affectnet(folders(train="abc", val="abd"))


def test_images_of_any_depth_and_ending_are_found_and_others_named(folders):
    """A third of the images was left out without a word."""
    root = folders(train="ab", val="ab")
    images = ["1.jpg", "2.JFIF", "3.pgm", "5.jp2", "6.webp", "person 1/deeper/7.PNG"]
    images.append("4.avif" if ".avif" in Image.registered_extensions() else "4.tif")
    rubbish = [".DS_Store", "Thumbs.db", "._0.png", "@eaDir/x.jpg", "__MACOSX/y.jpg"]
    rubbish += [".ipynb_checkpoints/z.png"]
    others = ["8.heic", "9.heic", "notes.txt"]
    found = [f"train/a/{name}" for name in (*images, *rubbish, *others)]
    for name in (*found, *(f"train/{name}" for name in rubbish), "elsewhere/10.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "train/a/linked").symlink_to(root / "elsewhere")
    (root / "train/a/person 1/loop").symlink_to(root / "train/a")
    data = read_affectnet(root)
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(data.train.counts(2), [9, 1])
    assert "2 .heic files (convert them, or pip install pillow-heif), 1 .txt file" in data.summary()


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "valid"),
        ("train", "validation"),
        ("TRAIN", "Test"),
        ("training", "val"),
        ("DATASET/train", "DATASET/val"),
    ],
)
def test_splits_of_other_names_and_one_folder_around_all(folders, train, val):
    data = read_affectnet(folders(**{train: {"a": 1, "b": 2}, val: "ab"}))
    assert (len(data.train), len(data.val)) == (3, 2)


def test_three_splits_keep_their_parts(folders):
    """Validation images choose the epoch, test images are reported on, as FER2013's."""
    root = folders(train={"a": 2, "b": 2}, val={"a": 1, "b": 2}, test={"a": 3, "b": 1})
    data = read_affectnet(root)
    assert [len(split) for split in data.splits.values()] == [4, 3, 4]
    assert data.held_out.path(3) == root / "test/b/0.png"


def test_bad_images_that_are_listed_are_left_out(folders):
    root = folders(train={"a": 2, "b": 1}, val="ab")
    (root / "bad_images.csv").write_text("path,problem\ntrain/a/0.png,cut\nval/0.png,elsewhere\n")
    data = read_affectnet(root)
    assert (len(data.train), len(data.val)) == (2, 2)
    assert "1 image left out, listed in bad_images.csv" in data.summary()
    (root / "bad_images.csv").write_text("path\ntrain/b/0.png\n")
    with pytest.raises(UserError, match="1 problem: train: no images of class b"):
        read_affectnet(root)


@pytest.mark.parametrize("content", ["", "file;problem\n", 'a\n"b'])
def test_a_list_of_bad_images_that_cannot_be_read(folders, content):
    root = folders(train="ab", val="ab")
    (root / "bad_images.csv").write_text(content)
    with pytest.raises(UserError, match="bad_images.csv: cannot be read .*; remove it"):
        read_affectnet(root)


def test_file_names_of_any_bytes_in_arrays(folders):
    """300,000 paths have to cost under 100 MB: no Python object for each file."""
    root = folders(train={"a": 50, "b": 50}, val="ab")
    os.rename(root / "train/a/0.png", os.fsencode(root / "train/a") + b"/\xe9t\xe9 1.png")
    train = read_affectnet(root).train
    assert len(train) == 100 and all(train.path(i).is_file() for i in range(100))
    assert train.names.dtype.kind == "S" and train.names.nbytes / len(train) < 32


# ---- what a reader hands over --------------------------------------------------------------------


def split(*labels):
    names = np.array([f"{i}.png" for i in range(len(labels))], dtype="S")
    return Split(Path("faces"), names, np.array(labels, np.int64))


def test_class_names_become_plain_text():
    """Checkpoints refuse NumPy's strings."""
    data = FaceData("Own", np.array(["x", "y"]), split(0, 1), split(1))
    assert data.class_names == ("x", "y") and {type(name) for name in data.class_names} == {str}


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        (split(1, 2), split(1), "labels from 1 to 2, but those of 2 classes are 0"),
        (split(1), split(-1, 0), "labels from -1 to 0"),
        (split(1), split(), "no val images"),
    ],
    ids=["too many classes", "negative", "empty"],
)
def test_data_that_cannot_be_trained_on(train, val, says):
    with pytest.raises(UserError, match=f"^faces: .*{says}"):
        FaceData("Own", ("x", "y"), train, val)


def test_the_orders_of_the_classes_are_the_published_ones():
    """RAF-DB's labels 1-7 and AffectNet's codes 0-7, as their authors number them."""
    assert " ".join(RAFDB) == "surprise fear disgust happiness sadness anger neutral"
    assert " ".join(AFFECTNET) == "neutral happy sad surprise fear disgust anger contempt"
    assert (sum(RAFDB_COUNTS["train"]), sum(RAFDB_COUNTS["test"])) == (12271, 3068)
    assert (sum(AFFECTNET_COUNTS["train"]), sum(AFFECTNET_COUNTS["val"])) == (287651, 3999)
