"""Draw heat maps: over the face, as a sheet for each face, and as an overview of many faces."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from utils.data.images import save_picture
from utils.errors import one_line

COLOR_MAP = "inferno"  # perceptually uniform, and readable for the colour-blind
ROWS = 16  # faces on a page of the overview
# In pixels:
MIN_SIDE, MAX_SIDE = 448, 1024  # shorter and longer side of a map's own picture
PANEL, THUMBNAIL = 288, 128  # side of a panel in a sheet and in the overview
MARGIN, CAPTION, GAP = 20, 240, 10  # border of a page, column of captions, between panels
BLACK, GREY = "#1a1a1a", "#6b6b6b"


@dataclass(frozen=True)
class ExplainedFace:
    """A face, what the network predicts, and the maps of its heads."""

    name: str
    picture: Image.Image
    maps: np.ndarray  # (K, h, w) float32 in [0, 1]
    prediction: str
    probability: float  # of the prediction
    label: str | None
    method: str  # and the class that the maps explain


def enlarge(image: np.ndarray) -> Image.Image:
    """Scale an image (h, w, 3) uint8 to a size that is good to look at."""
    height, width = image.shape[:2]
    scale = min(max(1, MIN_SIDE / min(width, height)), MAX_SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def resize_map(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate a map (h, w) in [0, 1] to `size`, which is (width, height) as in Pillow."""
    resized = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 1)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Blend a map (h, w) in [0, 1], in colour, with the picture in grey."""
    levels = (255 * resize_map(heat, picture.size)).astype(np.uint8)
    colors = matplotlib.colormaps[COLOR_MAP](levels, bytes=True)
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(colors[..., :3]), 0.6)


def write_pictures(faces: Iterable[ExplainedFace], folder: Path) -> int:
    """Write the pictures of faces, a page at a time, and return how many faces there were.

    These are `<name>_head<i>_cam.jpg` for each head and `<name>_sheet.jpg` for each face, and
    `overview.jpg`, `overview_2.jpg`, ... with ROWS faces each.
    """
    faces, total = iter(faces), 0
    while rows := list(islice(faces, ROWS)):
        for face in rows:
            for i, heat in enumerate(face.maps):
                _save(overlay(face.picture, heat), folder / f"{face.name}_head{i}_cam.jpg")
            _save(draw_page([face], PANEL), folder / f"{face.name}_sheet.jpg")
        page = total // ROWS + 1
        name = "overview.jpg" if page == 1 else f"overview_{page}.jpg"
        _save(draw_page(rows, THUMBNAIL), folder / name)
        total += len(rows)
    return total


def draw_page(faces: Sequence[ExplainedFace], side: int) -> Image.Image:
    """Draw a row per face: what the network predicts, the face, and every head's map.

    Args:
        side: of a panel in pixels.
    """
    titles = ["image", *(f"head {i}" for i in range(len(faces[0].maps)))]
    step, left, top = side + GAP, MARGIN + CAPTION, 45
    width = max(left + len(titles) * step - GAP + MARGIN, 600)  # room for the scale
    page = Image.new("RGB", (width, top + len(faces) * step + 50), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        x = left + column * step + side / 2
        pen.text((x, top - 12), title, BLACK, _font(15), anchor="ms")
    for row, face in enumerate(faces):
        y = top + row * step
        _draw_caption(pen, face, y - 9)
        for column, panel in enumerate(_draw_panels(face, side)):
            page.paste(panel, (left + column * step, y))
    y = page.height - 30
    ramp = matplotlib.colormaps[COLOR_MAP](np.tile(np.arange(256), (14, 1)), bytes=True)
    page.paste(Image.fromarray(ramp[..., :3]), (MARGIN + 46, y - 7))
    pen.text((MARGIN, y), "least", GREY, _font(14), anchor="lm")
    pen.text((MARGIN + 310, y), "most attended, each map by itself", GREY, _font(14), anchor="lm")
    return page


def _draw_caption(pen: ImageDraw.ImageDraw, face: ExplainedFace, y: int) -> None:
    """Write what the network predicts, whether it is right, what the maps explain, and the name."""
    prediction = f"{face.prediction} {100 * face.probability:.1f} %"
    lines = [(prediction, BLACK, _font(17, bold=True))]
    if face.label is not None:
        verdict = "correct" if face.label == face.prediction else "wrong"
        lines.append((f"{verdict}, the label is {face.label}", BLACK, _font(14)))
    name = one_line(face.name)
    if len(name) > 32:
        name = f"{name[:15]}…{name[-16:]}"
    lines += [(text, GREY, _font(12)) for text in (face.method, name)]
    for text, color, font in lines:
        y += font.size + 8
        pen.text((MARGIN, y), text, color, font, anchor="ls")


def _draw_panels(face: ExplainedFace, side: int) -> Iterator[Image.Image]:
    """Draw the face and its 1 + K maps, each fitted into a white square."""
    picture = ImageOps.contain(face.picture, (side, side))
    yield ImageOps.pad(picture, (side, side), color="white")
    for heat in face.maps:
        panel = overlay(picture, heat)
        if not heat.any():  # cut at 0, since nothing in the head speaks for the class
            place = (panel.width / 2, panel.height - 6)
            ImageDraw.Draw(panel).text(place, "no evidence", "white", _font(15), anchor="md")
        yield ImageOps.pad(panel, (side, side), color="white")


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _save(picture: Image.Image, path: Path) -> None:
    save_picture(picture, path, quality=92)
