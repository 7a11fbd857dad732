"""The older release of AffectNet: whole photos and face boxes."""

import os

import numpy as np
import pytest
from PIL import Image

from tests.affectnet_layouts import (
    GOOD,
    report,
    snapshot,
    tree,
    write_manual_release,
)
from utils.affectnet import crops
from utils.convert_affectnet import convert
from utils.errors import UserError


@pytest.fixture
def manual(tmp_path):
    train = [GOOD, ("b/1.jpg", "20", "5.0", 40, 40, "1.0"), ("b/2.PNG", 0, 0, 100, 80, 7)]
    return write_manual_release(tmp_path, train, [("c/3.jpeg", 5, 5, 60, 60, 4)])


@pytest.mark.parametrize("workers", [1, 2])
def test_manual_release_is_cropped(manual, workers, capsys):
    result = convert(manual, workers=workers)
    assert "Manually_Annotated release" in capsys.readouterr().out
    assert set(tree(manual)) == {
        "train/0/1.jpg", "train/1/1.jpg", "train/7/2.jpg", "val/4/3.jpg"
    }  # fmt: skip
    assert result.dropped.empty
    with Image.open(manual / "train/7/2.jpg") as face:
        assert face.size == (224, 224) and face.format == "JPEG" and face.mode == "RGB"
        reference = Image.new("RGB", (8, 8))
        path = manual / "reference.jpg"
        reference.save(path, quality=95)
        with Image.open(path) as other:
            assert face.quantization == other.quantization


def test_manual_images_of_one_name_in_one_class_keep_apart(tmp_path):
    rows = [GOOD, ("b/1.jpg", 10, 10, 50, 50, 0), ("b/1.png", 10, 10, 50, 50, 0)]
    write_manual_release(tmp_path, rows, [GOOD])
    convert(tmp_path, workers=1)
    assert set(tree(tmp_path)) == {
        "train/0/a_1.jpg.jpg", "train/0/b_1.jpg.jpg", "train/0/b_1.png.jpg", "val/0/1.jpg"
    }  # fmt: skip


def test_manual_bad_rows_are_listed(tmp_path):
    box = (10, 10, 50, 50)
    rows = [
        GOOD,
        ("a/8.jpg", *box, 8),
        ("a/9.jpg", *box, "9.0"),
        ("a/10.jpg", *box, 10),
        ("a/11.jpg", *box, 11),
        ("a/noexp.jpg", *box, None),
        ("a/width.jpg", 10, 10, -1, 50, 0),
        ("a/zero.jpg", 10, 10, 50, 0, 0),
        ("a/nan.jpg", None, 10, 50, 50, 0),
        ("a/null.jpg", 10, "NULL", 50, 50, 0),
        ("a/inf.jpg", 10, 10, "inf", 50, 0),
        ("a/outside.jpg", 100, 10, 50, 50, 0),
        ("a/sliver.jpg", -49.9, 10, 50, 50, 0),
        ("a/missing.jpg", *box, 0),
        ("a/broken.jpg", *box, 0),
        (None, *box, 0),
        GOOD[:5] + (3,),
    ]
    write_manual_release(tmp_path, rows, [GOOD])
    photos = tmp_path / "Manually_Annotated_Images/a"
    (photos / "missing.jpg").unlink()
    (photos / "broken.jpg").write_bytes((photos / "1.jpg").read_bytes()[:300])
    convert(tmp_path, workers=1)
    assert set(tree(tmp_path)) == {"train/0/1.jpg", "val/0/1.jpg"}
    assert report(tmp_path) == {
        "8.jpg": "expression 8 (none)",
        "9.jpg": "expression 9 (uncertain)",
        "10.jpg": "expression 10 (non-face)",
        "11.jpg": "unknown expression code",
        "noexp.jpg": "no expression",
        "width.jpg": "no face box",
        "zero.jpg": "no face box",
        "nan.jpg": "no face box",
        "null.jpg": "no face box",
        "inf.jpg": "no face box",
        "outside.jpg": "face box outside the image",
        "sliver.jpg": "face box outside the image",
        "missing.jpg": "missing image",
        "broken.jpg": "unreadable image",
        "": "no image path",
        "1.jpg": "listed before",
    }


def test_manual_conversion_continues_and_repeats(manual, tmp_path_factory, monkeypatch):
    whole = tmp_path_factory.mktemp("whole")
    convert(manual, output=whole, workers=2)
    replace, calls = os.replace, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # the third crop is written but not renamed
            raise KeyboardInterrupt
        return replace(*args)

    monkeypatch.setattr(crops.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(manual, workers=1)
    monkeypatch.undo()
    assert len(list(manual.rglob(".*.tmp"))) == 1
    convert(manual, workers=1)
    assert tree(manual) == tree(whole)
    before = snapshot(manual)
    convert(manual, workers=2)
    assert snapshot(manual) == before


def test_margins_are_not_mixed(manual):
    convert(manual, margin=0.25, workers=1)
    with pytest.raises(UserError, match="--margin 0.25"):
        convert(manual, workers=1)
    convert(manual, margin=0.25, workers=1)


def photo_of_coordinates():
    """Red is the column, green the row."""
    rows, columns = np.mgrid[:200, :250].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 255)], axis=-1))


def test_crop_takes_the_box_and_its_margin():
    # Every pixel of a 224 box lands on a pixel of the crop: equal, not merely close.
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))
    crop = np.asarray(crops.crop_face(photo, (30, 40, 224, 224), 0.0))
    assert (crop == np.asarray(photo)[40:264, 30:254]).all()
    # A box of 112 with half of it on each side is the same square.
    crop = np.asarray(crops.crop_face(photo, (86, 96, 112, 112), 0.5))
    assert (crop == np.asarray(photo)[40:264, 30:254]).all()


def test_crop_over_the_edge_is_black_there():
    crop = np.asarray(crops.crop_face(photo_of_coordinates(), (194, -56, 112, 112), 0.0))
    assert (crop[:112] == 0).all() and (crop[:, 112:] == 0).all()
    visible = crop[112:, :112].astype(int)
    assert (visible[..., 2] == 255).all()
    assert abs(visible[0, 0] - [194, 0, 255]).max() <= 1
    assert abs(visible[-1, -1] - [249, 55, 255]).max() <= 1


def test_crop_of_a_huge_box_costs_no_memory():
    assert crops.crop_face(photo_of_coordinates(), (0, 0, 1e9, 1e9), 0.0) is None
    crop = np.asarray(crops.crop_face(photo_of_coordinates(), (-1e4, -1e4, 2e4, 2e4), 0.0))
    assert 0 < (crop[..., 2] > 0).sum() <= 12
