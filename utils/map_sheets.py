"""Draws heat maps: over the picture, as a sheet for each picture, and as an overview of many."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.outputs import write_picture

# Even in lightness and readable without seeing red or green; its dark end is no evidence.
COLOUR_MAP = "inferno"
SMALLEST, LARGEST = 448, 1024  # pixels: the shorter and the longer side of a picture with its map
PANEL = 288  # pixels: the longer side of a picture in a sheet, and
THUMBNAIL = 128  # in the overview
ROWS = 16  # pictures on a page of the overview
COLUMNS = 5  # panels side by side in a sheet
GAP, MARGIN = 10, 20
TEXT, FAINT, PAPER = "#1a1a1a", "#6b6b6b", "white"
QUALITY = 92


@dataclass(frozen=True)
class Explained:
    """A picture, what a model thinks it shows, and where the heads look."""

    name: str
    image: np.ndarray  # (h, w, 3) uint8 RGB
    maps: np.ndarray  # (K, h', w') float in [0, 1]
    prediction: str
    probability: float  # of the prediction
    label: str | None
    explains: str  # the method, and the class where it is about one

    @property
    def prediction_text(self) -> str:
        return f"{self.prediction} {100 * self.probability:.1f} %"

    @property
    def label_text(self) -> str:
        if self.label is None:
            return ""
        verdict = "correct" if self.label == self.prediction else "wrong"
        return f"{verdict}, the label is {self.label}"


def resize_map(heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """(h, w) float in [0, 1] -> a grey picture of (width, height), smooth between positions."""
    grey = Image.fromarray((255 * heat).round().astype(np.uint8))
    return grey.resize(size, Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A map (h, w) in [0, 1] in colours over the picture, whose own colours give way to it."""
    heat = resize_map(heat, picture.size)
    colours = Image.merge("RGB", [heat.point(channel) for channel in _colour_table()])
    return Image.blend(picture.convert("L").convert("RGB"), colours, 0.6)


def _note_if_flat(panel: Image.Image, heat: np.ndarray) -> Image.Image:
    """Say on a panel why it has no colours: where a head's maps are cut at 0, as Grad-CAM's, it has
    none if nothing in it speaks for the class."""
    if not heat.any():
        pen, middle = ImageDraw.Draw(panel), (panel.width // 2, panel.height - 6)
        _write(pen, middle, "no evidence", 15, PAPER, panel.width, "md", bold=True)
    return panel


def write_pictures(explained: Explained, folder: Path) -> list[Path]:
    """Write `<name>_head<i>_cam.jpg` for each head and `<name>_sheet.jpg`; return their paths."""
    picture = Image.fromarray(explained.image)
    large = picture.resize(_display_size(picture.size), Image.Resampling.BICUBIC)
    paths = []
    for i, heat in enumerate(explained.maps):
        paths.append(folder / f"{explained.name}_head{i}_cam.jpg")
        write_picture(overlay(large, heat), paths[-1], quality=QUALITY)
    paths.append(folder / f"{explained.name}_sheet.jpg")
    write_picture(draw_sheet(explained), paths[-1], quality=QUALITY)
    return paths


def draw_sheet(explained: Explained) -> Image.Image:
    """The picture and every head's map side by side, under what the model says of it."""
    panels = _panels(explained, PANEL)
    width, height = panels[0].size
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    head, foot, caption = 62, 52, 26
    sheet_width = max(2 * MARGIN + columns * (width + GAP) - GAP, 560)
    sheet = Image.new(
        "RGB", (sheet_width, head + rows * (height + caption + GAP) + foot + MARGIN // 2), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    inner = sheet_width - 2 * MARGIN
    _write(pen, (MARGIN, 12), explained.prediction_text, 22, TEXT, inner // 2, bold=True)
    _write(pen, (MARGIN, 40), explained.label_text, 15, TEXT, inner // 2)
    _write(pen, (sheet_width - MARGIN, 16), explained.name, 15, FAINT, inner // 2 - GAP, "ra")
    _write(pen, (sheet_width - MARGIN, 40), explained.explains, 15, FAINT, inner // 2 - GAP, "ra")
    for i, (panel, title) in enumerate(zip(panels, _titles(explained.maps), strict=True)):
        x = MARGIN + i % columns * (width + GAP)
        y = head + i // columns * (height + caption + GAP)
        _write(pen, (x, y + 4), title, 15, TEXT, width)
        sheet.paste(panel, (x, y + caption))
    _draw_scale(sheet, (MARGIN, sheet.height - foot))
    return sheet


def earlier_pictures(folder: Path, written: Collection[Path]) -> list[Path]:
    """Pictures of a folder that another run has left, by what they are called."""
    patterns = ("*_head*_cam.jpg", "*_sheet.jpg", "overview*.jpg")
    return [path for pattern in patterns for path in folder.glob(pattern) if path not in written]


class Overview:
    """All pictures as rows: what the model says, the picture, every head's map.

    Pages of ROWS are written as they fill up, `overview.jpg`, `overview_2.jpg`, ..., so that the
    memory it takes does not grow with the number of pictures.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0
        self.pages: list[Path] = []
        self._rows: list[tuple[Explained, list[Image.Image]]] = []

    def add(self, explained: Explained) -> None:
        self._rows.append((explained, _panels(explained, THUMBNAIL)))
        self.count += 1
        if len(self._rows) == ROWS:
            self._write_page()

    def finish(self) -> list[Path]:
        """Write what is left; the paths of all pages."""
        if self._rows:
            self._write_page()
        return self.pages

    def _write_page(self) -> None:
        number = len(self.pages) + 1
        path = self.folder / ("overview.jpg" if number == 1 else f"overview_{number}.jpg")
        write_picture(_draw_page(self._rows), path, quality=QUALITY)
        self.pages.append(path)
        self._rows = []


def _draw_page(rows: Sequence[tuple[Explained, list[Image.Image]]]) -> Image.Image:
    text, caption, foot = 250, 30, 50
    step = THUMBNAIL + GAP
    heights = [max(thumbnails[0].height, 90) + GAP for _, thumbnails in rows]
    width = max(2 * MARGIN + text + len(rows[0][1]) * step - GAP, 600)  # room for the scale's text
    page = Image.new("RGB", (width, MARGIN + caption + sum(heights) + foot), PAPER)
    pen = ImageDraw.Draw(page)
    for i, title in enumerate(_titles(rows[0][0].maps)):
        x = MARGIN + text + i * step + THUMBNAIL // 2
        _write(pen, (x, MARGIN), title, 15, TEXT, THUMBNAIL, "ma")
    y = MARGIN + caption
    for (explained, thumbnails), height in zip(rows, heights, strict=True):
        lines = (
            (explained.prediction_text, 17, TEXT, True),
            (explained.label_text, 14, TEXT, False),
            (explained.explains, 12, FAINT, False),
            (explained.name, 12, FAINT, False),
        )
        below = y
        for content, size, colour, bold in filter(lambda line: line[0], lines):
            _write(pen, (MARGIN, below), content, size, colour, text - 2 * GAP, bold=bold)
            below += size + 8
        for i, thumbnail in enumerate(thumbnails):
            page.paste(thumbnail, (MARGIN + text + i * step, y))
        y += height
    _draw_scale(page, (MARGIN, y))
    return page


def _panels(explained: Explained, longer: int) -> list[Image.Image]:
    """The picture and its K overlays, of a given longer side."""
    picture = Image.fromarray(explained.image)
    scale = longer / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    overlays = (_note_if_flat(overlay(picture, heat), heat) for heat in explained.maps)
    return [picture, *overlays]


def _titles(maps: np.ndarray) -> list[str]:
    return ["image", *(f"head {i}" for i in range(len(maps)))]


def _display_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(max(1, SMALLEST / min(size)), LARGEST / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _draw_scale(sheet: Image.Image, corner: tuple[int, int]) -> None:
    """What the colours mean."""
    x, y = corner
    pen = ImageDraw.Draw(sheet)
    _write(pen, (x, y + 8), "least", 14, FAINT, 60)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (14, 1))
    colours = [Image.fromarray(ramp).point(channel) for channel in _colour_table()]
    sheet.paste(Image.merge("RGB", colours), (x + 46, y + 10))
    note = "most attended, each map by itself"
    _write(pen, (x + 46 + 256 + 8, y + 8), note, 14, FAINT, sheet.width - x - 330)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    room: int,
    anchor: str = "la",
    *,
    bold: bool = False,
) -> None:
    """Text in at most `room` pixels; a longer one loses its middle."""
    text = "".join(c if c.isprintable() else "?" for c in text)  # names of files hold anything
    font = _font(size, bold)
    shown, kept = text, len(text)
    while kept > 4 and font.getlength(shown) > room:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    pen.text(place, shown, fill=colour, font=font, anchor=anchor)


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


@cache
def _colour_table() -> list[list[int]]:
    """Red, green and blue of the colour map's 256 steps."""
    colours = matplotlib.colormaps[COLOUR_MAP](np.arange(256), bytes=True)
    return [colours[:, channel].tolist() for channel in range(3)]
