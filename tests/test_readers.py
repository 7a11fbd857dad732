"""Readers: RAF-DB's and AffectNet's files as they are, and every way in which they can be wrong."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB
from utils.readers import read_affectnet, read_rafdb, scan_rafdb

LABELS = "EmoLabel/list_patition_label.txt"


def write_raf(tmp_path):
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
def raf(tmp_path):
    return write_raf(tmp_path)


@pytest.fixture(scope="module")
def raf_module(tmp_path_factory):
    """For tests that write the label file anew in each example."""
    return write_raf(tmp_path_factory.mktemp("raf"))


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "  \n\n"])
def test_rafdb_labels_of_any_encoding_and_spacing(raf, encoding, end):
    lines = (raf / LABELS).read_text().replace(" ", "\t").splitlines()
    (raf / LABELS).write_bytes("".join(line + end for line in lines).encode(encoding))
    np.testing.assert_array_equal(read_rafdb(raf).train.labels, np.arange(7))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train_00001", "txt:2: 'train_00001' is not"),
        ("train_00002.jpg 8", "txt:2: 'train_00002.jpg 8' has no label from 1 to 7"),
        ("train_00002.jpg 0", "has no label from 1 to 7"),
        ("train_00002.jpg nan", "has no label from 1 to 7"),
        ("photo.jpg 3", "txt:2: 'photo.jpg 3' is not"),
        ("../train_00002.jpg 3", "txt:2: "),
        ("train_\xe9.jpg 3", "txt:2: "),
        ("train_00001.jpg 1", "txt:2: repeats train_00001.jpg of line 1;"),
        ("train_00001.jpg 3", "repeats train_00001.jpg of line 1, which gives it label 1"),
        ("train_00099.jpg 2", "train_00099_aligned.jpg: missing, but line 2 of"),
    ],
)
def test_rafdb_names_a_bad_line(raf, line, expected):
    lines = (raf / LABELS).read_text().splitlines()
    lines[1] = line
    lines.append("train_00014.jpg 2")  # so that no class is without an image
    shutil.copy(
        raf / "Image/aligned/train_00001_aligned.jpg", raf / "Image/aligned/train_00014_aligned.jpg"
    )
    (raf / LABELS).write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "1 problem:" in str(error.value) and expected in str(error.value)
    assert str(error.value).endswith("or get another copy")  # there is no more to list
    assert "\n" not in str(error.value)


def test_rafdb_reports_all_problems_together_and_five_by_name(raf):
    for path in sorted((raf / "Image/aligned").iterdir())[:6]:
        path.unlink()
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    assert "6 problems" in str(error.value) and str(error.value).count("missing") == 5
    assert str(error.value).endswith(f"; for the whole list: python utils/check_data.py {raf}")


def test_rafdb_names_a_class_without_training_images(raf):
    text = (raf / LABELS).read_text()
    (raf / LABELS).write_text(text.replace("train_00002.jpg 2", "train_00002.jpg 3"))
    with pytest.raises(UserError, match=r"1 problem: .*no train_\*.jpg image of fear \(label 2\)"):
        read_rafdb(raf)


def test_rafdb_names_a_folder_called_like_an_image(raf):
    path = raf / "Image/aligned/test_0003_aligned.jpg"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="test_0003_aligned.jpg: not a file, but line 10"):
        read_rafdb(raf)


NAMES = [f"{split}_{n:0{digits}d}.jpg" for split, digits in (("train", 5), ("test", 4))
         for n in range(1, 8)]  # fmt: skip


@settings(max_examples=150)
@given(
    st.permutations(NAMES),
    st.lists(st.integers(1, 7), min_size=14, max_size=14),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([" ", "\t", "  "]),
)
def test_rafdb_labels_are_what_the_lines_say(raf_module, names, codes, encoding, end, space):
    lines = [f"{name}{space}{code}" for name, code in zip(names, codes, strict=True)]
    (raf_module / LABELS).write_bytes(end.join(lines).encode(encoding))
    data = scan_rafdb(raf_module).data
    read = {
        split.path(i).name.replace("_aligned", ""): split.labels[i] + 1
        for split in (data.train, data.val)
        for i in range(len(split))
    }
    assert read == dict(zip(names, codes, strict=True))


LINES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from([*NAMES, "train_99.jpg", "test_.jpg", "train_1.png", "x"]) | st.text(),
    st.sampled_from([" ", "\t", ",", "", "\n"]),
    st.integers(-1, 9) | st.floats() | st.text(max_size=3),
    st.sampled_from(["", " ", " 3", "\r"]),
)


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.lists(LINES, max_size=20).map("\n".join))
def test_no_label_file_leads_to_anything_but_labels_or_one_line(raf_module, content):
    content = content.encode() if isinstance(content, str) else content
    (raf_module / LABELS).write_bytes(content)
    try:
        data = read_rafdb(raf_module)
    except UserError as error:
        assert str(error).startswith(str(raf_module)) and str(error).isprintable()
        assert len(str(error)) < 2000
    else:
        assert set(data.train.labels) == set(range(7)) and len(data.val)


@pytest.mark.parametrize("missing", ["", "EmoLabel", "Image"])
def test_rafdb_not_there(raf, missing):
    shutil.rmtree(raf / missing)
    with pytest.raises(UserError) as error:
        read_rafdb(raf)
    message = str(error.value)
    assert ("--toy" in message and "whdeng" in message) if not missing else missing in message


def test_rafdb_label_file_that_is_no_text(raf):
    for content in (
        b"\xff\xfe\x00\x00train",
        b"\xff\xfet",
        b"\x00\x01\x02",
        b"\x81\x8d",
        b"\x89PNG\r\n\x1a\n",
    ):
        (raf / LABELS).write_bytes(content)
        with pytest.raises(UserError, match="not plain text"):
            read_rafdb(raf)


def test_rafdb_files_that_are_something_else(raf, tmp_path):
    (raf / LABELS).rename(tmp_path / "labels.txt")
    (raf / LABELS).mkdir()
    with pytest.raises(UserError, match=r"list_patition_label.txt: cannot be read \(Is a dir"):
        read_rafdb(raf)
    (raf / LABELS).rmdir()
    (tmp_path / "labels.txt").rename(raf / LABELS)
    shutil.rmtree(raf / "Image/aligned")
    (raf / "Image/aligned").touch()
    with pytest.raises(UserError, match=r"aligned: cannot be read \(Not a directory\)"):
        read_rafdb(raf)


def test_rafdb_empty_split(raf):
    lines = (raf / LABELS).read_text().splitlines()
    (raf / LABELS).write_text("\n".join(lines[:7]))
    with pytest.raises(UserError, match="lists no test_"):
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
    with pytest.raises(UserError, match="3 class folders of its own, but 7 classes"):
        read_affectnet(root, num_class=7)


def test_splits_of_different_classes(folders):
    root = folders(train={"a": 1, "b": 1, "c": 1}, val={"a": 1, "b": 1, "d": 1})
    with pytest.raises(UserError, match="2 problems: train/d: no images.*val/c: no images"):
        read_affectnet(root)


def test_empty_class(folders):
    root = folders(train={"a": 1, "b": 0}, val={"a": 1, "b": 1})
    with pytest.raises(UserError, match="1 problem: train/b: no images"):
        read_affectnet(root)


def test_folders_and_dead_links_called_like_images(folders):
    root = folders(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    (root / "train/a/odd.jpg").mkdir()
    (root / "val/b/gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "val/b/pipe.png")
    (root / "val/b/linked.png").symlink_to("0.png")
    with pytest.raises(UserError) as error:
        read_affectnet(root)
    assert "3 problems: train/a/odd.jpg: not a file; val/b/gone.png: not a file" in str(error.value)
    assert "val/b/pipe.png" in str(error.value)


@pytest.mark.parametrize("name", [b"a\xe9", b"a\nb", b" "])
def test_class_folders_that_cannot_name_a_class(folders, name):
    root = folders(train={"a": 1, "b": 1}, val={"a": 1, "b": 1})
    os.mkdir(os.fsencode(root / "train") + b"/" + name)
    with pytest.raises(UserError, match="a folder is called .*rename it"):
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
