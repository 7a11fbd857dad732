"""Who a toy face shows: proportions, colours and hair, none of which an expression touches."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0-255

SKINS = (
    (255, 222, 196),
    (248, 208, 176),
    (238, 190, 154),
    (224, 170, 130),
    (204, 147, 107),
    (176, 122, 86),
    (150, 100, 70),
    (126, 82, 58),
)
HAIR_COLOURS = (
    (38, 32, 34),
    (66, 46, 38),
    (104, 66, 46),
    (148, 98, 60),
    (204, 154, 88),
    (232, 198, 128),
    (176, 78, 44),
    (156, 154, 158),
)
IRISES = ((74, 46, 32), (104, 68, 38), (66, 110, 72), (62, 112, 156), (92, 102, 112))
SHIRTS = (
    (206, 84, 78),
    (70, 116, 168),
    (92, 148, 110),
    (232, 178, 84),
    (126, 96, 150),
    (70, 78, 92),
)
BACKGROUNDS = (
    (178, 214, 226),
    (234, 218, 190),
    (196, 222, 190),
    (224, 198, 216),
    (244, 226, 164),
    (152, 184, 204),
    (208, 206, 200),
    (238, 184, 164),
)


@dataclass(frozen=True)
class HairStyle:
    """Hair stands `volume` off the skull; other lengths are y in halves of the picture."""

    volume: float
    length: float  # where it ends behind the face; above 0, the height of the ears, it is short
    hairline: float  # where it ends on the forehead
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


@dataclass(frozen=True)
class Identity:
    """Lengths are in halves of the picture, from its centre, with y downwards."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    background: Colour
    style: HairStyle | None
    part_side: int  # -1 or 1
    face_width: float
    chin: float
    jaw: float  # how much narrower the jaw is than the cheekbones
    eye_x: float
    eye_y: float
    eye_width: float
    eye_open: float  # height of the upper lid, in eye widths
    eye_tilt: float  # how much higher than its centre the eye's outer corner is
    brow_gap: float  # from the eye to the brow
    brow_width: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip: float  # thickness


def draw_identity(rng: np.random.Generator) -> Identity:
    """rng -> somebody new."""
    return Identity(
        skin=_pick(SKINS, 6, rng),
        hair=_pick(HAIR_COLOURS, 6, rng),
        iris=_pick(IRISES, 8, rng),
        shirt=_pick(SHIRTS, 16, rng),
        background=_pick(BACKGROUNDS, 16, rng),
        style=HAIR_STYLES[rng.integers(len(HAIR_STYLES))],
        part_side=int(rng.choice((-1, 1))),
        face_width=rng.uniform(0.67, 0.76),
        chin=rng.uniform(0.90, 0.96),
        jaw=rng.uniform(0.06, 0.20),
        eye_x=rng.uniform(0.30, 0.34),
        eye_y=rng.uniform(-0.14, -0.09),
        eye_width=rng.uniform(0.175, 0.205),
        eye_open=rng.uniform(0.62, 0.72),
        eye_tilt=rng.uniform(-0.01, 0.03),
        brow_gap=rng.uniform(0.25, 0.28),
        brow_width=rng.uniform(0.06, 0.09),
        brow_arch=rng.uniform(0.02, 0.05),
        nose_length=rng.uniform(0.28, 0.33),
        nose_width=rng.uniform(0.08, 0.12),
        mouth_y=rng.uniform(0.51, 0.55),
        mouth_width=rng.uniform(0.25, 0.30),
        lip=rng.uniform(0.035, 0.055),
    )


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """a moved towards b: amount 0 gives a, 1 gives b."""
    return tuple(round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))


def _pick(palette: tuple[Colour, ...], spread: int, rng: np.random.Generator) -> Colour:
    """One of the palette, lighter or darker by up to twice `spread`, its hue by `spread`."""
    change = rng.integers(-spread, spread + 1, 4)
    colour = np.add(palette[rng.integers(len(palette))], change[0] + change[1:])
    return tuple(np.clip(colour, 0, 255).tolist())
