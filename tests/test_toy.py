"""Toy faces show their expression and nothing else; toy sets are written like the real ones."""

import json
import os
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageDraw

from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.toy import render, sets
from utils.toy.render import EXPRESSION_UNITS, draw_face
from utils.toy.sets import ToySet, read_toy_set, write_affectnet, write_rafdb


def files_of(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


# ---- faces ---------------------------------------------------------------------------------------


def test_the_renderer_has_not_changed(monkeypatch):
    """Where this fails on purpose, raise RENDERER, so that existing sets are drawn again."""
    checksum = 0
    polygon = ImageDraw.ImageDraw.polygon

    def recorded(image, points, fill):  # versions of Pillow differ in single pixels
        nonlocal checksum
        polygon(image, points, fill)
        values = np.rint([*(1000 * np.array(points)), *fill])
        checksum = zlib.crc32(values.astype("<i4").tobytes(), checksum)

    monkeypatch.setattr(ImageDraw.ImageDraw, "polygon", recorded)
    faces = [draw_face(e, np.random.default_rng(i), 100) for i, e in enumerate(EXPRESSION_UNITS)]
    assert (render.RENDERER, checksum) == (2, 412392936)
    light = np.mean(faces), np.std(faces)
    assert light == pytest.approx((139.697, 62.017), abs=0.01)


@pytest.mark.parametrize("size", [100, 224])
def test_only_features_depend_on_the_expression(size):
    """The person, the view, the noise and the mean colour do not."""
    for seed in range(8):
        toys = (draw_face(name, np.random.default_rng(seed), size) for name in AFFECTNET)
        neutral, *others = (face.astype(int) for face in toys)
        for face in others:
            assert face.shape == (size, size, 3)
            change = np.abs(face - neutral).max(axis=2)
            # Beyond the features only the gain differs, which keeps the mean colour.
            assert change.max() > 60 and 0.01 < (change > 14).mean() < 0.30
            assert change[:, : size // 8].max() <= 14 and change[:, -size // 8 :].max() <= 14
            assert np.abs(face.mean(axis=(0, 1)) - neutral.mean(axis=(0, 1))).max() < 1


# ---- sets ----------------------------------------------------------------------------------------


def assert_faces_are_in_the_files(root: Path, size: int):
    toy = read_toy_set(root)
    for i in range(toy.test):
        with Image.open(root / toy.image("test", i)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size))
            assert np.abs(np.asarray(image, int) - toy.face("test", i)).mean() < 4


def test_rafdb_layout(toy_raf):
    lines = (toy_raf / "EmoLabel/list_patition_label.txt").read_text().splitlines()
    names, labels = zip(*(line.split(" ") for line in lines), strict=True)
    assert names[::49] == ("train_00001.jpg", "test_0001.jpg") and names[-1] == "test_0021.jpg"
    drawn = np.concatenate([*read_toy_set(toy_raf).labels.values()])
    assert [int(label) for label in labels] == (drawn + 1).tolist()
    assert np.bincount(drawn).tolist() == [10] * 7
    expected = {f"Image/aligned/{name[:-4]}_aligned.jpg" for name in names}
    assert set(files_of(toy_raf)) == expected | {"EmoLabel/list_patition_label.txt", "toy.json"}
    assert_faces_are_in_the_files(toy_raf, 100)


def test_affectnet_layout(tmp_path):
    write_affectnet(tmp_path, train=20, val=16)
    expected = {"toy.json"}
    for split, count in (("train_set", 20), ("val_set", 16)):
        expected |= {f"{split}/images/{i}.jpg" for i in range(count)}
        expected |= {f"{split}/annotations/{i}_exp.npy" for i in range(count)}
    assert set(files_of(tmp_path)) == expected
    labels = [int(np.load(tmp_path / f"val_set/annotations/{i}_exp.npy")) for i in range(16)]
    assert labels == read_toy_set(tmp_path).labels["test"].tolist()
    assert np.bincount(labels).tolist() == [2] * 8
    assert_faces_are_in_the_files(tmp_path, 224)


@pytest.mark.parametrize(("layout", "names"), [("rafdb", RAFDB), ("affectnet", AFFECTNET)])
def test_faces_show_their_labels(monkeypatch, layout, names):
    monkeypatch.setattr(sets, "draw_face", lambda expression, *rest: expression)
    toy = ToySet(layout, seed=0, train=16, test=16, num_class=len(names))
    for split in ("train", "test"):
        shown = [toy.face(split, i) for i in range(16)]
        assert shown == [names[label] for label in toy.labels[split]]
        assert shown != sorted(shown, key=names.index)  # the order is random


def test_affectnet_training_split_is_imbalanced_like_the_published_one():
    labels = ToySet("affectnet", seed=0, train=2000, test=80, num_class=8).labels["train"]
    counts = np.bincount(labels)
    assert len(labels) == 2000 and counts.min() >= 80
    assert np.argsort(counts).tolist() == np.argsort(AFFECTNET_COUNTS["train"]).tolist()
    few = ToySet("affectnet", seed=0, train=9, test=8, num_class=8).labels
    assert all(np.bincount(labels, minlength=8).min() == 1 for labels in few.values())


def test_the_same_parameters_give_the_same_files(toy_raf, tmp_path):
    for seed in (0, 1):
        write_rafdb(tmp_path / str(seed), seed=seed, train=49, test=21)
    expected, other = files_of(toy_raf), files_of(tmp_path / "1")
    assert files_of(tmp_path / "0") == expected
    assert all(other[name] != content for name, content in expected.items())


def test_no_person_is_in_both_splits():
    toy = ToySet("rafdb", seed=0, train=800, test=800, num_class=7)
    train, test = ({str(vars(toy.person(k, i))) for i in range(800)} for k in ("train", "test"))
    assert len(train) == len(test) == 200 and not train & test


def test_a_finished_set_is_kept_and_another_toy_set_replaced(tmp_path, monkeypatch):
    root, marker = tmp_path / "set", tmp_path / "set/toy.json"
    write_rafdb(root, train=8, test=7)
    with monkeypatch.context() as patch:
        patch.setattr(sets, "_write_files", Mock(side_effect=AssertionError("drawn again")))
        write_rafdb(root, train=8, test=7)
    write_rafdb(root, train=9, test=7)
    assert len(os.listdir(root / "Image/aligned")) == 16
    parameters = json.loads(marker.read_text())
    marker.write_text(json.dumps(parameters | {"renderer": 0}))
    write_rafdb(root, train=9, test=7)
    assert json.loads(marker.read_text()) == parameters
    assert os.listdir(tmp_path) == ["set"]


def test_what_is_no_toy_set_is_not_replaced(tmp_path):
    (tmp_path / "me.jpg").touch()
    with pytest.raises(UserError, match="not a toy data set"):
        write_rafdb(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_rafdb(tmp_path / "me.jpg")
    assert os.listdir(tmp_path) == ["me.jpg"]


def test_interrupted_sets_never_appear_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "_write_files", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_rafdb(tmp_path / "set", train=8, test=7)
    assert os.listdir(tmp_path) == []
