"""Draw cartoon faces: a person, an expression made of action units, and a view of both.

Brows, eyes, nose and mouth, with the creases beside them, carry the label; nothing else does.
Two generators in the same state draw the same person, view and noise for any two expressions.

Face coordinates are those of the picture before the head is rotated and moved: x to the right,
y down, both from -1 to 1. Left and right are the picture's.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw

RENDERER = 1  # raise it whenever the same parameters draw other pixels: existing sets are redrawn

Colour = tuple[int, int, int]  # RGB, 0-255


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """Move colour a towards b: amount 0 gives a, 1 gives b."""
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))


# ---- identity ------------------------------------------------------------------------------------

SKINS = "#ffdec4 #f8d0b0 #eebe9a #e0aa82 #cc936b #b07a56 #966446 #7e523a".split()
HAIR_COLOURS = "#262022 #422e26 #68422e #94623c #cc9a58 #e8c680 #b04e2c #9c9a9e".split()
IRISES = "#4a2e20 #684426 #426e48 #3e709c #5c6670".split()
SHIRTS = "#ce544e #4674a8 #5c946e #e8b254 #7e6096 #464e5c".split()
BACKGROUNDS = "#b2d6e2 #eadabe #c4debe #e0c6d8 #f4e2a4 #98b8cc #d0cec8 #eeb8a4".split()


class HairStyle(NamedTuple):
    volume: float  # how far hair stands off the skull
    length: float  # y where it ends behind the face; the ears are at about 0
    hairline: float  # y where it ends on the forehead
    part: float  # how far the hairline rises at the parting
    curls: bool = False


HAIR_STYLES = (
    HairStyle(volume=0.04, length=-0.20, hairline=-0.66, part=0.02),  # cropped
    HairStyle(volume=0.10, length=-0.15, hairline=-0.60, part=0.16),  # parted
    HairStyle(volume=0.10, length=-0.10, hairline=-0.52, part=0.04),  # fringe
    HairStyle(volume=0.10, length=1.20, hairline=-0.58, part=0.18),  # long
    HairStyle(volume=0.12, length=0.50, hairline=-0.54, part=0.06),  # bob
    HairStyle(volume=0.13, length=-0.05, hairline=-0.62, part=0.00, curls=True),  # curly
    HairStyle(volume=0.17, length=0.55, hairline=-0.60, part=0.05, curls=True),  # long curls
    None,  # bald
)


class Identity:
    """A person, drawn at random: proportions and colours. Lengths are in face coordinates."""

    def __init__(self, rng: np.random.Generator):
        self.skin = _pick(SKINS, 6, rng)
        self.crease = mix(self.skin, (56, 20, 16), 0.5)
        self.hair = _pick(HAIR_COLOURS, 6, rng)
        self.iris = _pick(IRISES, 8, rng)
        self.shirt = _pick(SHIRTS, 16, rng)
        self.background = _pick(BACKGROUNDS, 16, rng)
        self.style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
        self.part_side = int(rng.choice((-1, 1)))
        self.face_width = rng.uniform(0.67, 0.76)
        self.chin = rng.uniform(0.90, 0.96)
        self.jaw = rng.uniform(0.06, 0.20)  # how much narrower than the cheekbones
        self.eye_x = rng.uniform(0.30, 0.34)
        self.eye_y = rng.uniform(-0.14, -0.09)
        self.eye_width = rng.uniform(0.175, 0.205)
        self.eye_open = rng.uniform(0.62, 0.72)  # height of the upper lid, in eye widths
        self.eye_tilt = rng.uniform(-0.01, 0.03)  # how far the outer corner is above the centre
        self.brow_gap = rng.uniform(0.25, 0.28)  # from the eye to the brow
        self.brow_width = rng.uniform(0.06, 0.09)
        self.brow_arch = rng.uniform(0.02, 0.05)
        self.nose_length = rng.uniform(0.28, 0.33)
        self.nose_width = rng.uniform(0.08, 0.12)
        self.mouth_y = rng.uniform(0.51, 0.55)
        self.mouth_width = rng.uniform(0.25, 0.30)
        self.lip = rng.uniform(0.035, 0.055)  # thickness


def _pick(palette: list[str], spread: int, rng: np.random.Generator) -> Colour:
    """Pick a colour and vary it: its brightness and each channel by up to `spread` levels."""
    change = rng.integers(-spread, spread + 1, 4)
    colour = ImageColor.getrgb(palette[rng.integers(len(palette))]) + change[0] + change[1:]
    return tuple(np.clip(colour, 0, 255).tolist())


# ---- action units --------------------------------------------------------------------------------

# The action units (AUs) of the Facial Action Coding System (Ekman, Friesen and Hager, 2002) that
# are drawn: 1 and 2 raise the inner and the outer brow, 4 lowers it; 5 raises the upper lid, 6 the
# cheek, 7 tightens the lids; 9 wrinkles the nose; 12 pulls the corners of the lips, 14 dimples
# them, 15 depresses them; 16 depresses the lower lip, 20 stretches and 23 tightens the lips; 26
# drops the jaw.
AU_NUMBERS = (1, 2, 4, 5, 6, 7, 9, 12, 14, 15, 16, 20, 23, 26)
ActionUnits = dict[int, float]  # how strongly each AU shows on one half of the face, from 0 to 1
RELAXED: ActionUnits = dict.fromkeys(AU_NUMBERS, 0.0)

# The prototypes of the basic emotions in the FACS Investigator's Guide. RAF-DB and AffectNet
# call two of them by different names.
EXPRESSION_UNITS = {
    "neutral": (),
    "happiness": (6, 12),
    "happy": (6, 12),
    "sadness": (1, 4, 15),
    "sad": (1, 4, 15),
    "surprise": (1, 2, 5, 26),
    "fear": (1, 2, 4, 5, 20, 26),
    "anger": (4, 5, 7, 23),
    "disgust": (9, 15, 16),
    "contempt": (12, 14),  # on one side of the face
}

MIN_STRENGTH = 0.75  # still visible at the 100 pixels of RAF-DB's faces


def draw_action_units(expression: str, rng: np.random.Generator) -> tuple[ActionUnits, ActionUnits]:
    """Draw the strengths of an expression's action units on the left and the right half of the
    face, which differ for contempt only.

    Every expression draws equally many numbers, so that what is drawn next does not depend on it.
    """
    strengths = rng.uniform(MIN_STRENGTH, 1, len(AU_NUMBERS)).tolist()
    left_side = rng.integers(2)
    drawn = dict(zip(AU_NUMBERS, strengths, strict=True))
    units = RELAXED | {number: drawn[number] for number in EXPRESSION_UNITS[expression]}
    if expression != "contempt":
        return units, units
    return (units, RELAXED) if left_side else (RELAXED, units)


# ---- canvas --------------------------------------------------------------------------------------


class View:
    """Pose, light and camera, drawn at random."""

    def __init__(self, rng: np.random.Generator):
        self.angle = rng.uniform(-0.08, 0.08)  # of the head, in radians
        self.scale = rng.uniform(1.1, 1.2)
        self.shift = rng.uniform(-0.04, 0.04, 2)  # in halves of the picture
        self.gaze = rng.uniform(-0.1, 0.1, 2) * (1, 0.5)  # in eye widths
        self.exposure = rng.uniform(0.9, 1.06)
        self.slope = rng.uniform(-0.1, 0.1, 2)  # of the light towards the right and lower edges
        self.noise = rng.uniform(1, 6)  # largest deviation, in levels of 255


# The positions at which curves are evaluated.
_T = np.linspace(-1, 1, 17)  # from the left to the right end of an eye, a mouth or the hairline
_BULGE = 1 - _T**2
_U = np.linspace(0, 1, 9)  # from the start to the end of a brow, a crease or a strand of hair
_THIN_ENDS = np.sin(np.pi * _U)
_TURN = np.linspace(0, 2 * np.pi, 56, endpoint=False)  # around the head
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
_CIRCLE = np.stack([_COS, _SIN], axis=1)[::2]  # (28, 2), of radius 1


class Canvas:
    """An anti-aliased picture of `size` x `size` pixels, drawn in face coordinates."""

    def __init__(self, size: int, background: Colour, view: View):
        self.factor = max(2, round(300 / size))  # supersampling per axis
        self._image = Image.new("RGB", (size * self.factor,) * 2, background)
        self._draw = ImageDraw.Draw(self._image)
        cos = np.cos(view.angle) * view.scale * size / 2
        sin = np.sin(view.angle) * view.scale * size / 2
        self._rotation = np.array([[cos, sin], [-sin, cos]])  # for points as rows
        self._shift = (view.shift + 1) * size / 2

    def polygon(self, points: np.ndarray, colour: Colour) -> None:
        """points: (n, 2)"""
        pixels = points @ self._rotation + self._shift
        self._draw.polygon((pixels * self.factor).ravel().tolist(), fill=colour)

    def between(self, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: Colour) -> None:
        """Fill the area, if any, between two curves over the same x, all (n,)."""
        if np.array_equal(top, bottom):
            return
        y = np.concatenate([top, bottom[::-1]])
        self.polygon(np.stack([np.concatenate([x, x[::-1]]), y], axis=1), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.polygon(_CIRCLE * (rx, ry) + (x, y), colour)

    def stroke(self, x: np.ndarray, y: np.ndarray, width: ArrayLike, colour: Colour) -> None:
        """Draw a line, if any, through x and y, (n,) each, of one width or a width per point."""
        if not np.any(width):
            return
        points = np.stack([x, y], axis=1)
        along = np.empty_like(points)
        along[1:-1] = points[2:] - points[:-2]
        along[0] = points[1] - points[0]
        along[-1] = points[-1] - points[-2]
        half = along[:, ::-1] * (-0.5, 0.5)
        half *= (width / (np.hypot(along[:, 0], along[:, 1]) + 1e-9))[:, None]
        self.polygon(np.concatenate([points + half, (points - half)[::-1]]), colour)

    def mean_colour(self) -> np.ndarray:
        """(3,) float, over the whole picture as drawn so far."""
        return np.asarray(self._image.reduce(self.factor * 4), dtype=np.float64).mean(axis=(0, 1))

    def pixels(self) -> np.ndarray:
        """(size, size, 3) uint8, the finished picture."""
        return np.asarray(self._image.reduce(self.factor))


# ---- head: what does not move with the expression ------------------------------------------------


def draw_head(canvas: Canvas, who: Identity) -> None:
    """Draw everything behind the features, from the back to the front."""
    shade = mix(who.skin, (110, 40, 30), 0.22)
    if who.style:
        _draw_hair_behind(canvas, who)
    canvas.polygon(np.array([(-0.28, 0.5), (0.28, 0.5), (0.34, 1.3), (-0.34, 1.3)]), shade)  # neck
    canvas.ellipse(0, 1.5, 1.0, 0.53, who.shirt)
    for side in (-1, 1):  # ears
        canvas.ellipse(side * who.face_width, 0.06, 0.10, 0.16, who.skin)
        canvas.ellipse(side * (who.face_width + 0.01), 0.06, 0.05, 0.09, shade)
    canvas.polygon(_head_outline(who), who.skin)
    blush = mix(who.skin, (236, 84, 76), 0.16)
    for side in (-1, 1):
        canvas.ellipse(side * (who.eye_x + 0.13), 0.26, 0.14, 0.10, blush)
    if who.style:
        _draw_hair_above(canvas, who)


def _head_outline(who: Identity, grow: float = 0.0) -> np.ndarray:
    """(56, 2): an oval that tapers to the jaw, clockwise from the right ear."""
    y = np.where(_SIN > 0, _SIN * (who.chin + grow), _SIN * (0.88 + grow))
    taper = 1 - who.jaw * np.clip(_SIN, 0, 1) ** 1.5
    x = (who.face_width + grow) * np.sign(_COS) * np.abs(_COS) ** 0.82 * taper
    return np.stack([x, y], axis=1)


def _draw_hair_behind(canvas: Canvas, who: Identity) -> None:
    style, dark = who.style, mix(who.hair, (0, 0, 0), 0.25)
    outline = _head_outline(who, style.volume)
    if style.length > 0:  # falls straight down from the ears, with rounded ends
        low = outline[:, 1] > 0
        half = (who.face_width + style.volume) * (1 + 0.06 * _SIN[low])
        outline[low, 0] = half * np.sign(_COS[low]) * np.abs(_COS[low]) ** 0.25
        outline[low, 1] = style.length * _SIN[low] ** 0.5
    else:
        outline[:, 1] = np.minimum(outline[:, 1], style.length)
    canvas.polygon(outline, dark)
    if style.curls:
        for x, y in outline[::2]:
            canvas.ellipse(x, y, 0.13, 0.13, dark)


def _draw_hair_above(canvas: Canvas, who: Identity) -> None:
    """Draw the cap of hair between the skull's outline and the hairline."""
    style = who.style
    skull = _head_outline(who, 0.9 * style.volume)
    skull = skull[skull[:, 1] < -0.2]  # from the left ear over the top to the right one
    x = 0.98 * who.face_width * _T
    y = style.hairline - style.part * np.exp(-(((_T - 0.5 * who.part_side) / 0.5) ** 2))
    y += (-0.22 - y) * np.abs(_T) ** 5  # runs down in front of the ears
    edge = np.stack([x, y], axis=1)
    canvas.polygon(np.concatenate([skull, edge[::-1]]), who.hair)
    if style.curls:
        for x, y in skull[::2]:
            canvas.ellipse(x, y, 0.12, 0.12, who.hair)
        for x, y in edge[2:-2:2]:
            canvas.ellipse(x, y - 0.04, 0.09, 0.08, who.hair)
    else:
        x = -0.3 * who.part_side + 0.4 * (_U - 0.5)
        shine = mix(who.hair, (255, 255, 255), 0.25)
        canvas.stroke(x, -0.82 + 0.5 * x**2, 0.035 * _THIN_ENDS, shine)


# ---- features: what moves with the expression ----------------------------------------------------

INK = (40, 26, 28)
WHITE = (250, 248, 244)
PUPIL = (20, 14, 16)
MOUTH = (92, 26, 34)  # the inside of an open one
TONGUE = (206, 96, 100)
LIPS = (196, 60, 74)


def draw_brow(canvas: Canvas, who: Identity, au: ActionUnits, side: int) -> None:
    """AU 1 lifts its inner end, AU 2 its outer one, AU 4 lowers it and pulls it inwards."""
    inner, outer = 1 - _U, _U
    y = who.eye_y - who.brow_gap - who.brow_arch * np.sin(np.pi * _U**0.8)
    y = y - 0.17 * au[1] * inner**1.3 - 0.14 * au[2] * outer**0.8
    # Together with AU 1, in sadness and fear, AU 4 does not pull the inner end down: it slants
    # the brow.
    down = au[4] * (1 - 0.9 * au[1]) + 0.6 * au[9]
    y = y + down * (0.04 + 0.15 * inner) + 0.10 * au[4] * au[1] * outer
    length = 2 * who.eye_width
    x = side * (who.eye_x + length * (_U - 0.52) - 0.06 * au[4] * inner)
    width = who.brow_width * (1.05 - 0.7 * _U**2) * np.minimum(1, 0.55 + 4 * _U)
    canvas.stroke(x, y, width, mix(who.hair, (20, 13, 12), 0.65))


def draw_eye(canvas: Canvas, who: Identity, au: ActionUnits, side: int, gaze: np.ndarray) -> None:
    """AU 5 lifts the upper lid, AU 7 narrows both, AU 6 pushes the lower one up to an arch."""
    width = who.eye_width
    height = width * who.eye_open
    x, y = side * who.eye_x, who.eye_y
    sorrow = au[1] * au[4] * (1 - au[5])
    squint = 0.3 * au[7] + 0.45 * au[9] + 0.35 * sorrow
    rise = height * (1 + 0.5 * au[5] - squint - 0.1 * au[6])
    push = 1.25 * au[6] + 0.5 * au[7] + 0.55 * au[9]
    drop = height * (0.8 + 0.15 * au[5] - push)

    def lids(t):
        """The y of the upper and of the lower lid, at t from -1 to 1 along the eye."""
        tilt = side * t * who.eye_tilt
        return y - rise * (1 - t**2) ** 0.75 - tilt, y + drop * (1 - t**2) ** 0.85 - tilt

    def disc(radius, dx, dy, colour):
        """Draw the part of a disc that shows between the lids."""
        points = _CIRCLE * radius + (x + dx, y + dy)
        t = np.clip((points[:, 0] - x) / width, -1, 1)
        points[:, 1] = np.clip(points[:, 1], *lids(t))
        canvas.polygon(points, colour)

    along = x + width * _T
    upper, lower = lids(_T)
    canvas.between(along, upper, lower, WHITE)
    dx, dy = gaze[0] * width, gaze[1] * width - 0.05 * height
    disc(0.62 * width, dx, dy, who.iris)
    disc(0.34 * width, dx, dy, PUPIL)
    disc(0.15 * width, dx + 0.17 * width, dy - 0.2 * width, WHITE)  # highlight
    canvas.stroke(along, upper, 0.042 * (0.45 + 0.55 * _BULGE), INK)
    canvas.stroke(along, lower, 0.018, who.crease)
    pouch = lower + 0.06 + 0.05 * au[6] * _BULGE
    canvas.stroke(along, pouch, 0.028 * au[6] * _BULGE, who.crease)


def draw_nose(canvas: Canvas, who: Identity, au: ActionUnits) -> None:
    """AU 9 wrinkles its bridge and lifts its wings, AU 4 folds the skin above it."""
    tip = who.eye_y + who.nose_length + 0.06
    base_y = tip + 0.045 * _BULGE - au[9] * (0.02 + 0.05 * _T**2)
    canvas.stroke(who.nose_width * _T, base_y, 0.03 * (0.3 + 0.7 * _BULGE), who.crease)
    for side in (-1, 1):
        wing = who.nose_width + 0.02 * _THIN_ENDS
        y = tip - 0.06 * (1 - _U) - 0.07 * au[9]
        canvas.stroke(side * wing, y, 0.02, who.crease)
        x = side * (0.05 - 0.012 * _U)
        y = who.eye_y - 0.26 + 0.15 * _U - 0.06 * au[1]
        canvas.stroke(x, y, 0.03 * au[4] * _THIN_ENDS, who.crease)
    for i in range(3):
        y = who.eye_y - 0.03 + 0.07 * i - 0.03 * _BULGE
        width = 0.03 * au[9] * _BULGE
        canvas.stroke((0.10 - 0.015 * i) * _T, y, width, who.crease)


def draw_mouth(canvas: Canvas, who: Identity, left: ActionUnits, right: ActionUnits) -> None:
    """AU 12 and 15 raise and lower its corners, 14 dimples them, 20 stretches and 23 tightens the
    lips, 16 bares the lower teeth, 26 opens it, 9 lifts the upper lip."""
    (left_x, left_y), (right_x, right_y) = (_mouth_corner(who, au) for au in (left, right))
    x = np.where(_T < 0, left_x, right_x) * _T
    middle = who.mouth_y + np.where(_T < 0, left_y, right_y) * np.abs(_T) ** 1.6

    # Only actions of both halves part the lips: half a smile does not show the teeth.
    au = left if left == right else RELAXED
    middle += 0.03 * au[12] - 0.05 * au[15] * _BULGE
    shape = _BULGE + (np.sqrt(_BULGE) - _BULGE) * au[26]  # rounder the wider it opens
    up = 0.12 * au[26] * (1 - 0.4 * au[20]) + 0.07 * au[9]
    down = 0.26 * au[26] * (1 - 0.55 * au[20]) + 0.17 * au[12] ** 2 + 0.09 * au[16]
    top, bottom = middle - up * shape, middle + down * shape

    lip = who.lip * (1 - 0.75 * au[23])
    cupids_bow = _BULGE**0.6 * (1 - 0.25 * np.exp(-((_T / 0.2) ** 2)))
    lips = mix(who.skin, LIPS, 0.55)
    canvas.between(x, top - lip * cupids_bow, bottom + 1.25 * lip * _BULGE**0.7, lips)
    if up or down:
        tongue = 0.11 * au[26] * (1 - au[20])
        upper_teeth = 0.09 * au[12] + 0.06 * au[26]
        lower_teeth = 0.09 * au[16] + 0.06 * au[20]
        canvas.between(x, top, bottom, MOUTH)
        canvas.between(x, np.maximum(bottom - tongue * shape, top), bottom, TONGUE)
        canvas.between(x, top, np.minimum(top + upper_teeth * shape, bottom), WHITE)
        canvas.between(x, np.maximum(bottom - lower_teeth * shape, top), bottom, WHITE)
    else:
        canvas.stroke(x, middle, 0.032 * (0.5 + 0.5 * _BULGE), mix(lips, INK, 0.7))


def _mouth_corner(who: Identity, au: ActionUnits) -> tuple[float, float]:
    """The distance of a corner from the middle of the mouth: sideways, and down."""
    widen = 0.28 * au[12] + 0.38 * au[20] + 0.05 * au[14]
    narrow = 0.32 * au[23] + 0.42 * au[26] * (1 - au[20])
    up = 0.16 * au[12] + 0.06 * au[14]
    down = 0.16 * au[15] + 0.05 * au[20]
    return who.mouth_width * (1 + widen - narrow), down - up


def draw_folds(canvas: Canvas, who: Identity, au: ActionUnits, side: int) -> None:
    """AU 14 dimples the skin beside a mouth corner, AU 9 and 12 fold it from there to the nose."""
    x, y = _mouth_corner(who, au)
    x, y = side * x, who.mouth_y + y
    pit = x + side * (0.05 + 0.04 * _THIN_ENDS)
    canvas.stroke(pit, y - 0.11 + 0.20 * _U, 0.04 * au[14] * _THIN_ENDS, who.crease)
    start_x, start_y = side * (who.nose_width + 0.07), who.eye_y + who.nose_length - 0.02
    fold_x = start_x + (x + side * 0.06 - start_x) * _U + side * 0.04 * _THIN_ENDS
    fold_y = start_y + (y - 0.03 - start_y) * _U
    width = 0.028 * max(au[9], au[12]) * np.sqrt(_THIN_ENDS)
    canvas.stroke(fold_x, fold_y, width, who.crease)


# ---- the whole face ------------------------------------------------------------------------------


def draw_face(
    expression: str, rng: np.random.Generator, size: int, who: Identity | None = None
) -> np.ndarray:
    """Draw a person with an expression: (size, size, 3) uint8 RGB.

    Args:
        expression: a class name of RAF-DB or AffectNet.
        rng: source of the person (unless given), the view, the strengths and the noise.
        size: height and width in pixels.
        who: the person.
    """
    who = who or Identity(rng)
    view = View(rng)
    left, right = draw_action_units(expression, rng)
    canvas = Canvas(size, who.background, view)
    draw_head(canvas, who)
    bare_mean = canvas.mean_colour()
    draw_brow(canvas, who, left, -1)
    draw_brow(canvas, who, right, 1)
    draw_nose(canvas, who, left)
    draw_eye(canvas, who, left, -1, view.gaze)
    draw_eye(canvas, who, right, 1, view.gaze)
    draw_mouth(canvas, who, left, right)
    draw_folds(canvas, who, left, -1)
    draw_folds(canvas, who, right, 1)
    # An open mouth would make the whole picture darker and redder, and so tell the label by its
    # mean colour. The gain restores the mean of the head without features.
    gain = view.exposure * bare_mean / canvas.mean_colour()
    return _photograph(canvas.pixels(), view, gain, rng)


def _photograph(
    pixels: np.ndarray, view: View, gain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Apply the view's light, a gain per channel (3,), and noise: (size, size, 3) uint8."""
    size = len(pixels)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + np.float32(view.slope[0]) * ramp + np.float32(view.slope[1]) * ramp[:, None]
    grain = np.frombuffer(rng.bytes(size * size), dtype=np.uint8).reshape(size, size)
    noise = (grain - np.float32(127.5)) * np.float32(view.noise / 127.5)
    # (3, size, size) while computing: NumPy is slow where the innermost axis is short.
    gain = gain.astype(np.float32)[:, None, None]
    image = np.multiply(pixels.transpose(2, 0, 1), gain, order="C")
    image *= light
    image += noise + np.float32(0.5)
    return np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0)
