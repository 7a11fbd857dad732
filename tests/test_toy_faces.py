import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils import toy_faces
from utils.errors import UserError
from utils.labels import AFFECTNET, AFFECTNET_COUNTS, RAFDB
from utils.readers import read_rafdb
from utils.toy.action_units import (
    AU_NAMES,
    EXPRESSION_UNITS,
    EXPRESSIONS,
    ActionUnits,
    draw_action_units,
)
from utils.toy.drawing import draw_face
from utils.toy.identity import draw_identity
from utils.toy.sets import ToySet
from utils.toy_faces import read_toy_set, redraw_face, write_affectnet, write_rafdb

REPOSITORY = Path(__file__).resolve().parents[1]


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


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


# ---- expressions ---------------------------------------------------------------------------------


def test_expressions_have_the_action_units_of_facs():
    assert EXPRESSION_UNITS == {
        "neutral": (),
        "happiness": (6, 12),
        "sadness": (1, 4, 15),
        "surprise": (1, 2, 5, 26),
        "fear": (1, 2, 4, 5, 20, 26),
        "anger": (4, 5, 7, 23),
        "disgust": (9, 15, 16),
        "contempt": (12, 14),
    }
    assert set(EXPRESSIONS) == set(RAFDB) | set(AFFECTNET)
    assert set(AU_NAMES.values()) == set(ActionUnits.__dataclass_fields__)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_drawn_action_units_are_those_of_the_expression(expression):
    units = EXPRESSION_UNITS[{"happy": "happiness", "sad": "sadness"}.get(expression, expression)]
    active_sides = set()
    for seed in range(20):
        sides = draw_action_units(expression, np.random.default_rng(seed))
        strengths = [{k: v for k, v in vars(side).items() if v} for side in sides]
        for strength in filter(None, strengths):
            assert set(strength) == {AU_NAMES[unit] for unit in units}
            assert all(0.5 < value <= 1 for value in strength.values())
        active_sides.add(tuple(map(bool, strengths)))
    if expression == "contempt":
        assert active_sides == {(True, False), (False, True)}
    else:
        assert active_sides == {(bool(units), bool(units))}


def test_an_unknown_expression_is_refused():
    with pytest.raises(ValueError, match="joy"):
        draw_face("joy", np.random.default_rng(0), 64)


def test_happy_and_sad_are_happiness_and_sadness():
    for short, long in (("happy", "happiness"), ("sad", "sadness")):
        a, b = (draw_face(name, np.random.default_rng(1), 64) for name in (short, long))
        assert np.array_equal(a.image, b.image)


# ---- one face ------------------------------------------------------------------------------------


def test_expressions_of_one_generator_state_differ_within_their_masks_only():
    """Who is drawn, from where and in which light must not depend on the expression."""
    for seed in range(10):
        faces = [draw_face(name, np.random.default_rng(seed), 100) for name in AFFECTNET]
        for face in faces[1:]:
            change = np.abs(face.image.astype(int) - faces[0].image).max(axis=2)
            outside = ~(face.features | faces[0].features)
            # Outside, exposure alone may differ: a few levels, the same for all of the picture.
            assert change[outside].max() <= 14
            assert change.max() > 60
            assert 0.04 < face.features.mean() < 0.30


def test_a_given_identity_stays_while_the_view_changes():
    who = draw_identity(np.random.default_rng(0))
    a, b = (draw_face("happy", np.random.default_rng(seed), 100, who) for seed in (1, 2))
    assert not np.array_equal(a.image, b.image)
    other = draw_face("happy", np.random.default_rng(1), 100)
    hue = [face.image[45:60, 46:54].mean(axis=(0, 1)) for face in (a, b, other)]
    assert np.abs(hue[0] / hue[0].sum() - hue[1] / hue[1].sum()).max() < 0.02


def test_landmarks_lie_on_their_features():
    face = draw_face("neutral", np.random.default_rng(4), 224)
    assert face.landmarks.shape == (68, 2)
    x, y = face.landmarks[17:].round().astype(int).T  # all but the jaw
    bridge = slice(27 - 17, 31 - 17)  # is not drawn
    inside = face.features[y, x]
    inside[bridge] = True
    assert inside.all()
    assert x[36 - 17] < x[45 - 17] and y[19 - 17] < y[37 - 17] < y[33 - 17] < y[57 - 17]


@pytest.mark.parametrize("size", [48, 100, 224])
def test_faces_have_the_size_asked_for(size):
    face = draw_face("fear", np.random.default_rng(0), size)
    assert face.image.shape == (size, size, 3) and face.image.dtype == np.uint8
    assert face.features.shape == (size, size) and face.features.dtype == bool


# ---- the label shows in the features alone -------------------------------------------------------


def test_mean_colour_and_brightness_say_nothing_about_the_label():
    """A linear classifier on them stays at chance, on people it has seen and on others."""
    toy = ToySet("rafdb", seed=1, train=700, test=700, num_class=7)
    values, labels = {}, toy.labels
    for split in ("train", "test"):
        images = np.stack([toy.face(split, i).image for i in range(len(labels[split]))])
        colour = images.reshape(len(images), -1, 3).mean(axis=1)
        brightness = images.mean(axis=3).reshape(len(images), -1)
        values[split] = np.column_stack([colour, brightness.mean(axis=1)])
    mean, deviation = values["train"].mean(axis=0), values["train"].std(axis=0)
    values = {split: (value - mean) / deviation for split, value in values.items()}
    classifier = LogisticRegression(max_iter=1000).fit(values["train"], labels["train"])
    # Chance is 1/7; the standard deviation of 700 guesses is 0.013.
    assert abs(classifier.score(values["test"], labels["test"]) - 1 / 7) < 3.5 * 0.013


@pytest.mark.parametrize("expression", [name for name in AFFECTNET if name != "neutral"])
def test_no_expression_changes_the_mean_colour(expression):
    """An open mouth would darken and redden the picture by several levels."""
    for seed in range(8):  # the same person, view and noise
        images = [
            draw_face(name, np.random.default_rng(seed), 100).image.astype(int)
            for name in ("neutral", expression)
        ]
        means = [image.mean(axis=(0, 1)) for image in images]
        assert np.abs(means[1] - means[0]).max() < 1


# ---- data sets -----------------------------------------------------------------------------------


def test_rafdb_layout(rafdb):
    lines = (rafdb / "EmoLabel/list_patition_label.txt").read_text().splitlines()
    assert len(lines) == 46
    assert lines[0].startswith("train_00001.jpg ") and lines[29].startswith("train_00030.jpg ")
    assert lines[30].startswith("test_0001.jpg ") and lines[45].startswith("test_0016.jpg ")
    names, labels = zip(*(line.split(" ") for line in lines), strict=True)
    counts = np.bincount(np.array(labels[:30], dtype=int), minlength=8)
    assert counts[0] == 0 and counts[1:].min() >= 4 and counts[1:].max() <= 5
    expected = {f"Image/aligned/{name[:-4]}_aligned.jpg" for name in names}
    assert set(files_of(rafdb)) == expected | {"EmoLabel/list_patition_label.txt", "toy.json"}
    with Image.open(rafdb / "Image/aligned/test_0016_aligned.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (100, 100))


def test_affectnet_layout(affectnet):
    expected = {"toy.json"}
    for split, count in (("train_set", 60), ("val_set", 24)):
        for i in range(count):
            expected |= {f"{split}/images/{i}.jpg"}
            expected |= {f"{split}/annotations/{i}_{k}.npy" for k in ("exp", "val", "aro", "lnd")}
    assert set(files_of(affectnet)) == expected
    annotations = affectnet / "val_set/annotations"
    labels = [int(np.load(annotations / f"{i}_exp.npy")) for i in range(24)]
    assert np.bincount(labels).tolist() == [3] * 8
    assert -1 <= float(np.load(annotations / "0_val.npy")) <= 1
    assert -1 <= float(np.load(annotations / "0_aro.npy")) <= 1
    assert np.load(annotations / "0_lnd.npy").shape == (136,)
    with Image.open(affectnet / "train_set/images/59.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224))


@pytest.mark.parametrize("num_class", [7, 8])
def test_affectnet_training_images_are_imbalanced_as_the_published_ones(num_class):
    toy = ToySet("affectnet", seed=0, train=2000, test=80, num_class=num_class)
    counts = np.bincount(toy.labels["train"], minlength=num_class)
    published = AFFECTNET_COUNTS["train"][:num_class]
    assert counts.sum() == 2000 and counts.min() >= 80
    assert np.argsort(counts).tolist() == np.argsort(published).tolist()


def test_the_same_parameters_give_the_same_files(rafdb, tmp_path):
    write_rafdb(tmp_path / "again", seed=3, train=30, test=16)
    assert files_of(tmp_path / "again") == files_of(rafdb)
    write_rafdb(tmp_path / "other", seed=4, train=30, test=16)
    other = files_of(tmp_path / "other")
    assert all(other[name] != data for name, data in files_of(rafdb).items())


def test_processes_draw_what_one_process_draws(tmp_path, monkeypatch):
    write_rafdb(tmp_path / "one", train=30, test=16)
    monkeypatch.setattr(toy_faces, "FACES_PER_TASK", 4)  # makes enough tasks for a pool
    write_rafdb(tmp_path / "pool", train=30, test=16)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "pool")


def test_nobody_is_in_both_splits():
    people = {}
    toy = ToySet("rafdb", seed=0, train=400, test=400, num_class=7)
    for split in ("train", "test"):
        people[split] = {draw_identity(toy._rng(split, "person", i)) for i in range(400)}
        assert len(people[split]) == 400
    assert not people["train"] & people["test"]


def test_a_written_face_can_be_drawn_again(rafdb, affectnet, tmp_path):
    for image in (
        rafdb / "Image/aligned/test_0007_aligned.jpg",
        rafdb / "Image/aligned/train_00030_aligned.jpg",
        affectnet / "val_set/images/17.jpg",
    ):
        written = np.asarray(Image.open(image)).astype(int)
        drawn = redraw_face(image)
        assert np.abs(written - drawn.image).mean() < 4  # JPEG
        assert drawn.features.shape == written.shape[:2]
    converted = affectnet / "val/3/17.jpg"  # a class folder, whose image need not exist
    drawn_from_class_folder = redraw_face(converted).image
    assert np.array_equal(drawn_from_class_folder, drawn.image)
    with pytest.raises(UserError, match="not an image of this toy set"):
        redraw_face(rafdb / "Image/aligned/test_0017_aligned.jpg")
    with pytest.raises(UserError, match="not in a toy data set"):
        redraw_face(tmp_path / "0.jpg")


def test_a_finished_set_is_kept_and_one_of_other_parameters_replaced(tmp_path):
    root = tmp_path / "set"
    write_rafdb(root, train=8, test=7)
    before = (root / "toy.json").stat().st_mtime_ns
    write_rafdb(root, train=8, test=7)
    assert (root / "toy.json").stat().st_mtime_ns == before
    write_rafdb(root, train=9, test=7)
    assert len(list((root / "Image/aligned").iterdir())) == 16
    assert read_toy_set(root) == ToySet("rafdb", seed=0, train=9, test=7, num_class=7)
    assert os.listdir(tmp_path) == ["set"]


def test_a_set_that_lacks_an_image_is_to_be_removed(tmp_path):
    """There is no other copy to get."""
    write_rafdb(tmp_path / "raf", train=7, test=7)
    (tmp_path / "raf/Image/aligned/train_00003_aligned.jpg").unlink()
    with pytest.raises(UserError, match=r"train_00003.*remove its folder and let --toy draw"):
        read_rafdb(tmp_path / "raf")


def test_a_set_of_an_older_renderer_is_drawn_again(tmp_path):
    root = tmp_path / "set"
    write_rafdb(root, train=8, test=7)
    parameters = json.loads((root / "toy.json").read_text())
    (root / "toy.json").write_text(json.dumps(parameters | {"renderer": 0}))
    write_rafdb(root, train=8, test=7)
    assert json.loads((root / "toy.json").read_text()) == parameters


def test_an_interrupted_set_is_never_there(tmp_path, monkeypatch):
    draw = toy_faces._draw_faces

    def interrupted(folder, toy, task):
        draw(folder, toy, task)
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_faces, "_draw_faces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_rafdb(tmp_path / "set", train=8, test=7)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f".set.toy-{gone.pid}-0123abcd"
    (stale / "Image").mkdir(parents=True)
    ours = tmp_path / f".set.toy-{os.getpid()}-0123abcd"  # of a run that still draws
    ours.mkdir()
    write_rafdb(tmp_path / "set", train=8, test=7)
    assert sorted(os.listdir(tmp_path)) == sorted([ours.name, "set"])


def test_the_script_runs_from_anywhere(tmp_path):
    script = [sys.executable, str(REPOSITORY / "utils/toy_faces.py")]
    arguments = ["--layout", "affectnet", "--output", "a b/set", "--train", "9", "--test", "8"]
    subprocess.run([*script, *arguments, "--sheet", "sheet.png"], cwd=tmp_path, check=True)
    assert read_toy_set(tmp_path / "a b/set").train == 9
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 112 + 7 * 4, 22 + 5 * 112 + 4 * 4)
