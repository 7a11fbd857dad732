"""Readers: RAF-DB's and AffectNet's files as they are, and every way in which they can be wrong."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB
from utils.readers import read_affectnet, read_rafdb

LABELS = "EmoLabel/list_patition_label.txt"


@pytest.fixture
def raf(tmp_path):
    """Seven training and seven test images, one a class, in RAF-DB's layout."""
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "Image" / "aligned").mkdir(parents=True)
    lines = []
    for split, digits in (("train", 5), ("test", 4)):
        for number in range(1, 8):
            name = f"{split}_{number:0{digits}d}"
            Image.new("RGB", (100, 100)).save(tmp_path / "Image/aligned" / f"{name}_aligned.jpg")
            lines.append(f"{name}.jpg {number}")
    (tmp_path / LABELS).write_text("\n".join(lines) + "\n")
    return tmp_path


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


def test_rafdb_with_windows_line_ends_and_blank_lines(raf):
    text = (raf / LABELS).read_text().replace("\n", "\r\n") + "\r\n"
    (raf / LABELS).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_rafdb(raf).train) == 7


def test_rafdb_recognises_its_published_counts(raf):
    from dataclasses import replace

    data = read_rafdb(raf)
    published = {"train": (1,) * 7, "test": (1,) * 7}
    assert "are the published counts" in replace(data, published=published).summary()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train_00001", "line 2 'train_00001'"),
        ("train_00002.jpg 8", "a label from 1 to 7"),
        ("train_00002.jpg 0", "a label from 1 to 7"),
        ("train_00002.jpg nan", "a label from 1 to 7"),
        ("photo.jpg 3", "line 2 'photo.jpg 3'"),
        ("../train_00002.jpg 3", "line 2"),
        ("train_00001.jpg 3", "line 2 repeats train_00001.jpg of line 1"),
        ("train_00099.jpg 3", "train_00099_aligned.jpg (line 2) is missing"),
    ],
)
def test_rafdb_names_a_bad_line(raf, line, expected):
    lines = (raf / LABELS).read_text().splitlines()
    lines[1] = line
    (raf / LABELS).write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "1 problem:" in str(error.value) and expected in str(error.value)
    assert "\n" not in str(error.value)


def test_rafdb_reports_all_problems_together_and_five_by_name(raf):
    for path in sorted((raf / "Image/aligned").iterdir())[:6]:
        path.unlink()
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "6 problems" in str(error.value) and str(error.value).count("missing") == 5


@pytest.mark.parametrize("missing", ["", "EmoLabel", "Image"])
def test_rafdb_not_there(raf, missing):
    shutil.rmtree(raf / missing)
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    message = str(error.value)
    assert ("--toy" in message and "whdeng" in message) if not missing else missing in message


def test_rafdb_label_file_that_is_no_text(raf):
    (raf / LABELS).write_bytes(b"\xff\xfe\x00train")
    with pytest.raises(UserError, match="not plain text"):
        read_rafdb(raf)


def test_rafdb_empty_split(raf):
    lines = (raf / LABELS).read_text().splitlines()
    (raf / LABELS).write_text("\n".join(lines[:7]))
    with pytest.raises(UserError, match="lists 0 test_"):
        read_rafdb(raf)


@pytest.mark.parametrize("num_class", [7, 8])
def test_affectnet(folders, num_class):
    root = folders(
        train={str(code): code + 1 for code in range(8)}, val={str(code): 1 for code in range(8)}
    )
    data = read_affectnet(root, num_class=num_class)
    assert data.name == "AffectNet" and data.run_name == f"affectnet-{num_class}"
    assert data.class_names == AFFECTNET[:num_class]
    np.testing.assert_array_equal(data.train.counts(num_class), np.arange(num_class) + 1)
    assert data.train.path(1) == root / "train/1/0.png"


def test_affectnet_without_contempt_is_not_eight_classes(folders):
    classes = {str(code): 1 for code in range(7)}
    root = folders(train=classes, val=classes)
    assert read_affectnet(root, num_class=7).num_class == 7
    with pytest.raises(UserError, match="7"):
        read_affectnet(root)


def test_any_class_folders(folders):
    root = folders(train={"sad": 2, "glad": 3, "mad": 1}, test={"mad": 1, "glad": 1, "sad": 1})
    (root / "train" / "sad" / "notes.txt").write_text("no image")
    data = read_affectnet(root)
    assert data.name == root.name and data.class_names == ("glad", "mad", "sad")
    np.testing.assert_array_equal(data.train.counts(3), [3, 1, 2])
    with pytest.raises(UserError, match="3 class folders, but --num_class is 7"):
        read_affectnet(root, num_class=7)


def test_splits_of_different_classes(folders):
    root = folders(train={"a": 1, "b": 1, "c": 1}, val={"a": 1, "b": 1, "d": 1})
    with pytest.raises(UserError, match="only one of them has c, d"):
        read_affectnet(root)


def test_empty_class(folders):
    root = folders(train={"a": 1, "b": 0}, val={"a": 1, "b": 1})
    with pytest.raises(UserError, match="no images in .*train/b"):
        read_affectnet(root)


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split(folders, split):
    present = {"train": "val", "val": "train"}[split]
    root = folders(**{present: {"a": 1, "b": 1}})
    with pytest.raises(UserError, match=f"has no {split}/"):
        read_affectnet(root)


@pytest.mark.parametrize("raw", ["train_set", "Manually_Annotated_Images"])
def test_affectnet_before_conversion(tmp_path, raw):
    (tmp_path / raw).mkdir()
    with pytest.raises(UserError, match=r"python utils/convert_affectnet.py --aff_path"):
        read_affectnet(tmp_path)


def test_affectnet_of_an_interrupted_conversion(folders):
    classes = {str(code): 1 for code in range(8)}
    root = folders(train=classes, val=classes)
    (root / ".conversion_unfinished").touch()
    with pytest.raises(UserError, match=r"python utils/convert_affectnet.py --aff_path"):
        read_affectnet(root)


def test_affectnet_not_there(tmp_path):
    with pytest.raises(UserError, match="--toy"):
        read_affectnet(tmp_path / "nothing")


def test_file_names_of_any_bytes(folders):
    root = folders(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    odd = os.fsencode(root / "train" / "a") + b"/\xe9t\xe9 1.png"
    Image.new("RGB", (8, 8)).save(root / "odd.png")
    os.rename(root / "odd.png", odd)
    train = read_affectnet(root).train
    assert len(train) == 3 and all(train.path(i).is_file() for i in range(3))


def test_lists_of_files_are_compact(folders):
    """300,000 paths have to cost under 100 MB: no Python object a file."""
    root = folders(train={"a": 50, "b": 50}, val={"a": 1, "b": 1})
    train = read_affectnet(root).train
    assert train.names.dtype.kind == "S" and train.names.nbytes / len(train) < 32
