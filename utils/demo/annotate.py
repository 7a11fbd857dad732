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
    for draw in (drawing.outline, drawing.label, drawing.bars):
        for face, box in zip(faces, boxes, strict=True):
            draw(face, box)
    return np.array(picture)


class _Drawing:
    """A picture, and which of its parts are taken; lengths follow from the picture's size."""

    def __init__(self, picture: Image.Image, boxes: Sequence[Box]):
        self.size = picture.size
        self.pen = ImageDraw.Draw(picture, "RGBA")  # blends translucent colours
        text = max(MIN_TEXT, round(TEXT * max(picture.size)))
        self.font = _font(text)
        self.row = sum(self.font.getmetrics())  # height of a line of text
        self.line, self.gap = round(text / 5), round(text / 4)
        self.taken = list(boxes)

    def outline(self, face: Prediction, box: Box) -> None:
        x, y, w, h = box
        # A dark rim keeps the line visible on a background of its own colour.
        for inset, color in ((0, "black"), (1, _color(face))):
            corners = (x + inset, y + inset, x + w - 1 - inset, y + h - 1 - inset)
            self.pen.rectangle(corners, outline=color, width=self.line + 2 - 2 * inset)

    def label(self, face: Prediction, box: Box) -> None:
        """Write the label above the box, or inside it at the picture's edge."""
        text = f"{face.label} {100 * face.probabilities[face.label]:.0f} %"
        width = math.ceil(self.font.getlength(text)) + 2 * self.gap
        height = self.row + self.gap
        x, y = self._inside(box[0], box[1] - height, width, height)
        self._fill(x, y, width, height, _color(face))
        self.pen.text((x + self.gap, y + self.gap // 2), text, font=self.font, fill="black")
        self.taken.append((x, y, width, height))

    def bars(self, face: Prediction, box: Box) -> None:
        """Draw named bars beside or below the box, or in a corner of it, where there is room."""
        x, y, w, h = box
        names = math.ceil(max(map(self.font.getlength, face.probabilities))) + 2 * self.gap
        length = 4 * self.row  # of a bar
        width = names + length + self.gap
        height = self.row * len(face.probabilities) + 2 * self.gap
        places = [(x + w, y), (x - width, y), (x + w - width, y + h)]
        panels = [(*self._inside(*place, width, height), width, height) for place in places]
        free = [p for p in panels if not any(intersection(p, box) for box in self.taken)]
        if width < 0.4 * w and height < 0.5 * h:
            free.append((x, y + h - height, width, height))
        if not free:
            return
        self._fill(*free[0], SHADE)
        self.taken.append(free[0])
        x, y = free[0][:2]
        for i, (name, probability) in enumerate(face.probabilities.items()):
            top = y + self.gap + i * self.row
            self.pen.text((x + self.gap, top), name, font=self.font, fill="white")
            bar = max(1, round(length * probability))
            self._fill(x + names, top + 2, bar, self.row - 2, COLORS[i % len(COLORS)])

    def _fill(self, x: int, y: int, w: int, h: int, color: str | tuple[int, ...]) -> None:
        self.pen.rectangle((x, y, x + w - 1, y + h - 1), fill=color)

    def _inside(self, x: int, y: int, w: int, h: int) -> tuple[int, int]:
        """Move w x h pixels into the picture."""
        return max(0, min(x, self.size[0] - w)), max(0, min(y, self.size[1] - h))


def _color(face: Prediction) -> str:
    return COLORS[list(face.probabilities).index(face.label) % len(COLORS)]
