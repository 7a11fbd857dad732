"""Boxes, arrows and labels for a drawing of a network, laid out in inches."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path

INK = "#222222"
FONT = "DejaVu Sans"  # comes with matplotlib, so that texts are as wide everywhere
TEXT, SMALL = 10.5, 10  # points
RADIUS = 0.15  # inches, of a circle with an operator
Point = tuple[float, float]


class Diagram:
    """A figure of `width` x `height` inches; (0, 0) is its lower left corner.

    Boxes are given by the centre and the size. `z` says what covers what.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)  # neither pyplot's global state nor a display
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def box(
        self, centre: Point, size: Point, text: str, colour: str, *, share: float = 0.25, **style
    ) -> None:
        """A rounded box around its text; `share` is how much of the colour its inside has."""
        self.panel(centre, size, colour, share=share, z=3)
        self.text(centre, text, **style)

    def panel(
        self, centre: Point, size: Point, colour: str, *, share: float = 0.08, z: float = 1
    ) -> None:
        corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
        style = "round,pad=0,rounding_size=0.07"
        face = tint(colour, share)
        patch = FancyBboxPatch(corner, *size, style, fc=face, ec=colour, lw=1.3, zorder=z)
        self.axes.add_patch(patch)

    def text(
        self,
        place: Point,
        text: str,
        *,
        points: float = TEXT,
        colour: str = INK,
        bold: bool = False,
        ha: str = "center",
        va: str = "center",
    ) -> None:
        weight = "bold" if bold else "normal"
        style = {"fontfamily": FONT, "fontsize": points, "fontweight": weight, "linespacing": 1.25}
        self.axes.text(*place, text, color=colour, ha=ha, va=va, zorder=5, **style)

    def arrow(
        self, *points: Point, colour: str = INK, dashed: bool = False, head: bool = True
    ) -> None:
        """A line through the points, with its tip at the last one."""
        self.axes.add_patch(
            FancyArrowPatch(
                path=Path(points),
                arrowstyle="-|>,head_length=0.4,head_width=0.2" if head else "-",
                mutation_scale=12,
                lw=1.3,
                ls=(0, (3, 2)) if dashed else "-",
                color=colour,
                capstyle="butt",
                joinstyle="round",
                zorder=2,
            )
        )

    def operator(self, centre: Point, symbol: str) -> None:
        """A circle with + or x for what is done position by position."""
        self.axes.add_patch(Circle(centre, RADIUS, fc="white", ec=INK, lw=1.3, zorder=3))
        x, y, r = *centre, 0.55 * RADIUS
        lines = {"+": ((r, 0), (0, r)), "x": ((0.7 * r, 0.7 * r), (0.7 * r, -0.7 * r))}
        for dx, dy in lines[symbol]:
            self.axes.plot((x - dx, x + dx), (y - dy, y + dy), color=INK, lw=1.5, zorder=4)

    def cuboid(self, centre: Point, size: Point, depth: float, colour: str) -> None:
        """A block of feature maps: `size` is its front, `depth` how far it goes back."""
        (x, y), (w, h), (dx, dy) = centre, size, (depth, 0.6 * depth)
        left, bottom = x - (w + dx) / 2, y - (h + dy) / 2
        right, top = left + w, bottom + h
        front = ((left, bottom), (right, bottom), (right, top), (left, top))
        lid = ((left, top), (right, top), (right + dx, top + dy), (left + dx, top + dy))
        side = ((right, bottom), (right + dx, bottom + dy), (right + dx, top + dy), (right, top))
        for corners, share in ((front, 0.35), (lid, 0.15), (side, 0.6)):
            face = tint(colour, share)
            self.axes.add_patch(Polygon(corners, fc=face, ec=colour, lw=1, zorder=3))

    def cells(self, centre: Point, size: Point, values: np.ndarray, colour: str) -> None:
        """A grid (rows, columns) of values in [0, 1], from white to the colour."""
        rows, columns = values.shape
        w, h = size[0] / columns, size[1] / rows
        left, top = centre[0] - size[0] / 2, centre[1] + size[1] / 2
        for (row, column), value in np.ndenumerate(values):
            x, y = left + column * w, top - (row + 1) * h
            corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
            face = tint(colour, float(value))
            self.axes.add_patch(Polygon(corners, fc=face, ec=colour, lw=0.6, zorder=3))

    def image(self, centre: Point, size: Point, pixels: np.ndarray) -> None:
        """pixels: (h, w, 3) uint8."""
        (x, y), (w, h) = centre, size
        extent = (x - w / 2, x + w / 2, y - h / 2, y + h / 2)
        limits = self.axes.axis()  # which imshow changes
        self.axes.imshow(pixels, extent=extent, aspect="auto", zorder=3)
        self.axes.axis(limits)


def tint(colour: str, share: float) -> Sequence[float]:
    """The colour mixed with white."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))
