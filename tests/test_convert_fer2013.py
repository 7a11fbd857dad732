"""FER2013 and FER+ as users have them -> class folders."""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.releases import report, tree, write_csv
from utils import convert_fer2013
from utils.convert_fer2013 import FER2013, VOTES, majority
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
        cells = {"emotion": number % 7, "pixels": text, "Usage": USAGES[number // 7]}
        rows.append([cells[name.strip()] for name in columns])
    write_csv(path, columns, rows)
    return path


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
    out = capsys.readouterr().out
    assert "7,215" in out and "28,709" in out  # published
    data = read_affectnet(tmp_path)
    assert data.class_names == tuple(sorted(FER2013))
    assert data.train.root.name == "train" and data.val.root.name == "val"


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        ({"happiness": 10}, "happiness"),
        ({"neutral": 6, "surprise": 1, "sadness": 1, "unknown": 2}, "neutral"),  # 6 of 8
        ({"neutral": 5, "sadness": 5}, ""),  # half is not more than half
        ({"neutral": 4, "sadness": 1, "anger": 3, "disgust": 2}, ""),  # 4 of 9
        ({"fear": 2, "anger": 1, "neutral": 1, "sadness": 1, "contempt": 1}, "fear"),  # 2 of 2
        (dict.fromkeys(VOTES, 1), ""),  # nothing is left
        ({"unknown": 6, "neutral": 4}, ""),
        ({"contempt": 5, "NF": 4, "unknown": 1}, "contempt"),  # 5 of 9
    ],
)
def test_majority(counts, label):
    found, reason = majority([str(count) for count in votes(**counts)[1:]])
    assert (found if not reason else "") == label


@pytest.mark.parametrize("votes", [["8", "", *"00000000"], ["8.0", *"000000000"], [*"12"]])
def test_votes_that_are_not_ten_numbers(votes):
    assert majority(votes) == (" ".join(votes), "not ten numbers of votes")


def test_ferplus_replaces_labels_and_says_what_it_leaves_out(tmp_path):
    rows = [[USAGES[i // 7], *votes(contempt=9, anger=1)] for i in range(21)]
    rows[0][1:] = votes(neutral=5, anger=5)
    rows[8][1:] = votes(image=False, NF=10)
    rows[9][1:] = votes(unknown=8)
    plus = tmp_path / "plus.csv"
    write_csv(plus, PLUS_HEADER, rows)
    source = write_fer2013(tmp_path / "fer2013.csv")
    convert_fer2013.convert(source, ferplus=plus, output=tmp_path / "out")
    files = tree(tmp_path / "out")
    assert len(files) == 18 and all(path.split("/")[1] == "contempt" for path in files)
    reasons = report(tmp_path / "out")
    assert list(reasons) == ["fer0000000.png", "fer0000008.png", "fer0000009.png"]
    assert "majority" in reasons["fer0000000.png"] and "removed" in reasons["fer0000008.png"]
    convert_fer2013.convert(source, output=tmp_path / "other_labels")
    with pytest.raises(UserError, match="12 images.*another --output"):
        convert_fer2013.convert(source, ferplus=plus, output=tmp_path / "other_labels")


def test_folders_of_images_with_label_csv(tmp_path):
    for folder in convert_fer2013.FOLDERS:
        rows = []
        for number in range(4):
            name, where = f"fer{number:07d}.png", tmp_path / folder
            rows.append([name, "(0, 0, 48, 48)", *votes(anger=8, fear=2)[1:]])
            where.mkdir(exist_ok=True)
            Image.fromarray(pixels(number)).save(where / name)
        write_csv(where / "label.csv", rows[0], rows[1:])
    (tmp_path / "FER2013Test/fer0000002.png").unlink()
    (tmp_path / "FER2013Test/fer0000003.png").write_bytes(b"\x89PNG")
    convert_fer2013.convert(tmp_path, output=tmp_path / "out")
    files = tree(tmp_path / "out")
    assert len(files) == 10
    source = tmp_path / "FER2013Valid/fer0000001.png"
    assert files["val/anger/fer0000001.png"] == source.read_bytes()
    assert report(tmp_path / "out") == {
        "fer0000002.png": "missing image",
        "fer0000003.png": "unreadable image",
    }
    for table in ("", "a,b\nc,d,e\n"):
        (tmp_path / "FER2013Test/label.csv").write_text(table)
        with pytest.raises(UserError, match="FER2013Test/label.csv: cannot be read"):
            convert_fer2013.convert(tmp_path, output=tmp_path / "out")


def test_interrupted_and_continued(tmp_path, monkeypatch):
    """Files are whole or absent, training refuses the rest, and repeating completes it."""
    source, out = write_fer2013(tmp_path / "f.csv"), tmp_path / "out"
    done, replace = [], os.replace

    def stop(*paths):
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        patch.setattr(sys, "argv", ["convert_fer2013.py", "--output", str(out)])
        convert_fer2013.convert(source, output=out)
    files = {path: content for path, content in tree(out).items() if "/." not in path}
    assert len(files) == 9
    with pytest.raises(UserError, match=f"interrupted.*python convert_fer2013.py --output {out}"):
        read_affectnet(out)
    convert_fer2013.convert(source, output=out)
    assert len(tree(out)) == 21 and files.items() <= tree(out).items()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, "1 2 3", "Training"], r"f\.csv:23: .*'1 2 3'"),
        ([3, "x " * 2304, "Training"], r"f\.csv:23"),
        ([7, "0 " * 2304, "Training"], r"emotion '7'"),
        ([-1, "0 " * 2304, "Training"], r"emotion '-1'"),
        ([3, "0 " * 2304, "Test"], r"Usage 'Test'"),
        ([3, "0 " * 2304], r"f\.csv:23: has 2 fields"),
    ],
)
def test_damaged_rows_are_named(tmp_path, row, message):
    source = write_fer2013(tmp_path / "f.csv")
    with open(source, "a", newline="") as file:
        csv.writer(file).writerow(row)
    with pytest.raises(UserError, match=message):
        convert_fer2013.convert(source, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes(tmp_path):
    source = write_fer2013(tmp_path / "fer2013.csv")
    rows = [[usage, *votes(anger=10)] for usage in USAGES for _ in range(7)]
    write_csv(tmp_path / "short.csv", PLUS_HEADER, rows[:-1])
    write_csv(tmp_path / "shuffled.csv", PLUS_HEADER, rows[::-1])
    for where, plus, message in (
        (source, tmp_path / "short.csv", "its 20 rows are not the 21 images"),
        (source, tmp_path / "shuffled.csv", "shuffled.csv: its 21 rows are not"),
        (source, source, "no column Image name, neutral"),
        (tmp_path / "short.csv", None, "no column emotion, pixels"),
        (REPOSITORY, None, "cannot be read .*Is a directory"),
        (tmp_path / "nothing.csv", None, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            convert_fer2013.convert(where, ferplus=plus, output=tmp_path / "out")
