"""What stays still while the face moves: shoulders, hair, ears, the shape of the head."""

import numpy as np

from utils.toy.canvas import Canvas
from utils.toy.identity import Identity, mix

_TURN = np.linspace(0, 2 * np.pi, 56, endpoint=False)
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
_T = np.linspace(-1, 1, 17)  # along the hairline
_STRAND = np.linspace(0, 1, 9)
EAR_Y = 0.06


def draw_head(canvas: Canvas, who: Identity) -> None:
    """Everything behind the features, from the back to the front."""
    shade = mix(who.skin, (110, 40, 30), 0.22)
    if who.style:
        _draw_hair_behind(canvas, who)
    neck = np.array([(-0.28, 0.5), (0.28, 0.5), (0.34, 1.3), (-0.34, 1.3)])
    canvas.polygon(neck, shade)
    canvas.ellipse(0, 1.5, 1.0, 0.53, who.shirt)
    for side in (-1, 1):
        canvas.ellipse(side * who.face_width, EAR_Y, 0.10, 0.16, who.skin)
        canvas.ellipse(side * (who.face_width + 0.01), EAR_Y, 0.05, 0.09, shade)
    canvas.polygon(head_outline(who), who.skin)
    blush = mix(who.skin, (236, 84, 76), 0.16)
    for side in (-1, 1):
        canvas.ellipse(side * (who.eye_x + 0.13), 0.26, 0.14, 0.10, blush)
    if who.style:
        _draw_hair_above(canvas, who)


def head_outline(who: Identity, grow: float = 0.0) -> np.ndarray:
    """(56, 2): an oval that tapers to the jaw, clockwise from the right ear; the chin is at 14."""
    y = np.where(_SIN > 0, _SIN * (who.chin + grow), _SIN * (0.88 + grow))
    taper = 1 - who.jaw * np.clip(_SIN, 0, 1) ** 1.5
    x = (who.face_width + grow) * np.sign(_COS) * np.abs(_COS) ** 0.82 * taper
    return np.stack([x, y], axis=1)


def _draw_hair_behind(canvas: Canvas, who: Identity) -> None:
    style, dark = who.style, mix(who.hair, (0, 0, 0), 0.25)
    outline = head_outline(who, style.volume)
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
    """The cap of hair, from the skull's outline down to the hairline."""
    style = who.style
    skull = head_outline(who, 0.9 * style.volume)
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
        return
    x = -0.3 * who.part_side + 0.4 * (_STRAND - 0.5)
    shine = mix(who.hair, (255, 255, 255), 0.25)
    canvas.stroke(x, -0.82 + 0.5 * x**2, 0.035 * np.sin(np.pi * _STRAND), shine)
