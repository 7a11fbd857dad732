import json
import os
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.toy import render, sets
from utils.toy.render import EXPRESSION_UNITS, draw_action_units, draw_face
from utils.toy.sets import ToySet, read_toy_set, write_affectnet, write_rafdb


def files_of(root: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def rafdb(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "raf-basic"
    write_rafdb(root, seed=3, train=30, test=16)
    return root


@pytest.fixture(scope="module")
def affectnet(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "AffectNet"
    write_affectnet(root, seed=3, train=60, val=24)
    return root


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


def test_expressions_show_the_action_units_of_facs():
    assert set(EXPRESSION_UNITS) == {*RAFDB, *AFFECTNET}
    for name, expected in (("happy", {6, 12}), ("anger", {4, 5, 7, 23})):
        left, right = draw_action_units(name, np.random.default_rng(0))
        assert left == right
        assert {unit for unit, strength in left.items() if strength} == expected
    sides = [draw_action_units("contempt", np.random.default_rng(seed)) for seed in range(20)]
    one_sided = {tuple(any(units.values()) for units in pair) for pair in sides}
    assert one_sided == {(True, False), (False, True)}


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


def test_mean_colour_and_brightness_do_not_tell_the_label():
    toy = ToySet("rafdb", seed=1, train=700, test=700, num_class=7)
    values = {}
    for split in ("train", "test"):
        colours = np.array([toy.face(split, i).mean(axis=(0, 1)) for i in range(700)])
        values[split] = np.column_stack([colours, colours.mean(axis=1)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        values["train"], toy.labels["train"]
    )
    # The standard deviation of the accuracy of 700 guesses is 0.013.
    assert abs(classifier.score(values["test"], toy.labels["test"]) - 1 / 7) < 3.5 * 0.013


# ---- sets ----------------------------------------------------------------------------------------


def test_rafdb_layout(rafdb):
    lines = (rafdb / "EmoLabel/list_patition_label.txt").read_text().splitlines()
    names, labels = zip(*(line.split(" ") for line in lines), strict=True)
    assert names[::15] == ("train_00001.jpg", "train_00016.jpg", "test_0001.jpg", "test_0016.jpg")
    drawn = np.concatenate([*read_toy_set(rafdb).labels.values()])
    assert [int(label) for label in labels] == (drawn + 1).tolist()
    assert set(np.bincount(drawn[:30])) == {4, 5}
    expected = {f"Image/aligned/{name[:-4]}_aligned.jpg" for name in names}
    assert set(files_of(rafdb)) == expected | {"EmoLabel/list_patition_label.txt", "toy.json"}
    with Image.open(rafdb / "Image/aligned/test_0016_aligned.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 100))


def test_affectnet_layout(affectnet):
    expected = {"toy.json"}
    for split, count in (("train_set", 60), ("val_set", 24)):
        expected |= {f"{split}/images/{i}.jpg" for i in range(count)}
        expected |= {f"{split}/annotations/{i}_exp.npy" for i in range(count)}
    assert set(files_of(affectnet)) == expected
    labels = [int(np.load(affectnet / f"val_set/annotations/{i}_exp.npy")) for i in range(24)]
    assert labels == read_toy_set(affectnet).labels["test"].tolist()
    assert np.bincount(labels).tolist() == [3] * 8
    with Image.open(affectnet / "train_set/images/59.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224))


def test_affectnet_training_split_is_imbalanced_like_the_published_one():
    labels = ToySet("affectnet", seed=0, train=2000, test=80, num_class=8).labels["train"]
    counts = np.bincount(labels)
    assert len(labels) == 2000 and counts.min() >= 80
    assert np.argsort(counts).tolist() == np.argsort(AFFECTNET_COUNTS["train"]).tolist()
    few = ToySet("affectnet", seed=0, train=9, test=8, num_class=8).labels
    assert all(np.bincount(labels, minlength=8).min() == 1 for labels in few.values())


def test_the_same_parameters_give_the_same_files(rafdb, tmp_path):
    write_rafdb(tmp_path / "again", seed=3, train=30, test=16)
    assert files_of(tmp_path / "again") == files_of(rafdb)
    write_rafdb(tmp_path / "other", seed=4, train=30, test=16)
    other = files_of(tmp_path / "other")
    assert all(other[name] != content for name, content in files_of(rafdb).items())


def test_no_person_is_in_both_splits():
    toy = ToySet("rafdb", seed=0, train=800, test=800, num_class=7)
    train, test = ({str(vars(toy.person(k, i))) for i in range(800)} for k in ("train", "test"))
    assert len(train) == len(test) == 200 and not train & test


def test_images_show_their_labels(rafdb, affectnet):
    for root in (rafdb, affectnet):
        toy = read_toy_set(root)
        for i in range(toy.test):
            written = np.asarray(Image.open(root / toy.image("test", i))).astype(int)
            assert np.abs(written - toy.face("test", i)).mean() < 4  # JPEG


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
