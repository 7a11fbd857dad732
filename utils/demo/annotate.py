"""Draw faces onto their picture: a box, a label, and a bar per class."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.demo.detect import Box
from utils.demo.predictor import Prediction

# Okabe and Ito's palette, which colour-blind readers can tell apart, with a grey for its black
# and a lighter blue.
COLORS = ("#BBBBBB", "#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#3C8DC8")
SHADE = (0, 0, 0, 200)  # behind the bars
TRACK = (255, 255, 255, 40)  # what a bar of 100 % would fill

MIN_SIDE = 800  # of photos after enlarging; no letters are legible on 100 pixels
TEXT = 0.018  # height of the letters as a fraction of the longer side
MIN_TEXT = 12  # pixels


def annotate(image: np.ndarray, faces: Sequence[Prediction], *, enlarge: bool) -> np.ndarray:
    """Draw faces onto a copy of their picture.

    Args:
        image: (h, w, 3) uint8.
        enlarge: whether to enlarge a small picture to MIN_SIDE on the longer side.

    Returns:
        (H, W, 3) uint8.
    """
    picture, scale = Image.fromarray(image), MIN_SIDE / max(image.shape)
    if enlarge and scale > 1:
        size = [round(side * scale) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    else:
        scale = 1.0
    boxes = [tuple(round(scale * value) for value in face.box) for face in faces]
    drawing = _Drawing(picture, boxes)
    # All boxes first, then all labels, so that nothing covers a label.
    for draw in (drawing.outline, drawing.tag, drawing.bars):
        for face, box in zip(faces, boxes, strict=True):
            draw(face, box)
    return np.array(picture)


_font = lru_cache(ImageFont.load_default)  # comes with Pillow


class _Drawing:
    """A picture, and which of its parts are taken; lengths follow from the picture's size."""

    def __init__(self, picture: Image.Image, boxes: Sequence[Box]):
        self.size = picture.size
        self.draw = ImageDraw.Draw(picture, "RGBA")  # blends translucent colours
        text = max(MIN_TEXT, TEXT * max(picture.size))
        self.font, self.small = (_font(round(factor * text)) for factor in (1, 0.85))
        self.line = max(2, round(text / 5))
        self.gap = max(3, round(text / 4))
        self.taken = list(boxes)

    def outline(self, face: Prediction, box: Box) -> None:
        x, y, w, h = box
        right, bottom = x + w - 1, y + h - 1
        # A dark rim keeps the line visible on a background of its own colour.
        self.draw.rectangle((x, y, right, bottom), outline="black", width=self.line + 2)
        inner = (x + 1, y + 1, max(x + 1, right - 1), max(y + 1, bottom - 1))
        self.draw.rectangle(inner, outline=_color(face), width=self.line)

    def tag(self, face: Prediction, box: Box) -> None:
        """Write the label above or below the box, or inside it where neither is free."""
        x, y, w, h = box
        text = f"{face.label} {100 * face.probabilities[face.label]:.0f} %"
        width = math.ceil(self.font.getlength(text)) + 2 * self.gap
        height = sum(self.font.getmetrics()) + self.gap
        lefts, tops = (x, x + w - width), (y - height, y + h)
        place = self._free((left, top, width, height) for left in lefts for top in tops)
        x, y, *_ = self._take(place or (x, y, width, height), _color(face))
        self.draw.text((x + self.gap, y + self.gap // 2), text, font=self.font, fill="black")

    def bars(self, face: Prediction, box: Box) -> None:
        """Draw named bars beside or below the box, or in a corner of it, where there is room."""
        x, y, w, h = box
        names = math.ceil(max(map(self.small.getlength, face.probabilities))) + 2 * self.gap
        step = sum(self.small.getmetrics())
        length = 4 * step
        width = names + length + self.gap
        height = step * len(face.probabilities) + 2 * self.gap
        places = [(left, top) for left in (x + w, x - width) for top in (y, y + h - height)]
        places += [(x, y + h), (x + w - width, y + h)]
        place = self._free((*place, width, height) for place in places)
        if place is None and width <= 0.4 * w and height <= 0.5 * h:
            place = (x, y + h - height, width, height)
        if place is None:
            return
        x, y, *_ = self._take(place, SHADE)
        for i, (name, probability) in enumerate(face.probabilities.items()):
            top = y + self.gap + i * step
            self.draw.text((x + self.gap, top), name, font=self.small, fill="white")
            self._fill((x + names, top + step // 5, length, step - step // 5), TRACK)
            filled = max(1, round(length * probability))
            self._fill((x + names, top + step // 5, filled, step - step // 5), COLORS[i % 8])

    def _take(self, place: Box, color: str | tuple[int, ...]) -> Box:
        """Fill a part of the picture, moved inside it, with a colour."""
        place = self._clamp(place)
        self.taken.append(place)
        self._fill(place, color)
        return place

    def _fill(self, place: Box, color: str | tuple[int, ...]) -> None:
        x, y, w, h = place
        self.draw.rectangle((x, y, x + w - 1, y + h - 1), fill=color)

    def _free(self, places: Iterable[Box]) -> Box | None:
        """Return the first place inside the picture that touches nothing drawn yet."""
        for place in places:
            if place == self._clamp(place) and not any(_touch(place, box) for box in self.taken):
                return place
        return None

    def _clamp(self, place: Box) -> Box:
        x, y, w, h = place
        return max(0, min(x, self.size[0] - w)), max(0, min(y, self.size[1] - h)), w, h


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _color(face: Prediction) -> str:
    return COLORS[list(face.probabilities).index(face.label) % len(COLORS)]
