"""Draw what was read in faces onto their picture: box, label, and a bar for each class."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.faces import Box, Face

# Okabe and Ito's palette, which colour-blind readers can tell apart, with a grey for its black.
COLORS = ("#BBBBBB", "#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")
DARK = {"#0072B2"}  # of these, the ones on which white letters stand out more than black

SHADE = (0, 0, 0, 200)  # behind the bars: all colours stand out, and the picture is still guessed
TRACK = (255, 255, 255, 40)  # of a bar: where it would end at 100 %

MIN_SIDE = 800  # smaller pictures are drawn larger: no letters are legible on 100 pixels
TEXT = 0.018  # height of the letters by the longer side; what fits a screen reads the same


def annotate(
    image: np.ndarray,
    faces: Sequence[Face],
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> np.ndarray:
    """A copy of the picture with each face's box, likeliest class and bars.

    Args:
        image: (h, w, 3) uint8.
        faces: N faces.
        probabilities: (N, C).
        class_names: C names.

    Returns:
        (H, W, 3) uint8: the picture's size, enlarged to MIN_SIDE on the longer side if smaller.
    """
    scale = max(1.0, MIN_SIDE / max(image.shape[:2]))
    picture = Image.fromarray(image)
    if scale > 1:
        size = [round(side * scale) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    boxes = [tuple(round(scale * value) for value in face.box) for face in faces]
    drawing = _Drawing(picture, boxes)
    likeliest = probabilities.argmax(axis=1) if len(faces) else ()
    # All boxes first, then all labels, so that nothing hides a label.
    for box, label in zip(boxes, likeliest, strict=True):
        drawing.outline(box, _color(label))
    for box, label, row in zip(boxes, likeliest, probabilities, strict=True):
        drawing.tag(box, f"{class_names[label]} {100 * row[label]:.0f} %", _color(label))
    for box, row in zip(boxes, probabilities, strict=True):
        drawing.bars(box, row, class_names)
    return np.asarray(picture)


class _Drawing:
    """A picture and which of its parts are taken; lengths follow from the picture's size."""

    def __init__(self, picture: Image.Image, boxes: Sequence[Box]):
        self.size = picture.size
        self.draw = ImageDraw.Draw(picture, "RGBA")  # blends translucent colours
        self.font = _font(round(TEXT * max(picture.size)))
        self.small = _font(round(0.85 * TEXT * max(picture.size)))
        self.line = max(2, round(self.font.size / 5))
        self.gap = max(3, round(self.font.size / 4))
        self.taken = list(boxes)

    def outline(self, box: Box, color: str) -> None:
        x, y, w, h = box
        corners = (x, y, x + w - 1, y + h - 1)
        # A dark rim keeps the line visible on a background of its own colour.
        self.draw.rectangle(corners, outline="#000000", width=self.line + 2)
        inner = (corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1)
        if inner[0] < inner[2] and inner[1] < inner[3]:
            self.draw.rectangle(inner, outline=color, width=self.line)

    def tag(self, box: Box, text: str, color: str) -> None:
        """The label above the box, or below it, flush with one of its sides; inside where no such
        place is free."""
        x, y, w, h = box
        width = math.ceil(self.font.getlength(text)) + 2 * self.gap
        height = sum(self.font.getmetrics()) + self.gap
        sides = (x, x + w - width)
        place = self._free(
            (left, top, width, height) for left in sides for top in (y - height, y + h)
        )
        if place is None:
            place = self._clamp((x, y, width, height))
        self.taken.append(place)
        x, y, width, height = place
        self.draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        ink = "white" if color in DARK else "black"
        self.draw.text((x + self.gap, y + self.gap // 2), text, font=self.font, fill=ink)

    def bars(self, box: Box, row: np.ndarray, class_names: Sequence[str]) -> None:
        """Named bars beside the box or, if that is large, in its corner; where there is no room
        for names, bars of the classes' colours alone under the box, or along its bottom."""
        x, y, w, h = box
        names = max(math.ceil(self.small.getlength(name)) for name in class_names) + 2 * self.gap
        step = sum(self.small.getmetrics())
        width, height = names + 5 * self.small.size + 2 * self.gap, step * len(row) + 2 * self.gap
        place = self._free(
            (left, top, width, height) for left in (x + w, x - width) for top in (y, y + h - height)
        )
        if place is None and width <= 0.4 * w and height <= 0.5 * h:
            place = self._clamp((x, y + h - height, width, height))
        if place is None:
            names, step = 0, max(3, self.small.size // 4)
            height = step * len(row) + 2 * self.gap
            tags = sum(self.font.getmetrics()) + self.gap  # a label may stand right under the box
            place = self._free((x, top, w, height) for top in (y + h, y + h + tags, y - height))
        if place is None:
            place = self._clamp((x, y + h - height, w, height))
        self.taken.append(place)
        left, top, width, height = place
        self.draw.rectangle((left, top, left + width - 1, top + height - 1), fill=SHADE)
        start = left + self.gap + names
        length = max(1, left + width - self.gap - start)
        for label, probability in enumerate(row):
            y = top + self.gap + label * step
            if names:
                text = class_names[label]
                self.draw.text((left + self.gap, y), text, font=self.small, fill="white")
            end = start + max(1, round(length * float(probability)))
            upper, lower = y + max(1, step // 5), y + step - 1
            self.draw.rectangle((start, upper, start + length - 1, lower), fill=TRACK)
            self.draw.rectangle((start, upper, end - 1, lower), fill=_color(label))

    def _free(self, places: Iterable[Box]) -> Box | None:
        """The first place inside the picture that touches nothing drawn yet."""
        for place in places:
            if place == self._clamp(place) and not any(_touch(place, box) for box in self.taken):
                return place
        return None

    def _clamp(self, place: Box) -> Box:
        x, y, w, h = place
        return max(0, min(x, self.size[0] - w)), max(0, min(y, self.size[1] - h)), w, h


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # Pillow brings it along
