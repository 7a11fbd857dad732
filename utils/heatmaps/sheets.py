"""Draw heat maps: over the face, as a sheet for each face, and as an overview of many faces."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from utils.data.images import save_picture

COLOR_MAP = "inferno"  # perceptually uniform, and readable for the colour-blind
ROWS = 16  # faces on a page of the overview
LEGEND = "bright: most attended, each map by itself; all dark: nothing speaks for the class"
# In pixels:
SIDE, PANEL, THUMBNAIL = 512, 288, 128  # of a map by itself, in a sheet and in the overview
LEFT, TOP, GAP = 260, 45, 10  # column of captions, row of titles, space between panels
# DejaVu comes with matplotlib and knows most alphabets.
FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")
BOLD = ImageFont.truetype(FONTS / "DejaVuSans-Bold.ttf", 17)
PLAIN = ImageFont.truetype(FONTS / "DejaVuSans.ttf", 13)


class ExplainedFace(NamedTuple):
    """A face, the maps of its heads, and what to write beside them."""

    name: str  # of its files
    image: np.ndarray  # (h, w, 3) uint8
    maps: np.ndarray  # (K, h, w) float32 in [0, 1]
    caption: list[str]  # lines; the first one is the heading


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Blend a map (h, w) in [0, 1], in colour, with the picture in grey."""
    heat = Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)
    colors = matplotlib.colormaps[COLOR_MAP](np.asarray(heat), bytes=True)
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(colors[..., :3]), 0.6)


def write_pictures(faces: Iterable[ExplainedFace], titles: Sequence[str], folder: Path) -> int:
    """Write `<name>_head<i>_cam.jpg` for each head and `<name>_sheet.jpg` for each face, and
    `overview.jpg`, `overview_2.jpg`, ... with ROWS faces each.

    Args:
        titles: of the K maps.

    Returns:
        The number of faces.
    """
    faces, total = iter(faces), 0
    while rows := list(islice(faces, ROWS)):
        page = total // ROWS + 1
        overview = "overview.jpg" if page == 1 else f"overview_{page}.jpg"
        pictures = {overview: draw_page(rows, titles, THUMBNAIL)}
        for face in rows:
            pictures[f"{face.name}_sheet.jpg"] = draw_page([face], titles, PANEL)
            picture = ImageOps.contain(Image.fromarray(face.image), (SIDE, SIDE))
            for i, heat in enumerate(face.maps):
                pictures[f"{face.name}_head{i}_cam.jpg"] = overlay(picture, heat)
        for name, picture in pictures.items():
            save_picture(picture, folder / name, quality=92)
        total += len(rows)
    return total


def draw_page(faces: Sequence[ExplainedFace], titles: Sequence[str], side: int) -> Image.Image:
    """Draw a row per face: what is written about it, the face, and its maps.

    Args:
        titles: of the K maps.
        side: of a panel in pixels.
    """
    step = side + GAP
    size = (LEFT + (1 + len(titles)) * step + GAP, TOP + len(faces) * step + 40)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(["image", *titles]):
        middle = LEFT + column * step + side / 2
        pen.text((middle, TOP - 12), title, "black", PLAIN, anchor="ms")
    for row, face in enumerate(faces):
        y = TOP + row * step
        heading, *lines = face.caption
        pen.text((2 * GAP, y), heading, "black", BOLD)
        text = "\n".join(line[:32] for line in lines)  # what fits beside the face
        pen.text((2 * GAP, y + 28), text, "dimgrey", PLAIN, spacing=6)
        picture = ImageOps.contain(Image.fromarray(face.image), (side, side))
        panels = [picture, *(overlay(picture, heat) for heat in face.maps)]
        for column, panel in enumerate(panels):
            panel = ImageOps.pad(panel, (side, side), color="white")
            page.paste(panel, (LEFT + column * step, y))
    pen.text((2 * GAP, page.height - 34), LEGEND, "dimgrey", PLAIN)
    return page
