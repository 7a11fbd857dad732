"""Draw cartoon faces: a person, an expression made of action units, and a view of both.

Brows, eyes, nose and mouth, with the creases beside them, carry the label; nothing else does.
Two generators in the same state draw the same person, view and noise for any two expressions.

Points are complex numbers, x + 1j * y, in the face's coordinates: x to the right, y down, both from
-1 to 1, before the head is rotated and moved. Left and right are the picture's.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageStat

RENDERER = 2  # raise it whenever the same parameters draw other pixels: existing sets are redrawn

# ---- identity ------------------------------------------------------------------------------------

SKINS = "#ffdec4 #f8d0b0 #eebe9a #e0aa82 #cc936b #b07a56 #966446 #7e523a".split()
HAIR_COLOURS = "#262022 #422e26 #68422e #94623c #cc9a58 #e8c680 #b04e2c #9c9a9e".split()
IRISES = "#4a2e20 #684426 #426e48 #3e709c #5c6670".split()
BACKGROUNDS = "#b2d6e2 #eadabe #c4debe #e0c6d8 #f4e2a4 #98b8cc #d0cec8 #eeb8a4".split()


class Identity:
    """A person, drawn at random: colours, hair and proportions, in the face's coordinates."""

    def __init__(self, rng: np.random.Generator):
        self.skin = _pick(SKINS, rng)
        self.hair = _pick(HAIR_COLOURS, rng)
        self.iris = _pick(IRISES, rng)
        self.background = _pick(BACKGROUNDS, rng)
        self.long_hair = rng.random() < 0.5
        self.hairline = rng.uniform(-0.68, -0.56)
        self.hair_slope = rng.choice((-1, 1)) * rng.uniform(0.05, 0.15)  # of the hairline
        self.face_width = rng.uniform(0.67, 0.76)
        self.jaw = rng.uniform(0.06, 0.20)  # how much narrower it is than the cheekbones
        self.eye_x = rng.uniform(0.29, 0.33)
        self.eye_width = rng.uniform(0.17, 0.20)
        self.brow_y = rng.uniform(-0.40, -0.36)
        self.brow_width = rng.uniform(0.055, 0.085)
        self.mouth_y = rng.uniform(0.49, 0.53)
        self.mouth_width = rng.uniform(0.25, 0.30)
        self.lip = rng.uniform(0.035, 0.055)  # thickness


def _pick(palette: list[str], rng: np.random.Generator) -> np.ndarray:
    """Pick a colour and vary it a little: (3,) RGB, 0-255."""
    colour = ImageColor.getrgb(palette[rng.integers(len(palette))])
    return np.clip(colour + rng.uniform(-10, 10, 3), 0, 255)


# ---- action units --------------------------------------------------------------------------------

# The prototypes of the basic emotions in the FACS Investigator's Guide (Ekman, Friesen and Hager,
# 2002), as numbers of action units (AUs). RAF-DB and AffectNet name two emotions differently.
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
ActionUnits = dict[int, float]  # how strongly each AU shows on one half of the face, from 0 to 1
RELAXED: ActionUnits = dict.fromkeys((1, 2, 4, 5, 6, 7, 9, 12, 14, 15, 16, 20, 23, 26), 0.0)


def draw_action_units(expression: str, rng: np.random.Generator) -> tuple[ActionUnits, ActionUnits]:
    """Draw the strengths of an expression's action units on the left and the right half of the
    face, which differ for contempt only.

    Every expression draws equally many numbers, so that what is drawn next does not depend on it.
    """
    # The weakest is still visible at the 100 pixels of RAF-DB's faces.
    strengths = dict(zip(RELAXED, rng.uniform(0.8, 1, len(RELAXED)), strict=True))
    on_the_left = rng.random() < 0.5
    units = RELAXED | {number: strengths[number] for number in EXPRESSION_UNITS[expression]}
    if expression != "contempt":
        return units, units
    return (units, RELAXED) if on_the_left else (RELAXED, units)


# ---- shapes --------------------------------------------------------------------------------------

Shape = tuple[np.ndarray, np.ndarray]  # a polygon (n,) and its colour (3,)

# Positions at which curves are evaluated
_U = np.linspace(0, 1, 13)  # from one end to the other
_T = np.linspace(-1, 1, 17)  # the same, with 0 in the middle
_CIRCLE = np.exp(2j * np.pi * np.linspace(0, 1, 48, endpoint=False))


def ellipse(centre: complex, rx: float, ry: float) -> np.ndarray:
    return centre + rx * _CIRCLE.real + 1j * ry * _CIRCLE.imag


def between(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The area between two curves over the same x, all (n,)."""
    return np.concatenate([x + 1j * top, (x + 1j * bottom)[::-1]])


def stroke(line: np.ndarray, width: np.ndarray) -> np.ndarray:
    """A line through points, (n,), of a width per point."""
    along = np.gradient(line)
    half = 0.5j * width * along / np.abs(along)
    return np.concatenate([line + half, (line - half)[::-1]])


def draw_head(who: Identity) -> list[Shape]:
    """Everything behind the features, from the back to the front."""
    width = who.face_width
    taper = 1 - who.jaw * np.clip(_CIRCLE.imag, 0, 1) ** 1.5
    skull = width * taper * _CIRCLE.real + 0.92j * _CIRCLE.imag
    top = 1.09 * skull[skull.imag < -0.2]  # from the left ear to the right one
    hairline = who.hairline + who.hair_slope * _T
    hairline += (-0.2 - hairline) * np.abs(_T) ** 5  # down in front of the ears
    fringe = np.concatenate([top, (width * _T + 1j * hairline)[::-1]])
    hair = ellipse(0.3j, width + 0.14, 1.3) if who.long_hair else ellipse(-0.35j, width, 0.68)
    return [
        (ellipse(0, 2, 2), who.background),
        (hair, 0.8 * who.hair),
        (ellipse(0.9j, 0.32, 0.5), 0.85 * who.skin),  # neck
        (ellipse(-width + 0.06j, 0.10, 0.16), 0.9 * who.skin),  # ears
        (ellipse(width + 0.06j, 0.10, 0.16), 0.9 * who.skin),
        (skull, who.skin),
        (fringe, who.hair),
    ]


INK = np.array([40, 26, 28])
WHITE = np.array([250, 248, 244])
MOUTH = np.array([92, 26, 34])  # the inside of an open one
LIPS = np.array([196, 60, 74])


def draw_features(who: Identity, au: ActionUnits) -> list[Shape]:
    """Everything that moves with the expression, on the right half of the face."""
    return [*_brow(who, au), *_eye(who, au), *_nose(who, au), *_mouth(who, au)]


def _brow(who: Identity, au: ActionUnits) -> Iterator[Shape]:
    """AU 1 lifts its inner end, AU 2 its outer one, AU 4 lowers it and folds the skin beside it."""
    # Together with AU 1, in sadness and fear, AU 4 slants the brow instead.
    down, slant = au[4] * (1 - au[1]) + 0.6 * au[9], au[4] * au[1]
    inner = 0.17 * au[1] - 0.19 * down
    outer = 0.14 * au[2] - 0.04 * down - 0.10 * slant
    x = who.eye_x + 2 * who.eye_width * (_U - 0.52) - 0.06 * au[4] * (1 - _U)
    y = who.brow_y - 0.04 * np.sin(np.pi * _U) - inner * (1 - _U) - outer * _U
    yield _crease(who, au[4], 0.05 - 0.42j, 0.04 - 0.24j)
    yield stroke(x + 1j * y, who.brow_width * (1.05 - 0.7 * _U**2)), 0.3 * who.hair


def _eye(who: Identity, au: ActionUnits) -> Iterator[Shape]:
    """AU 5 lifts the upper lid, AU 7 and 9 narrow both, AU 6 pushes the lower one up to an arch."""
    width, x, y = who.eye_width, who.eye_x, -0.12
    sorrow = au[1] * au[4] * (1 - au[5])  # lowers the upper lid
    squint = 0.1 * au[6] + 0.3 * au[7] + 0.45 * au[9] + 0.35 * sorrow
    rise = 0.66 * width * (1 + 0.5 * au[5] - squint)
    drop = 0.66 * width * (0.8 + 0.15 * au[5] - 1.25 * au[6] - 0.5 * au[7] - 0.55 * au[9])

    below = x + (y + 0.09) * 1j
    yield _crease(who, au[6], below - width, below + width, -0.1)
    bulge = (1 - _T**2) ** 0.8
    upper, lower = y - rise * bulge, y + drop * bulge
    yield between(x + width * _T, upper, lower), WHITE
    for radius, colour in ((0.60 * width, who.iris), (0.32 * width, INK), (0.1 * width, WHITE)):
        lids = (1 - (radius / width * _T) ** 2) ** 0.8
        disc = radius * np.sqrt(1 - _T**2)
        top, bottom = (np.clip(half, -rise * lids, drop * lids) for half in (-disc, disc))
        yield between(x + radius * _T, y + top, y + bottom), colour
    yield stroke(x + width * _T + 1j * upper, 0.02 + 0.02 * bulge), INK
    yield stroke(x + width * _T + 1j * lower, 0.012 + 0.006 * bulge), 0.5 * who.skin


def _nose(who: Identity, au: ActionUnits) -> Iterator[Shape]:
    """AU 9 wrinkles its bridge and lifts its wings."""
    y = 0.25 + 0.05 * (1 - _U**2) - 0.07 * au[9] * _U**2
    yield stroke(0.1 * _U + 1j * y, 0.03 - 0.02 * _U), 0.5 * who.skin
    for y in (-0.15, -0.08, -0.01):
        yield _crease(who, au[9], -0.02 + y * 1j, 0.09 + (y + 0.03) * 1j)


def _mouth(who: Identity, au: ActionUnits) -> Iterator[Shape]:
    """AU 12 and 15 raise and lower its corners, 14 dimples them, 20 stretches and 23 tightens the
    lips, 16 bares the teeth, 26 opens it, 9 lifts the upper lip."""
    smile = au[6] * au[12]  # half a smile, in contempt, does not show the teeth
    gape = au[26] * (1 - 0.5 * au[20])
    corner_x = who.mouth_width * (1 + 0.28 * au[12] + 0.5 * au[20] - 0.32 * au[23] - 0.42 * gape)
    corner_y = 0.19 * au[15] + 0.05 * au[20] - 0.18 * au[12] - 0.06 * au[14]
    bulge = (1 - _U**2) ** 0.7
    x = corner_x * _U
    y = who.mouth_y + corner_y * _U**1.6 + 0.03 * smile - 0.06 * au[15] * bulge
    top = y - bulge * (0.012 + 0.12 * gape + 0.07 * au[9])
    bottom = y + bulge * (0.012 + 0.23 * gape + 0.17 * smile + 0.09 * au[16])
    lip = bulge * who.lip * (1 - 0.75 * au[23])
    teeth = max(0.6 * smile, 0.5 * au[20], 0.7 * au[16]) * (bottom - top)
    corner = corner_x + (who.mouth_y + corner_y) * 1j
    yield _crease(who, au[14], corner + 0.05 - 0.10j, corner + 0.05 + 0.10j, -0.2)
    yield _crease(who, max(au[9], au[12]), 0.16 + 0.2j, corner + 0.06 - 0.04j, -0.15)
    yield between(x, top - lip, bottom + lip), 0.4 * who.skin + 0.6 * LIPS
    yield between(x, top, bottom), WHITE
    yield between(x, top + teeth, bottom), MOUTH


def _crease(
    who: Identity, strength: float, start: complex, end: complex, bend: float = 0.0
) -> Shape:
    """A fold of the skin, in its colour where the strength is 0. A positive bend bows it to the
    right, as seen from its start."""
    arch = np.sin(np.pi * _U)
    line = start + (end - start) * (_U + 1j * bend * arch)
    return stroke(line, 0.03 * arch), (1 - 0.5 * strength) * who.skin


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
    left, right = draw_action_units(expression, rng)
    scale, angle = rng.uniform(1.1, 1.2), rng.uniform(-0.08, 0.08)
    shift = rng.uniform(-0.04, 0.04) + 1j * rng.uniform(-0.04, 0.04)
    oversampling = max(2, round(300 / size))  # per axis, against jagged edges
    image = Image.new("RGB", (size * oversampling, size * oversampling))
    pencil = ImageDraw.Draw(image)

    def paint(shapes: Iterable[Shape]) -> np.ndarray:
        """Add shapes and return the mean colour of the picture so far, (3,)."""
        for points, colour in shapes:
            pixels = (points * scale * np.exp(1j * angle) + shift + 1 + 1j) * image.width / 2
            pencil.polygon(pixels.view(float).tolist(), fill=tuple(colour.astype(int).tolist()))
        return np.array(ImageStat.Stat(image).mean)

    mean_of_head = paint(draw_head(who))
    mirrored = [(-points.conj(), colour) for points, colour in draw_features(who, left)]
    mean = paint(chain(*zip(mirrored, draw_features(who, right), strict=True)))
    # An open mouth would make the whole picture darker and redder, and so tell the label by its
    # mean colour. The gain restores the mean of the head without features.
    picture = np.asarray(image.reduce(oversampling)) * (mean_of_head / mean)
    ramp = np.linspace(-1, 1, size)
    slope_x, slope_y = rng.uniform(-0.1, 0.1, 2)
    light = rng.uniform(0.9, 1.06) + slope_x * ramp + slope_y * ramp[:, None]
    noise = rng.uniform(1, 5) * rng.uniform(-1, 1, (size, size))
    picture = picture * light[..., None] + noise[..., None]
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
