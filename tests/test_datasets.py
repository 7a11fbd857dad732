"""Readers of data sets as people have them, and how these can be wrong."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data.datasets import FaceData, Split, affectnet_run_name, read_affectnet, read_rafdb
from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB, RAFDB_COUNTS

LABELS = "EmoLabel/list_patition_label.txt"


@pytest.fixture(scope="module")
def raf_module(tmp_path_factory):
    """Seven training and seven test images, one per class, in RAF-DB's layout."""
    root = tmp_path_factory.mktemp("raf")
    (root / "EmoLabel").mkdir()
    (root / "Image/aligned").mkdir(parents=True)
    lines = []
    for split, digits in (("train", 5), ("test", 4)):
        for number in range(1, 8):
            name = f"{split}_{number:0{digits}d}"
            Image.new("RGB", (100, 100)).save(root / f"Image/aligned/{name}_aligned.jpg")
            lines.append(f"{name}.jpg {number}")
    (root / LABELS).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def raf(raf_module, tmp_path):
    return Path(shutil.copytree(raf_module, tmp_path / "raf"))


@pytest.fixture
def folders(tmp_path):
    """Makes `root/<split>/<class>/` with as many images as asked."""

    def make(**splits):
        for split, classes in splits.items():
            for name, count in classes.items():
                (tmp_path / split / name).mkdir(parents=True)
                for index in range(count):
                    Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{index}.png")
        return tmp_path

    return make


def test_rafdb(raf):
    data = read_rafdb(raf)
    assert data.class_names == RAFDB and (len(data.train), len(data.val)) == (7, 7)
    assert data.train.path(2) == raf / "Image/aligned/train_00003_aligned.jpg"
    assert data.val.path(6) == raf / "Image/aligned/test_0007_aligned.jpg"
    np.testing.assert_array_equal(data.train.labels, np.arange(7))
    assert "differ from the published counts" in data.summary()
    published = {"train": (1,) * 7, "test": (1,) * 7}
    assert "are the published counts" in replace(data, published=published).summary()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "  \n\n"])
def test_rafdb_labels_of_any_spacing(raf, encoding, end):
    lines = (raf / LABELS).read_text().replace(" ", "\t").splitlines()
    (raf / LABELS).write_bytes("".join(line + end for line in lines).encode(encoding))
    np.testing.assert_array_equal(read_rafdb(raf).train.labels, np.arange(7))


@pytest.mark.parametrize(
    "line",
    [
        "train_00001",
        "train_00002.jpg 8",
        "train_00002.jpg 0",
        "train_00002.jpg nan",
        "photo.jpg 3",
        "../train_00002.jpg 3",
        "train_\xe9.jpg 3",
        "train_00001.jpg 1",  # once more
    ],
)
def test_rafdb_names_a_bad_line(raf, line):
    with open(raf / LABELS, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert f"1 problem: {LABELS}:15: {line!r} is not" in str(error.value)
    assert "label from 1 to 7" in str(error.value) and "\n" not in str(error.value)


def test_rafdb_reports_all_problems_together_and_five_by_name(raf):
    with open(raf / LABELS, "a") as file:
        file.write("train_00001.jpg\n" * 6)
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "6 problems" in str(error.value) and str(error.value).count(LABELS) == 5
    assert f"python utils/check_data.py {raf}" in str(error.value)


LINES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(
        ["train_00001.jpg", "test_0001.jpg", "train_99.jpg", "test_.jpg", "train_1.png", "x"]
    )
    | st.text(),
    st.sampled_from([" ", "\t", ",", "", "\n"]),
    st.integers(-1, 9) | st.floats() | st.text(max_size=3),
    st.sampled_from(["", " ", " 3", "\r"]),
)


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.lists(LINES, max_size=20).map("\n".join))
def test_no_label_file_leads_to_anything_but_labels_or_one_line(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("raf")
    for folder in ("EmoLabel", "Image/aligned"):
        (root / folder).mkdir(parents=True)
    (root / LABELS).write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        data = read_rafdb(root)
    except UserError as error:
        assert str(error).startswith(str(root)) and str(error).isprintable()
        assert len(str(error)) < 2000
    else:
        assert set(data.train.labels) <= set(range(7)) and len(data.train) and len(data.val)


@pytest.mark.parametrize("missing", ["", "EmoLabel", "Image"])
def test_rafdb_not_there(raf, missing):
    shutil.rmtree(raf / missing)
    with pytest.raises(UserError, match=missing or "whdeng.*--toy"):
        read_rafdb(raf)


def test_rafdb_names_classes_without_images(raf):
    text = (raf / LABELS).read_text().replace("train_00002.jpg 2", "train_00002.jpg 3")
    (raf / LABELS).write_text(text)
    with pytest.raises(UserError, match="1 problem: train: no images of class 2"):
        read_rafdb(raf)
    (raf / LABELS).write_text(text[: text.index("test")])  # no test images at all
    with pytest.raises(UserError, match="2 problems: .*test: no images of class 1, 2, 3"):
        read_rafdb(raf)


@pytest.mark.parametrize("num_class", [7, 8])
def test_affectnet(folders, num_class):
    root = folders(
        train={str(code): code + 1 for code in range(8)}, val=dict.fromkeys("01234567", 1)
    )
    data = read_affectnet(root, num_class=num_class)
    assert (data.name, data.class_names) == ("AffectNet", AFFECTNET[:num_class])
    assert affectnet_run_name(root, num_class) == f"affectnet-{num_class}"
    assert "taken for AffectNet's: 0 neutral, 1 happy" in data.summary()
    np.testing.assert_array_equal(data.train.counts(num_class), np.arange(num_class) + 1)
    assert data.train.path(1) == root / "train/1/0.png"


def test_affectnet_without_contempt_is_not_eight_classes(folders):
    root = folders(train=dict.fromkeys("0123456", 1), val=dict.fromkeys("0123456", 1))
    assert read_affectnet(root, num_class=7).num_class == 7
    with pytest.raises(UserError, match="--num_class 7"):
        read_affectnet(root)


def test_any_class_folders(folders):
    root = folders(train={"sad": 2, "glad": 3, "mad": 1}, test={"mad": 1, "glad": 1, "sad": 1})
    data = read_affectnet(root)
    assert data.name == root.name and data.class_names == ("glad", "mad", "sad")
    np.testing.assert_array_equal(data.train.counts(3), [3, 1, 2])
    assert affectnet_run_name(root, None) == root.name


def test_splits_of_different_classes(folders):
    root = folders(train={"a": 1, "b": 1, "c": 1}, val={"a": 1, "b": 1, "d": 1})
    with pytest.raises(UserError, match="2 problems: train: no images of class d; val: .* c;"):
        read_affectnet(root)


# ---- class folders as people have them -----------------------------------------------------------


def test_images_of_any_depth_and_ending_are_found_and_others_named(folders):
    """A third of the images was left out without a word."""
    root = folders(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    image = root / "train/a/0.png"
    for name in ("person 1/deeper/1.jpg", "2.JFIF", "3.pgm", "4.avif", "5.jp2", "6.webp", "7.PNG"):
        path = root / "train/a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.read_bytes())  # Pillow looks at the content
    (root / "elsewhere").mkdir()
    shutil.copy(image, root / "elsewhere/8.png")
    (root / "train/a/linked").symlink_to(root / "elsewhere")
    (root / "train/a/person 1/loop").symlink_to(root / "train/a")
    for name in ("9.heic", "10.heic", "notes.txt"):
        (root / "train/a" / name).write_text("not read")
    for name in (".DS_Store", "Thumbs.db", "._0.png", "@eaDir/x.jpg", "__MACOSX/y.jpg",
                 ".ipynb_checkpoints/z.png"):  # fmt: skip
        for folder in (root / "train/a", root / "train"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("rubbish")
    data = read_affectnet(root)
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(data.train.counts(2), [9, 1])
    assert "2 .heic files (convert them, or pip install pillow-heif), 1 .txt file" in data.summary()


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "valid"), ("train", "validation"), ("TRAIN", "Test"), ("training", "val")],
)
@pytest.mark.parametrize("around", ["", "DATASET"])
def test_splits_of_other_names_and_one_folder_around_all(folders, train, val, around):
    root = folders(**{train: {"a": 1, "b": 2}, val: {"a": 1, "b": 1}})
    if around:
        (root / around).mkdir()
        for name in (train, val):
            (root / name).rename(root / around / name)
    data = read_affectnet(root)
    assert (len(data.train), len(data.val)) == (3, 2)


def test_three_splits_keep_their_parts(folders):
    """Validation images choose the epoch, test images are reported on, as FER2013's."""
    root = folders(train={"a": 2, "b": 2}, val={"a": 1, "b": 2}, test={"a": 3, "b": 1})
    data = read_affectnet(root)
    assert [len(split) for split in data.splits.values()] == [4, 3, 4]
    assert data.held_out.path(3) == root / "test/b/0.png"


def test_rafdb_as_class_folders(tmp_path):
    """The form in which most people have it."""
    for split, digits in (("train", 5), ("test", 4)):
        for code in range(1, 8):
            path = tmp_path / f"DATASET/{split}/{code}/{split}_{code:0{digits}d}_aligned.jpg"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (100, 100)).save(path)
        (tmp_path / f"{split}_labels.csv").write_text("image,label\n")
    data = read_rafdb(tmp_path)
    assert (data.name, data.class_names) == ("RAF-DB", RAFDB)
    np.testing.assert_array_equal(data.val.labels, np.arange(7))
    assert data.train.path(2).name == "train_00003_aligned.jpg"
    with pytest.raises(UserError, match="these are RAF-DB's images.*rafdb.py"):
        read_affectnet(tmp_path)
    for split in ("train", "test"):  # numbered from 0, as some have it
        for code in range(1, 8):
            folder = tmp_path / "DATASET" / split
            (folder / str(code)).rename(folder / str(code - 1))
    with pytest.raises(UserError, match="these are RAF-DB's images"):
        read_affectnet(tmp_path, num_class=7)
    with pytest.raises(UserError, match="class folders 0, 1, .* not RAF-DB's 1 ... 7"):
        read_rafdb(tmp_path)


def test_folders_numbered_from_1_are_not_affectnets(folders):
    seven = {str(code): 1 for code in range(1, 8)}
    with pytest.raises(UserError, match=r"not AffectNet's \(0 neutral.*rename the folders"):
        read_affectnet(folders(train=seven, val=seven), num_class=7)


def test_fer2013_is_recognised_by_its_counts(folders, monkeypatch):
    """Its class 0 is angry, AffectNet's is neutral."""
    counts = (1, 2, 1, 3, 1, 1, 2)
    monkeypatch.setattr("utils.labels.FER2013_COUNTS", {"train": counts})
    classes = dict(zip("0123456", counts, strict=True))
    with pytest.raises(UserError, match="FER2013's folders"):
        read_affectnet(folders(train=classes, test=classes), num_class=7)


def test_bad_images_that_are_listed_are_left_out(folders):
    root = folders(train={"a": 2, "b": 1}, val={"a": 1, "b": 1})
    (root / "bad_images.csv").write_text("path,problem\ntrain/a/0.png,cut\nval/0.png,elsewhere\n")
    data = read_affectnet(root)
    assert (len(data.train), len(data.val)) == (2, 2)
    assert "1 image left out, listed in bad_images.csv" in data.summary()
    for content in ("", "file;problem\n", 'a\n"b'):
        (root / "bad_images.csv").write_text(content)
        with pytest.raises(UserError, match="bad_images.csv: cannot be read .*; remove it"):
            read_affectnet(root)


def test_a_toy_set_is_one_by_its_own_marker(toy_raf, tmp_path):
    """A copy trained on without --toy passed for RAF-DB."""
    copy = shutil.copytree(toy_raf, tmp_path / "copy")
    assert read_rafdb(copy).title == "toy RAF-DB"
    (copy / "toy.json").unlink()
    assert read_rafdb(copy).title == "RAF-DB"


def test_file_names_of_any_bytes_in_arrays(folders):
    """300,000 paths have to cost under 100 MB: no Python object for each file."""
    root = folders(train={"a": 50, "b": 50}, val={"a": 1, "b": 1})
    os.rename(root / "train/a/0.png", os.fsencode(root / "train/a") + b"/\xe9t\xe9 1.png")
    train = read_affectnet(root).train
    assert len(train) == 100 and all(train.path(i).is_file() for i in range(100))
    assert train.names.dtype.kind == "S" and train.names.nbytes / len(train) < 32


# ---- what a reader hands over --------------------------------------------------------------------


def split(*labels):
    names = np.array([f"{i}.png" for i in range(len(labels))], dtype="S")
    return Split(Path("faces"), names, np.array(labels, np.int64))


@pytest.mark.parametrize("names", [["x", "y"], np.array(["x", "y"])])
def test_class_names_become_plain_text(names):
    data = FaceData("Own", names, split(0, 1), split(1))
    assert data.class_names == ("x", "y") and {type(name) for name in data.class_names} == {str}


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        (split(1, 2), split(1), "labels from 1 to 2, but those of 2 classes are 0"),
        (split(1), split(-1, 0), "labels from -1 to 0"),
        (split(1), split(), "no val images"),
    ],
)
def test_data_that_cannot_be_trained_on(train, val, says):
    with pytest.raises(UserError, match=f"^faces: .*{says}"):
        FaceData("Own", ("x", "y"), train, val)


def test_the_orders_of_the_classes_are_the_published_ones():
    """RAF-DB's labels 1-7 and AffectNet's codes 0-7, as their authors number them."""
    assert RAFDB == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    assert AFFECTNET == (
        *("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt"),
    )
    assert (sum(RAFDB_COUNTS["train"]), sum(RAFDB_COUNTS["test"])) == (12271, 3068)
    assert (sum(AFFECTNET_COUNTS["train"]), sum(AFFECTNET_COUNTS["val"])) == (287651, 3999)
