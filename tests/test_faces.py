import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import faces
from utils.errors import UserError
from utils.faces import Face
from utils.images import read_rgb

# Hairline to chin and ear to ear of the photo's face, measured by hand: left, top, right, bottom.
HEAD = (170, 130, 360, 330)


@pytest.fixture(scope="module")
def cascade():
    return faces.HaarCascade()


@pytest.fixture(scope="module")
def portrait(photo):
    return read_rgb(photo)


def assert_on_head(box, scale=1.0, offset=(0, 0)):
    """The box's centre lies on the face and its size is about the face's."""
    left, top, right, bottom = (scale * value for value in HEAD)
    x, y, w, h = box
    assert left < x + w / 2 - offset[0] < right
    assert top < y + h / 2 - offset[1] < bottom
    assert 0.6 * (right - left) < w < 1.6 * (right - left)


def texture(height, width, seed=0):
    """Noise whose power falls with the frequency as in photos of foliage or gravel."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / np.maximum(frequency, 1e-3)
    noise = np.fft.ifft2(spectrum).real
    grey = 128 + 50 * (noise - noise.mean()) / noise.std()
    return np.stack([grey.clip(0, 255).astype(np.uint8)] * 3, axis=-1)


def test_one_face_is_found_once(cascade, portrait):
    (face,) = cascade(portrait)
    assert_on_head(face.box)
    assert face.eyes is None and face.score is None
    assert all(type(value) is int for value in face.box)


@pytest.mark.parametrize("scale", [0.2, 0.5, 4.0])
def test_boxes_are_in_pixels_of_the_picture(cascade, portrait, scale):
    """Large pictures are searched in small."""
    height, width = portrait.shape[:2]
    size = round(width * scale), round(height * scale)
    picture = np.asarray(Image.fromarray(portrait).resize(size, Image.Resampling.LANCZOS))
    (face,) = cascade(picture)
    assert_on_head(face.box, scale)


def test_several_faces_of_several_sizes_in_rough_surroundings(cascade, portrait):
    """All of them, from left to right, and no phantoms (the released settings find dozens)."""
    picture = texture(900, 1200)
    places = [(0.35, 40, 480), (1.0, 240, 20), (0.6, 800, 300)]  # scale, left, top
    for scale, left, top in places:
        small = Image.fromarray(portrait).resize((round(512 * scale), round(600 * scale)))
        picture[top : top + small.height, left : left + small.width] = np.asarray(small)
    found = cascade(picture)
    assert len(found) == len(places)
    for face, (scale, left, top) in zip(found, places, strict=True):
        assert_on_head(face.box, scale, (left, top))


@pytest.mark.parametrize("seed", range(3))
def test_texture_has_no_faces(cascade, seed):
    assert cascade(texture(600, 800, seed)) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (15, 15), (40, 40), (200, 300)])
def test_empty_and_tiny_pictures_have_no_faces(cascade, shape):
    assert cascade(np.full((*shape, 3), 90, dtype=np.uint8)) == []


def test_overlapping_boxes_are_merged_to_the_surest():
    sure = Face((100, 100, 100, 100))
    moved = Face((120, 110, 100, 100))  # 72 % of it is shared
    mouth = Face((130, 160, 30, 30))  # inside, though the intersection over union is just 9 %
    around = Face((50, 50, 250, 250))
    beside = Face((190, 100, 100, 100))  # 10 % is shared
    merged = faces.merge_overlapping([sure, moved, mouth, around, beside])
    assert merged == [sure, beside]


def test_margin_makes_a_square_around_the_box():
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    assert faces.with_margin(Face((200, 100, 80, 100)), 0, image).box == (190, 100, 100, 100)
    assert faces.with_margin(Face((200, 100, 100, 100)), 0.25, image).box == (175, 75, 150, 150)


@pytest.mark.parametrize("box", [(0, 0, 90, 100), (540, 330, 60, 70), (10, 0, 500, 400)])
@pytest.mark.parametrize("margin", [0, 0.3, 5])
def test_a_box_with_its_margin_stays_inside_the_picture(box, margin):
    image = np.zeros((400, 600, 3), dtype=np.uint8)
    x, y, w, h = faces.with_margin(Face(box), margin, image).box
    assert x >= 0 and y >= 0 and x + w <= 600 and y + h <= 400
    assert w == h > 0


def test_a_face_without_eyes_is_cut_out_as_it_is(portrait):
    face = Face((150, 100, 200, 200))
    expected = Image.fromarray(portrait).crop((150, 100, 350, 300)).resize((96, 96), 2)
    np.testing.assert_array_equal(faces.cut_out(portrait, face, 96), np.asarray(expected))


def test_the_whole_image_becomes_a_square(portrait):
    face = faces.whole_image(portrait)
    assert face.box == (0, 0, 512, 600)
    expected = Image.fromarray(portrait).resize((64, 64), 2)
    np.testing.assert_array_equal(faces.cut_out(portrait, face, 64), np.asarray(expected))


@pytest.mark.parametrize("degrees", [-40, -12, 0, 12, 40])
def test_tilted_eyes_become_level(degrees):
    """Two dots on a line tilted about the box's centre lie on one row after the cut, as far
    apart as before, and the left one still on the left."""
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    centre, half = (200, 140), 35
    dx, dy = (half * f(math.radians(degrees)) for f in (math.cos, math.sin))
    eyes = (centre[0] - dx, centre[1] - dy), (centre[0] + dx, centre[1] + dy)
    for value, (x, y) in zip((255, 120), eyes, strict=True):
        cv2.circle(image, (round(x), round(y)), 4, (value,) * 3, -1)
    face = Face((130, 70, 141, 141), eyes=eyes)
    assert faces.eye_tilt(face) == pytest.approx(degrees)
    grey = faces.cut_out(image, face, 141)[..., 0].astype(float)
    rows, columns = np.mgrid[:141, :141]
    found = []
    for side in (columns < 70, columns > 70):
        weight = grey * side
        found.append([(weight * axis).sum() / weight.sum() for axis in (columns, rows)])
    (x0, y0), (x1, y1) = found
    assert abs(y0 - y1) < 1 and abs(y0 - 70) < 1
    assert x1 - x0 == pytest.approx(2 * half, abs=1.5)
    assert grey[:, :70].max() > 200 > grey[:, 71:].max() > 100


def test_the_corners_of_a_turned_face_are_filled():
    image = np.full((100, 100, 3), 77, dtype=np.uint8)
    face = Face((0, 0, 100, 100), eyes=((30.0, 30.0), (70.0, 60.0)))
    assert (faces.cut_out(image, face, 50) == 77).all()


def test_eyes_of_a_profile_say_nothing_about_the_tilt():
    assert faces.eye_tilt(Face((0, 0, 100, 100), eyes=((50.0, 40.0), (53.0, 48.0)))) == 0


def test_the_cascade_is_used_where_yunet_is_not(tmp_path):
    assert isinstance(faces.choose_detector(tmp_path), faces.HaarCascade)


def test_a_damaged_yunet_file_is_a_user_error(tmp_path):
    path = tmp_path / faces.YUNET
    path.write_bytes(b"not a network")
    with pytest.raises(UserError, match="Haar cascade"):
        faces.choose_detector(tmp_path)


def test_yunet_finds_a_turned_face_and_levels_it(portrait):
    path = Path(__file__).parents[1] / "models" / faces.YUNET
    if not path.is_file():
        pytest.skip(f"models/{faces.YUNET} is not there")
    detector = faces.choose_detector(path.parent)
    assert isinstance(detector, faces.YuNet)
    (upright,) = detector(portrait)
    turn = cv2.getRotationMatrix2D((265, 230), 25, 1)
    turned = cv2.warpAffine(portrait, turn, (512, 600), borderMode=cv2.BORDER_REPLICATE)
    (face,) = detector(turned)
    assert_on_head(face.box)
    assert face.score > 0.8
    # The eyes are found to a few pixels, which is a few degrees.
    assert faces.eye_tilt(face) - faces.eye_tilt(upright) == pytest.approx(-25, abs=5)
    assert detector(np.zeros((12, 15, 3), dtype=np.uint8)) == []
