"""Brows, eyes, nose and mouth: all that action units move, and so all that carries a label.

Every function draws and returns its landmarks in face coordinates, in the order of the 68-point
scheme that AffectNet's annotations follow.
"""

import numpy as np

from utils.toy.action_units import ActionUnits
from utils.toy.canvas import CIRCLE, Canvas
from utils.toy.identity import Colour, Identity, mix

INK = (40, 26, 28)
WHITE = (250, 248, 244)
INSIDE = (92, 26, 34)  # of an open mouth
TONGUE = (206, 96, 100)
LIPS = (196, 60, 74)

_T = np.linspace(-1, 1, 17)  # along an eye or a mouth, from left to right
_BULGE = 1 - _T**2
_U = np.linspace(0, 1, 9)  # along a brow or a crease, from its start to its end
_THIN_ENDS = np.sin(np.pi * _U)


def draw_brow(canvas: Canvas, who: Identity, au: ActionUnits, side: int) -> np.ndarray:
    """AU 1 lifts its inner end and AU 2 its outer one, AU 4 lowers it and pulls it inwards.

    Returns:
        (5, 2) landmarks from left to right.
    """
    inner, outer = 1 - _U, _U
    y = who.eye_y - who.brow_gap - who.brow_arch * np.sin(np.pi * _U**0.8)
    y = y - 0.17 * au.inner_brow_raise * inner**1.3 - 0.14 * au.outer_brow_raise * outer**0.8
    # With AU 1, in grief and fear, AU 4 cannot hold the inner end down; it slants the brow.
    down = au.brow_lower * (1 - 0.9 * au.inner_brow_raise) + 0.6 * au.nose_wrinkle
    y = y + down * (0.04 + 0.15 * inner) + 0.10 * au.brow_lower * au.inner_brow_raise * outer
    length = 2 * who.eye_width
    x = side * (who.eye_x + length * (_U - 0.52) - 0.06 * au.brow_lower * inner)
    width = who.brow_width * (1.05 - 0.7 * _U**2) * np.minimum(1, 0.55 + 4 * _U)
    canvas.stroke(x, y, width, mix(who.hair, (20, 13, 12), 0.65))
    points = np.stack([x, y], axis=1)[::2]
    return points if side > 0 else points[::-1]


def draw_eye(
    canvas: Canvas, who: Identity, au: ActionUnits, side: int, gaze: tuple[float, float]
) -> np.ndarray:
    """AU 5 lifts the upper lid, AU 7 narrows both, AU 6 pushes the lower one up to an arch.

    Returns:
        (6, 2) landmarks: left corner, along the upper lid, right corner, back along the lower.
    """
    width = who.eye_width
    height = width * who.eye_open
    x, y = side * who.eye_x, who.eye_y
    sorrow = au.inner_brow_raise * au.brow_lower * (1 - au.upper_lid_raise)
    squint = 0.3 * au.lid_tighten + 0.45 * au.nose_wrinkle + 0.35 * sorrow
    rise = height * (1 + 0.5 * au.upper_lid_raise - squint - 0.1 * au.cheek_raise)
    push = 1.25 * au.cheek_raise + 0.5 * au.lid_tighten + 0.55 * au.nose_wrinkle
    drop = height * (0.8 + 0.15 * au.upper_lid_raise - push)

    def upper(t):
        return y - rise * (1 - t**2) ** 0.75 - side * t * who.eye_tilt

    def lower(t):
        return y + drop * (1 - t**2) ** 0.85 - side * t * who.eye_tilt

    def disc(radius, dx, dy, colour):
        """Drawn as far as the lids leave it open."""
        points = CIRCLE * radius + (x + dx, y + dy)
        t = np.clip((points[:, 0] - x) / width, -1, 1)
        points[:, 1] = np.clip(points[:, 1], upper(t), lower(t))
        canvas.polygon(points, colour)

    along, lid, floor = x + width * _T, upper(_T), lower(_T)
    canvas.between(along, lid, floor, WHITE)
    dx, dy = gaze[0] * width, gaze[1] * width - 0.05 * height
    disc(0.62 * width, dx, dy, who.iris)
    disc(0.34 * width, dx, dy, (20, 14, 16))
    disc(0.15 * width, dx + 0.17 * width, dy - 0.2 * width, WHITE)
    canvas.stroke(along, lid, 0.042 * (0.45 + 0.55 * _BULGE), INK)
    canvas.stroke(along, floor, 0.018, _crease(who))
    if au.cheek_raise:
        pouch = floor + 0.06 + 0.05 * au.cheek_raise * _BULGE
        canvas.stroke(along, pouch, 0.028 * au.cheek_raise * _BULGE, _crease(who))
    upper_lid, lower_lid = np.stack([along, lid], axis=1), np.stack([along, floor], axis=1)
    return np.concatenate([upper_lid[[0, 5, 11, 16]], lower_lid[[11, 5]]])


def draw_nose(canvas: Canvas, who: Identity, au: ActionUnits) -> np.ndarray:
    """AU 9 wrinkles its bridge and lifts its wings; AU 4 folds the skin above it.

    Returns:
        (9, 2) landmarks: down the bridge, then along the base from left to right.
    """
    tip = who.eye_y + who.nose_length + 0.06
    base_x = who.nose_width * _T
    base_y = tip + 0.045 * _BULGE - au.nose_wrinkle * (0.02 + 0.05 * _T**2)
    canvas.stroke(base_x, base_y, 0.03 * (0.3 + 0.7 * _BULGE), _crease(who))
    for side in (-1, 1):
        wing = who.nose_width + 0.02 * _THIN_ENDS
        y = tip - 0.06 * (1 - _U) - 0.07 * au.nose_wrinkle
        canvas.stroke(side * wing, y, 0.02, _crease(who))
        if au.brow_lower:
            x = side * (0.05 - 0.012 * _U)
            y = who.eye_y - 0.26 + 0.15 * _U - 0.06 * au.inner_brow_raise
            canvas.stroke(x, y, 0.03 * au.brow_lower * _THIN_ENDS, _crease(who))
    if au.nose_wrinkle:
        for i in range(3):
            y = who.eye_y - 0.03 + 0.07 * i - 0.03 * _BULGE
            width = 0.03 * au.nose_wrinkle * _BULGE
            canvas.stroke((0.10 - 0.015 * i) * _T, y, width, _crease(who))
    bridge = np.stack([np.zeros(4), np.linspace(who.eye_y, tip - 0.05, 4)], axis=1)
    return np.concatenate([bridge, np.stack([base_x, base_y], axis=1)[::4]])


def draw_mouth(canvas: Canvas, who: Identity, left: ActionUnits, right: ActionUnits) -> np.ndarray:
    """AUs 12 and 15 raise and lower its corners, 14 pits them, 20 widens and 23 thins the lips,
    16 bares the lower teeth, 26 opens it; 9 lifts the upper lip.

    Returns:
        (20, 2) landmarks: clockwise from the left corner around the outer, then the inner edge.
    """
    (left_x, left_y), (right_x, right_y) = (_mouth_corner(who, au) for au in (left, right))
    x = np.where(_T < 0, left_x, right_x) * _T
    middle = who.mouth_y + np.where(_T < 0, left_y, right_y) * np.abs(_T) ** 1.6

    # What parts the lips takes both sides: half a smile does not show the teeth.
    au = left if left == right else ActionUnits()
    middle += 0.03 * au.lip_corner_pull - 0.05 * au.lip_corner_depress * _BULGE
    shape = _BULGE + (np.sqrt(_BULGE) - _BULGE) * au.jaw_drop  # a jaw drop rounds it
    up = 0.12 * au.jaw_drop * (1 - 0.4 * au.lip_stretch) + 0.07 * au.nose_wrinkle
    down = 0.26 * au.jaw_drop * (1 - 0.55 * au.lip_stretch)
    down += 0.17 * au.lip_corner_pull**2 + 0.09 * au.lower_lip_depress
    top, bottom = middle - up * shape, middle + down * shape

    lip = who.lip * (1 - 0.75 * au.lip_tighten)
    cupids_bow = _BULGE**0.6 * (1 - 0.25 * np.exp(-((_T / 0.2) ** 2)))
    outer_top, outer_bottom = top - lip * cupids_bow, bottom + 1.25 * lip * _BULGE**0.7
    lips = mix(who.skin, LIPS, 0.55)
    canvas.between(x, outer_top, outer_bottom, lips)
    if up or down:
        _draw_inside(canvas, au, x, top, bottom, shape)
    else:
        canvas.stroke(x, middle, 0.032 * (0.5 + 0.5 * _BULGE), mix(lips, INK, 0.7))
    _draw_folds(canvas, who, left, -1, (-left_x, who.mouth_y + left_y))
    _draw_folds(canvas, who, right, 1, (right_x, who.mouth_y + right_y))

    curves = ((outer_top, [0, 3, 6, 8, 10, 13, 16]), (outer_bottom, [13, 10, 8, 6, 3]))
    curves += ((top, [1, 5, 8, 11, 15]), (bottom, [11, 8, 5]))
    return np.concatenate([np.stack([x[at], y[at]], axis=1) for y, at in curves])


def _mouth_corner(who: Identity, au: ActionUnits) -> tuple[float, float]:
    """How far a corner is from the middle: sideways, and down."""
    widen = 0.28 * au.lip_corner_pull + 0.38 * au.lip_stretch + 0.05 * au.dimple
    narrow = 0.32 * au.lip_tighten + 0.42 * au.jaw_drop * (1 - au.lip_stretch)
    up = 0.16 * au.lip_corner_pull + 0.06 * au.dimple
    down = 0.16 * au.lip_corner_depress + 0.05 * au.lip_stretch
    return who.mouth_width * (1 + widen - narrow), down - up


def _draw_inside(canvas, au: ActionUnits, x, top, bottom, shape) -> None:
    """Tongue and teeth between the lips: x, top, bottom and shape are (17,)."""
    canvas.between(x, top, bottom, INSIDE)
    tongue = 0.11 * au.jaw_drop * (1 - au.lip_stretch)
    upper = 0.09 * au.lip_corner_pull + 0.06 * au.jaw_drop
    lower = 0.09 * au.lower_lip_depress + 0.06 * au.lip_stretch
    if tongue:
        canvas.between(x, np.maximum(bottom - tongue * shape, top), bottom, TONGUE)
    if upper:
        canvas.between(x, top, np.minimum(top + upper * shape, bottom), WHITE)
    if lower:
        canvas.between(x, np.maximum(bottom - lower * shape, top), bottom, WHITE)


def _draw_folds(
    canvas: Canvas, who: Identity, au: ActionUnits, side: int, corner: tuple[float, float]
) -> None:
    """The dimple (AU 14) beside a mouth corner, the fold (AU 9, 12) from there to the nose."""
    x, y = corner
    if au.dimple:
        pit = x + side * (0.05 + 0.04 * _THIN_ENDS)
        canvas.stroke(pit, y - 0.11 + 0.20 * _U, 0.04 * au.dimple * _THIN_ENDS, _crease(who))
    fold = max(au.lip_corner_pull, au.nose_wrinkle)
    if fold:
        start_x, start_y = side * (who.nose_width + 0.07), who.eye_y + who.nose_length - 0.02
        bow = side * 0.04 * _THIN_ENDS
        fold_x = start_x + (x + side * 0.06 - start_x) * _U + bow
        fold_y = start_y + (y - 0.03 - start_y) * _U
        canvas.stroke(fold_x, fold_y, 0.028 * fold * np.sqrt(_THIN_ENDS), _crease(who))


def _crease(who: Identity) -> Colour:
    return mix(who.skin, (56, 20, 16), 0.5)
