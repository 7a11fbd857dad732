"""FER2013 and FER+ as users have them -> class folders."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.releases import report, tree, write_csv
from utils import convert_fer2013
from utils.convert_fer2013 import FER2013, VOTES, convert, majority
from utils.data.datasets import UNFINISHED, read_affectnet
from utils.errors import UserError

USAGES = ("Training", "PublicTest", "PrivateTest")
PLUS_HEADER = ["Usage", "Image name", *VOTES]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (48, 48), dtype=np.uint8)


def write_fer2013(path: Path, columns: tuple = ("emotion", "pixels", "Usage")) -> Path:
    """An image of each class in each split: row 7 * split + code shows pixels(row)."""
    rows = []
    for number in range(21):
        text = " ".join(map(str, pixels(number).ravel()))
        row = {"emotion": number % 7, "pixels": text, "Usage": USAGES[number // 7]}
        rows.append([row[name.strip()] for name in columns])
    write_csv(path, columns, rows)
    return path


@pytest.fixture
def source(tmp_path):
    return write_fer2013(tmp_path / "f.csv")


def votes(*, image: bool = True, **counts: int) -> list:
    return ["fer.png" if image else "", *(counts.get(name, 0) for name in VOTES)]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("fer2013.csv", ("emotion", "pixels", "Usage")),
        ("icml_face_data.csv", ("emotion", " Usage", " pixels")),
    ],
)
def test_pixels_classes_and_splits(tmp_path, capsys, name, columns):
    """Every image in the folder of its class and split, unchanged; and training reads them."""
    write_fer2013(tmp_path / name, columns)
    convert_fer2013.main(["--fer2013", str(tmp_path), "--output", str(tmp_path)])
    assert len(tree(tmp_path)) == 21 and not (tmp_path / UNFINISHED).exists()
    for number in range(21):
        split, name = ("train", "val", "test")[number // 7], FER2013[number % 7]
        image = Image.open(tmp_path / split / name / f"fer{number:07d}.png")
        assert image.mode == "L" and np.array_equal(image, pixels(number))
    published = capsys.readouterr().out.split("all")[1].split()[1:6:2]
    assert published == ["28,709", "3,589", "3,589"]
    data = read_affectnet(tmp_path)
    assert data.class_names == tuple(sorted(FER2013))
    assert data.train.root.name == "train" and data.val.root.name == "val"


def test_classes_are_numbered_as_published():
    assert " ".join(FER2013) == "angry disgust fear happy sad surprise neutral"


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        ({"neutral": 6, "surprise": 1, "sadness": 1, "unknown": 2}, "neutral"),  # 6 of 8
        ({"neutral": 5, "sadness": 5}, None),  # half is not more than half
        ({"neutral": 4, "sadness": 1, "anger": 3, "disgust": 2}, None),  # 4 of 9
        ({"fear": 2, "anger": 1, "neutral": 1, "sadness": 1, "contempt": 1}, "fear"),  # 2 of 2
        (dict.fromkeys(VOTES, 1), None),  # nothing is left
        ({"unknown": 6, "neutral": 4}, None),
        ({"contempt": 5, "NF": 4, "unknown": 1}, "contempt"),  # 5 of 9
        ({"neutral": ""}, None),
    ],
)
def test_majority(counts, label):
    found, reason = majority([str(count) for count in votes(**counts)[1:]])
    assert bool(reason) == (label is None) and (reason or found == label)


def test_ferplus_replaces_labels_and_says_what_it_leaves_out(tmp_path, source):
    rows = [[USAGES[i // 7], *votes(contempt=9, anger=1)] for i in range(21)]
    rows[0][1:] = votes(neutral=5, anger=5)
    rows[8][1:] = votes(image=False, NF=10)
    rows[9][1:] = votes(unknown=8)
    write_csv(tmp_path / "plus.csv", PLUS_HEADER, rows)
    convert(source, ferplus=tmp_path / "plus.csv", output=tmp_path / "out")
    files = tree(tmp_path / "out")
    assert len(files) == 18 and all(path.split("/")[1] == "contempt" for path in files)
    assert report(tmp_path / "out") == {
        "fer0000000.png": "no majority in FER+",
        "fer0000008.png": "removed by FER+",
        "fer0000009.png": "majority in FER+: unknown",
    }


def test_folders_of_images_with_label_csv(tmp_path):
    for folder in convert_fer2013.FOLDERS:
        rows = []
        for number in range(4):
            path = tmp_path / folder / f"fer{number:07d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels(number)).save(path)
            rows.append([path.name, "(0, 0, 48, 48)", *votes(anger=8, fear=2)[1:]])
        write_csv(tmp_path / folder / "label.csv", rows[0], rows[1:])
    (tmp_path / "FER2013Test/fer0000002.png").unlink()
    with open(tmp_path / "FER2013Test/label.csv", "a") as file:
        file.write("fer0000003.png,8\n")
    convert(tmp_path, output=tmp_path / "out")
    files = tree(tmp_path / "out")
    assert len(files) == 11
    valid = tmp_path / "FER2013Valid/fer0000001.png"
    assert files["val/anger/fer0000001.png"] == valid.read_bytes()
    assert report(tmp_path / "out") == {
        "fer0000002.png": "missing image",
        "label.csv:5": "has 2 fields, but the header 12",
    }


def test_interrupted_and_continued(tmp_path, source, monkeypatch):
    """Files are whole or absent, training refuses the rest, and repeating completes it."""
    out, done, replace = tmp_path / "out", [], os.replace

    def stop(*paths):
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        patch.setattr(sys, "argv", ["convert_fer2013.py", "--output", str(out)])
        convert(source, output=out)
    files = {path: content for path, content in tree(out).items() if "/." not in path}
    assert len(files) == 9
    with pytest.raises(UserError, match=f"interrupted.*python convert_fer2013.py --output {out}"):
        read_affectnet(out)
    convert(source, output=out)
    assert len(tree(out)) == 21 and files.items() <= tree(out).items()


@pytest.mark.parametrize(
    "row",
    [
        [3, "1 2 3", "Training"],
        [7, "0 " * 2304, "Training"],
        [-1, "0 " * 2304, "Training"],
        [3, "0 " * 2304, "Test"],
        [3, "0 " * 2304],
    ],
    ids=["pixels", "emotion 7", "emotion -1", "usage", "fields"],
)
def test_damaged_rows_are_named(tmp_path, source, row):
    with open(source, "a", newline="") as file:
        csv.writer(file).writerow(row)
    with pytest.raises(UserError, match=r"f\.csv:23: not a row of FER2013"):
        convert(source, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fer2013", "ferplus", "message"),
    [
        ("f.csv", "short.csv", "its 20 rows are not the 21 images"),
        ("f.csv", "shuffled.csv", "shuffled.csv: its 21 rows are not"),
        ("f.csv", "f.csv", "no column Image name, neutral"),
        ("short.csv", None, "no column emotion, pixels"),
    ],
)
def test_wrong_files(tmp_path, source, monkeypatch, fer2013, ferplus, message):
    monkeypatch.chdir(tmp_path)
    rows = [[usage, *votes(anger=10)] for usage in USAGES for _ in range(7)]
    write_csv(Path("short.csv"), PLUS_HEADER, rows[:-1])
    write_csv(Path("shuffled.csv"), PLUS_HEADER, rows[::-1])
    with pytest.raises(UserError, match=message):
        convert(fer2013, ferplus=ferplus, output="out")
