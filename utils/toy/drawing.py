"""Draws cartoon faces: an identity, an expression made of action units, and a view of both."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from utils.toy.action_units import draw_action_units
from utils.toy.canvas import Canvas
from utils.toy.features import draw_brow, draw_eye, draw_mouth, draw_nose
from utils.toy.head import draw_head, head_outline
from utils.toy.identity import Identity, draw_identity


@dataclass(frozen=True, eq=False)
class ToyFace:
    """A drawn face."""

    image: np.ndarray  # (size, size, 3) uint8 RGB
    landmarks: np.ndarray  # (68, 2) float, x and y in pixels
    outlines: list[np.ndarray]  # polygons of all that the expression moves, (n, 2) in pixels

    @property
    def features(self) -> np.ndarray:
        """(size, size) bool: brows, eyes, mouth, and the creases beside them."""
        mask = Image.new("L", self.image.shape[1::-1])
        draw = ImageDraw.Draw(mask)
        for outline in self.outlines:
            draw.polygon(outline.ravel().tolist(), fill=255, outline=255)
        # One pixel more all around, as far as anti-aliasing spreads an edge.
        return np.asarray(mask.filter(ImageFilter.MaxFilter(3))) > 0


@dataclass(frozen=True)
class View:
    """Pose, light and camera, all drawn without regard to the expression."""

    angle: float  # radians
    scale: float
    shift: tuple[float, float]  # in halves of the picture
    gaze: tuple[float, float]  # in eye widths
    exposure: float
    slope: tuple[float, float]  # how much the light changes to the right and to the lower edge
    noise: float  # largest deviation, in levels of 255


def draw_view(rng: np.random.Generator) -> View:
    """rng -> a slightly turned, moved and lit view."""
    return View(
        angle=rng.uniform(-0.08, 0.08),
        scale=rng.uniform(1.1, 1.2),
        shift=tuple(rng.uniform(-0.04, 0.04, 2)),
        gaze=tuple(rng.uniform(-0.1, 0.1, 2) * (1, 0.5)),
        exposure=rng.uniform(0.9, 1.06),
        slope=tuple(rng.uniform(-0.1, 0.1, 2)),
        noise=rng.uniform(1, 6),
    )


def draw_face(
    expression: str, rng: np.random.Generator, size: int, identity: Identity | None = None
) -> ToyFace:
    """Draw somebody with an expression.

    Generators in the same state draw the same face, view and noise whatever the expression.

    Args:
        expression: a class name of RAF-DB or AffectNet.
        rng: source of the identity (unless given), the view, the intensities and the noise.
        size: height and width in pixels.
        identity: who is drawn.

    Raises:
        ValueError: no such expression.
    """
    who = draw_identity(rng) if identity is None else identity
    view = draw_view(rng)
    left, right = draw_action_units(expression, rng)
    canvas = Canvas(size, who.background, angle=view.angle, scale=view.scale, shift=view.shift)
    draw_head(canvas, who)
    bare_mean = canvas.mean_colour()
    canvas.outlines.clear()
    landmarks = np.concatenate(
        [
            head_outline(who)[np.linspace(28, 0, 17).round().astype(int)],
            draw_brow(canvas, who, left, -1),
            draw_brow(canvas, who, right, 1),
            draw_nose(canvas, who, left),
            draw_eye(canvas, who, left, -1, view.gaze),
            draw_eye(canvas, who, right, 1, view.gaze),
            draw_mouth(canvas, who, left, right),
        ]
    )
    # An open mouth would make the whole picture darker and redder. Exposure and white balance
    # bring its mean back to that of the head without features, which no expression has touched.
    gain = view.exposure * bare_mean / canvas.mean_colour()
    image = _photograph(canvas.pixels(), view, gain, rng)
    return ToyFace(image, canvas.to_pixels(landmarks), canvas.outlines)


def _photograph(
    pixels: np.ndarray, view: View, gain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(size, size, 3) uint8 -> the same, under the view's light, a gain a channel, and noise."""
    size = len(pixels)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + np.float32(view.slope[0]) * ramp + np.float32(view.slope[1]) * ramp[:, None]
    grain = np.frombuffer(rng.bytes(size * size), dtype=np.uint8).reshape(size, size)
    noise = (grain - np.float32(127.5)) * np.float32(view.noise / 127.5)
    image = pixels * gain.astype(np.float32)
    image *= light[..., None]
    image += noise[..., None] + np.float32(0.5)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)
