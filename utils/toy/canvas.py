"""Anti-aliased drawing in face coordinates.

They are those of the picture before the head is turned and moved: x to the right and y down,
both from -1 to 1. Left and right are the picture's too.
"""

import numpy as np
from PIL import Image, ImageDraw

from utils.toy.identity import Colour

_ANGLE = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1)  # of radius 1


class Canvas:
    """A supersampled picture that is drawn on in face coordinates.

    Args:
        size: height and width of the finished picture, in pixels.
        background: what it is filled with.
        angle: the head's rotation, in radians.
        scale: the head's size, 1 as it is.
        shift: where the origin goes, in halves of the picture.
    """

    def __init__(
        self,
        size: int,
        background: Colour,
        *,
        angle: float,
        scale: float,
        shift: tuple[float, float],
    ):
        self.size = size
        self.factor = max(2, round(300 / size))  # drawn pixels for one that is kept, in a row
        self.outlines: list[np.ndarray] = []  # all polygons, (n, 2) each, in pixels
        self._image = Image.new("RGB", (size * self.factor,) * 2, background)
        self._draw = ImageDraw.Draw(self._image)
        cos, sin = np.cos(angle) * scale * size / 2, np.sin(angle) * scale * size / 2
        self._turn = np.array([[cos, sin], [-sin, cos]])  # for points in rows
        self._shift = (np.array(shift) + 1) * size / 2

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) in face coordinates -> (n, 2) in pixels of the finished picture."""
        return points @ self._turn + self._shift

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """points: (n, 2), filled with the colour."""
        points = self.to_pixels(points)
        self.outlines.append(points)
        self._draw.polygon((points * self.factor).ravel().tolist(), fill=colour)

    def between(self, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: Colour) -> None:
        """Fill between two curves over the same x, all (n,)."""
        y = np.concatenate([top, bottom[::-1]])
        self.polygon(np.stack([np.concatenate([x, x[::-1]]), y], axis=1), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.polygon(CIRCLE * (rx, ry) + (x, y), colour)

    def stroke(
        self, x: np.ndarray, y: np.ndarray, width: np.ndarray | float, colour: Colour
    ) -> None:
        """A line through x and y, (n,) each, its width one number or one for each point."""
        points = np.stack([x, y], axis=1)
        along = np.empty_like(points)
        along[1:-1] = points[2:] - points[:-2]
        along[0] = points[1] - points[0]
        along[-1] = points[-1] - points[-2]
        half = along[:, ::-1] * (-0.5, 0.5)
        half *= (width / (np.hypot(along[:, 0], along[:, 1]) + 1e-9))[:, None]
        self.polygon(np.concatenate([points + half, (points - half)[::-1]]), colour)

    def mean_colour(self) -> np.ndarray:
        """(3,) float, over all of the picture so far."""
        return np.asarray(self._image.reduce(self.factor * 4), dtype=np.float64).mean(axis=(0, 1))

    def pixels(self) -> np.ndarray:
        """(size, size, 3) uint8, the finished picture."""
        return np.asarray(self._image.reduce(self.factor))
