"""Draw faces onto their picture: a box, a label, and a bar per class."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from utils.demo.detect import Box, intersection
from utils.demo.predictor import Prediction

# Okabe and Ito's palette, which colour-blind readers can tell apart, with a grey for its black
# and a lighter blue.
COLORS = ("#BBBBBB", "#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#3C8DC8")
SHADE = (0, 0, 0, 200)  # behind the bars
TRACK = (255, 255, 255, 40)  # what a bar of 100 % would fill

MIN_SIDE = 800  # of photos after enlarging; no letters are legible on 100 pixels
TEXT = 0.018  # height of the letters as a fraction of the longer side
MIN_TEXT = 12  # pixels

_font = cache(ImageFont.load_default)  # comes with Pillow


def annotate(image: np.ndarray, faces: Sequence[Prediction], *, enlarge: bool) -> np.ndarray:
    """Draw faces onto a copy of their picture.

    Args:
        image: (h, w, 3) uint8.
        enlarge: whether to enlarge a small picture to MIN_SIDE on the longer side.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(image)
    longer = max(picture.size)
    if enlarge and longer < MIN_SIDE:
        picture = ImageOps.contain(picture, (MIN_SIDE, MIN_SIDE))
    scale = max(picture.size) / longer
    boxes = [tuple(round(scale * value) for value in face.box) for face in faces]
    drawing = _Drawing(picture, boxes)
    # All boxes first, then all labels, so that nothing covers a label.
    for draw in (drawing.outline, drawing.tag, drawing.bars):
        for face, box in zip(faces, boxes, strict=True):
            draw(face, box)
    return np.array(picture)


class _Drawing:
    """A picture, and which of its parts are taken; lengths follow from the picture's size."""

    def __init__(self, picture: Image.Image, boxes: Sequence[Box]):
        self.size = picture.size
        self.pen = ImageDraw.Draw(picture, "RGBA")  # blends translucent colours
        text = max(MIN_TEXT, TEXT * max(picture.size))
        self.font, self.small = _font(round(text)), _font(round(0.85 * text))
        self.line = max(2, round(text / 5))
        self.gap = max(3, round(text / 4))
        self.taken = list(boxes)

    def outline(self, face: Prediction, box: Box) -> None:
        x, y, w, h = box
        right, bottom = x + w - 1, y + h - 1
        # A dark rim keeps the line visible on a background of its own colour.
        self.pen.rectangle((x, y, right, bottom), outline="black", width=self.line + 2)
        inner = (x + 1, y + 1, right - 1, bottom - 1)
        self.pen.rectangle(inner, outline=_color(face), width=self.line)

    def tag(self, face: Prediction, box: Box) -> None:
        """Write the label above or below the box, or inside it where neither is free."""
        x, y, w, h = box
        text = f"{face.label} {100 * face.probabilities[face.label]:.0f} %"
        width = math.ceil(self.font.getlength(text)) + 2 * self.gap
        height = sum(self.font.getmetrics()) + self.gap
        corners = [(left, top) for left in (x, x + w - width) for top in (y - height, y + h)]
        x, y = self._free(corners, width, height) or self._clamp(x, y, width, height)
        self.taken.append((x, y, width, height))
        self._fill(x, y, width, height, _color(face))
        self.pen.text((x + self.gap, y + self.gap // 2), text, font=self.font, fill="black")

    def bars(self, face: Prediction, box: Box) -> None:
        """Draw named bars beside or below the box, or in a corner of it, where there is room."""
        x, y, w, h = box
        names = math.ceil(max(map(self.small.getlength, face.probabilities))) + 2 * self.gap
        step = sum(self.small.getmetrics())
        length = 4 * step  # of a bar
        width = names + length + self.gap
        height = step * len(face.probabilities) + 2 * self.gap
        corners = [(left, top) for left in (x + w, x - width) for top in (y, y + h - height)]
        corners += [(x, y + h), (x + w - width, y + h)]
        corner = self._free(corners, width, height)
        if corner is None and (width > 0.4 * w or height > 0.5 * h):
            return
        x, y = corner or (x, y + h - height)
        self.taken.append((x, y, width, height))
        self._fill(x, y, width, height, SHADE)
        for i, (name, probability) in enumerate(face.probabilities.items()):
            top = y + self.gap + i * step
            self.pen.text((x + self.gap, top), name, font=self.small, fill="white")
            for part, color in ((1, TRACK), (probability, COLORS[i % len(COLORS)])):
                filled = max(1, round(length * part))
                self._fill(x + names, top + step // 5, filled, step - step // 5, color)

    def _fill(self, x: int, y: int, w: int, h: int, color: str | tuple[int, ...]) -> None:
        self.pen.rectangle((x, y, x + w - 1, y + h - 1), fill=color)

    def _free(self, corners: Sequence[tuple[int, int]], w: int, h: int) -> tuple[int, int] | None:
        """Return the first corner at which w x h pixels are in the picture and cover nothing."""
        for x, y in corners:
            inside = self._clamp(x, y, w, h) == (x, y)
            if inside and not any(intersection((x, y, w, h), box) for box in self.taken):
                return x, y
        return None

    def _clamp(self, x: int, y: int, w: int, h: int) -> tuple[int, int]:
        return max(0, min(x, self.size[0] - w)), max(0, min(y, self.size[1] - h))


def _color(face: Prediction) -> str:
    return COLORS[list(face.probabilities).index(face.label) % len(COLORS)]
