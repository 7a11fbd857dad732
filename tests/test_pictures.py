import os
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.face_data import Split
from utils.pictures import find_labels, is_below, list_files, spread, unique_names


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_list_files_walks_folders_and_keeps_files_as_they_are(tmp_path):
    wanted = [tmp_path / "a" / "1.JPG", tmp_path / "a" / "below" / "2.png"]
    odd = tmp_path / "no-image.txt"  # named by hand: reading it is to say what is wrong
    touch(odd, *wanted, tmp_path / "a" / "notes.txt", tmp_path / "a" / ".hidden" / "3.png")
    assert list_files([odd, tmp_path / "a"]) == [odd, *wanted]


def test_list_files_lists_a_file_once(tmp_path):
    touch(tmp_path / "1.jpg")
    os.symlink(tmp_path / "1.jpg", tmp_path / "2.jpg")
    assert list_files([tmp_path, tmp_path / "." / "1.jpg"]) == [tmp_path / "1.jpg"]


def test_list_files_says_what_is_missing_and_goes_on(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "1.jpg", tmp_path / "film.mp4")
    missing, address = tmp_path / "missing.jpg", "https://host/1.jpg"
    assert list_files([missing, address, tmp_path / "empty", tmp_path]) == [tmp_path / "1.jpg"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["skipped", str(missing)],
        ["skipped", address],
        ["skipped", str(tmp_path / "empty")],
    ]
    assert list_files([tmp_path], suffixes=(".mp4",)) == [tmp_path / "film.mp4"]


def test_list_files_leaves_out_results(tmp_path):
    touch(tmp_path / "1.jpg", tmp_path / "out" / "1_sheet.jpg")
    assert list_files([tmp_path], output=tmp_path / "out") == [tmp_path / "1.jpg"]
    with pytest.raises(UserError, match="is to be read and written to"):
        list_files([tmp_path / "out"], output=tmp_path / "out")


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(3, None, [0, 1, 2]), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (0, 2, [])],
)
def test_spread_is_even(count, limit, expected):
    assert spread(count, limit) == expected


def test_labels_are_found_by_the_file_itself(tmp_path):
    touch(tmp_path / "set" / "0" / "a.jpg", tmp_path / "set" / "1" / "a.jpg", tmp_path / "a.jpg")
    os.symlink(tmp_path / "set", tmp_path / "other")
    split = Split(tmp_path / "set", np.array([b"0/a.jpg", b"1/a.jpg"]), np.array([4, 5]))
    paths = [tmp_path / "a.jpg", tmp_path / "other" / "1" / "a.jpg", tmp_path / "set/0/a.jpg"]
    assert find_labels(paths, [split]) == [None, 5, 4]
    assert find_labels(paths, []) == [None, None, None]


def test_is_below(tmp_path):
    assert is_below(tmp_path / "a" / "b.jpg", tmp_path / "a")
    assert not is_below(tmp_path / "ab" / "b.jpg", tmp_path / "a")


def test_unique_names_keep_stems_apart():
    paths = ["x/happy.jpg", "x/1.jpg", "y/1.jpg", "y/1.png", "y/A.jpg", "z/a.jpg", "y_1.jpg"]
    names = unique_names([Path(path) for path in paths])
    assert names == ["happy", "x_1", "y_1", "y_1-2", "y_A", "z_a", "y_1-3"]
    assert len({name.casefold() for name in names}) == len(paths)
