"""What a reader can tell: contrasts, colours under colour-blindness, texts in each other's way."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as seen without one kind of cone.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
XYZ = np.array(
    ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
)  # from linear sRGB


def contrast(one, other) -> float:
    """WCAG's contrast ratio of two colours as matplotlib takes them, 1 to 21."""
    darker, lighter = sorted(XYZ[1] @ _linear(color) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def smallest_difference(colours) -> float:
    """Of any two colours to any reader: the distance in CIELAB, where 2.3 is just noticeable."""
    return min(
        np.linalg.norm(_lab(seen @ _linear(one)) - _lab(seen @ _linear(other)))
        for seen in map(np.array, COLOUR_BLINDNESS.values())
        for one, other in combinations(colours, 2)
    )


def extents(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Each text and where it is, in pixels, as it is rendered."""
    figure.canvas.draw()
    hidden = {label for axes in figure.axes for label in _hidden_labels(axes)}
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    shown = [text for text in found if text.get_text() and text not in hidden]
    return [(text, text.get_window_extent()) for text in shown]


def check_texts(figure: Figure) -> None:
    """No text leaves the figure, and none comes within 2 pixels of another one."""
    found = extents(figure)
    assert len(found) > 5
    for text, extent in found:
        assert figure.bbox.containsx(extent.x0) and figure.bbox.containsx(extent.x1), text
        assert figure.bbox.containsy(extent.y0) and figure.bbox.containsy(extent.y1), text
    # Around a turned text is a box that is mostly empty.
    upright = [(text, extent) for text, extent in found if text.get_rotation() % 90 == 0]
    for (one, here), (other, there) in combinations(upright, 2):
        assert not here.padded(1).overlaps(there.padded(1)), (one, other)


def _hidden_labels(axes: Axes) -> Iterator[Text]:
    """Of ticks beyond the axes' ends, which matplotlib keeps."""
    if not axes.axison:
        return
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def _linear(colour) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = XYZ @ linear.clip(0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array((116 * y - 16, 500 * (x - y), 200 * (y - z)))
