import numpy as np
import pytest
from PIL import ImageColor

from tests.legibility import contrast
from utils.annotate import COLORS, DARK, MIN_SIDE, SHADE, TRACK, annotate
from utils.faces import Face
from utils.labels import AFFECTNET

GREY = 128


def picture(height, width):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def probabilities(*likeliest):
    rows = np.full((len(likeliest), len(AFFECTNET)), 0.02)
    rows[range(len(likeliest)), likeliest] = 0.86
    return rows


def changed(image):
    return (image != GREY).any(axis=-1)


def test_the_copy_has_the_pictures_size_and_the_original_is_kept():
    image = picture(700, 900)
    copy = annotate(image, [Face((300, 200, 150, 150))], probabilities(1), AFFECTNET)
    assert copy.shape == image.shape and copy.dtype == np.uint8
    assert (image == GREY).all()
    assert changed(copy).any()


@pytest.mark.parametrize("shape", [(100, 100), (200, 150), (40, 640)])
def test_small_pictures_are_enlarged(shape):
    copy = annotate(picture(*shape), [], np.empty((0, 8)), AFFECTNET)
    assert max(copy.shape) == MIN_SIDE
    assert copy.shape[0] / copy.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_letters_grow_with_the_picture():
    """The label's background is as high as its letters; at 4000 pixels five times that at 800."""
    heights = []
    for side in (800, 4000):
        box = (side // 4, side // 2, side // 4, side // 4)
        copy = annotate(picture(side, side), [Face(box)], probabilities(1), AFFECTNET)
        above = changed(copy)[: box[1], box[0] + 2]
        heights.append(above.sum())
    assert heights[0] >= 14
    assert heights[1] / heights[0] == pytest.approx(5, rel=0.15)


def test_bars_are_as_long_as_the_probabilities():
    """Beside the box, in the class's colour: twice the probability is twice the length."""
    rows = np.array([[0.6, 0.3, 0.1, 0, 0, 0, 0, 0]])
    copy = annotate(picture(800, 800), [Face((200, 300, 150, 150))], rows, AFFECTNET)
    beside = copy[:, 352:]
    lengths = [
        (beside == color).all(axis=-1).sum(axis=1).max()
        for color in ((0xBB, 0xBB, 0xBB), (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9))
    ]
    assert lengths[0] / lengths[1] == pytest.approx(2, rel=0.1)
    assert lengths[1] / lengths[2] == pytest.approx(3, rel=0.25)
    # A track behind each bar, lighter than the ground, shows where it would end at 100 %.
    ground = beside[0, 0] * (1 - SHADE[3] / 255)
    track = ground + (255 - ground) * TRACK[3] / 255
    bars = beside[:, (beside == (0xE6, 0x9F, 0x00)).all(axis=-1).any(axis=0).argmax() :]
    longest = (abs(bars - track) < 2).all(axis=-1).sum(axis=1).max()  # of an empty bar
    assert lengths[0] / longest == pytest.approx(0.6, rel=0.1)


def test_faces_are_not_covered_where_there_is_room():
    boxes = [(100, 200, 120, 120), (300, 220, 100, 100), (700, 100, 200, 200)]
    copy = annotate(
        picture(800, 1000), [Face(box) for box in boxes], probabilities(1, 2, 3), AFFECTNET
    )
    for x, y, w, h in boxes:
        inside = changed(copy)[y + 12 : y + h - 12, x + 12 : x + w - 12]
        assert not inside.any()


def test_a_label_keeps_off_a_face_at_the_right_edge():
    """It is wider than the face and stood on it, where it now ends flush with the box."""
    x, y, w, h = box = (840, 300, 60, 60)
    copy = annotate(picture(800, 900), [Face(box)], probabilities(7), AFFECTNET)
    assert not changed(copy)[y + 12 : y + h - 12, x + 12 : x + w - 12].any()
    assert (copy[y - 2, x - 10 :] == ImageColor.getrgb(COLORS[7])).all()


def test_colours_stand_out():
    """WCAG contrasts: letters on their label at least 4.5; bars on their ground at least 2."""
    for color in COLORS:
        black, white = (contrast(color, ink) for ink in ("black", "white"))
        assert max(black, white) == (white if color in DARK else black) >= 4.5
        assert contrast(color, str(1 - SHADE[3] / 255)) >= 2  # over a white picture


@pytest.mark.parametrize(
    "box", [(0, 0, 640, 640), (0, 0, 1, 1), (639, 639, 1, 1), (0, 600, 40, 40)]
)
def test_boxes_of_any_size_and_place_can_be_drawn(box):
    copy = annotate(picture(640, 640), [Face(box)], probabilities(4), AFFECTNET)
    assert changed(copy).any()


def test_many_faces_and_any_number_of_classes_can_be_drawn():
    boxes = [Face((x, y, 30, 30)) for x in range(0, 300, 30) for y in range(0, 300, 30)]
    names = [f"class {i}" for i in range(15)]
    rows = np.full((len(boxes), 15), 1 / 15)
    assert changed(annotate(picture(300, 300), boxes, rows, names)).any()
