"""Expressions as sums of action units (AUs) of the Facial Action Coding System.

Ekman, Friesen and Hager, "Facial Action Coding System", 2002; the combinations are the
prototypes that its Investigator's Guide gives for the basic emotions.
"""

from dataclasses import dataclass

import numpy as np

from utils.labels import AFFECTNET, RAFDB


@dataclass(frozen=True)
class ActionUnits:
    """How strongly each muscle action shows on one half of the face, 0 (not at all) to 1."""

    inner_brow_raise: float = 0.0
    outer_brow_raise: float = 0.0
    brow_lower: float = 0.0
    upper_lid_raise: float = 0.0
    cheek_raise: float = 0.0
    lid_tighten: float = 0.0
    nose_wrinkle: float = 0.0
    lip_corner_pull: float = 0.0
    dimple: float = 0.0
    lip_corner_depress: float = 0.0
    lower_lip_depress: float = 0.0
    lip_stretch: float = 0.0
    lip_tighten: float = 0.0
    jaw_drop: float = 0.0


AU_NAMES = {
    1: "inner_brow_raise",
    2: "outer_brow_raise",
    4: "brow_lower",
    5: "upper_lid_raise",
    6: "cheek_raise",
    7: "lid_tighten",
    9: "nose_wrinkle",
    12: "lip_corner_pull",
    14: "dimple",
    15: "lip_corner_depress",
    16: "lower_lip_depress",
    20: "lip_stretch",
    23: "lip_tighten",
    26: "jaw_drop",
}

EXPRESSION_UNITS = {
    "neutral": (),
    "happiness": (6, 12),
    "sadness": (1, 4, 15),
    "surprise": (1, 2, 5, 26),
    "fear": (1, 2, 4, 5, 20, 26),
    "anger": (4, 5, 7, 23),
    "disgust": (9, 15, 16),
    "contempt": (12, 14),
}
ONE_SIDED = ("contempt",)

# Every name that a data set uses; AffectNet's two short ones stand for RAF-DB's.
EXPRESSIONS = tuple(dict.fromkeys(RAFDB + AFFECTNET))
_SYNONYMS = {"happy": "happiness", "sad": "sadness"}

# The weakest action still shows at the 100 pixels of RAF-DB's faces.
MIN_INTENSITY = 0.75


def draw_action_units(expression: str, rng: np.random.Generator) -> tuple[ActionUnits, ActionUnits]:
    """One instance of an expression: its action units at random intensities.

    Args:
        expression: a name of `EXPRESSIONS`.
        rng: as many numbers are drawn from it for one expression as for another, so that
            whatever is drawn next does not depend on the expression.

    Returns:
        the left and the right half of the picture; they differ in one-sided expressions only.

    Raises:
        ValueError: no such expression.
    """
    name = _SYNONYMS.get(expression, expression)
    if name not in EXPRESSION_UNITS:
        raise ValueError(f"no expression {expression!r}, there are {', '.join(EXPRESSIONS)}")
    drawn = rng.uniform(MIN_INTENSITY, 1, len(AU_NAMES)).tolist()
    intensity = dict(zip(AU_NAMES, drawn, strict=True))
    on_the_left = bool(rng.integers(2))
    none = ActionUnits()
    active = ActionUnits(**{AU_NAMES[au]: intensity[au] for au in EXPRESSION_UNITS[name]})
    if name not in ONE_SIDED:
        return active, active
    return (active, none) if on_the_left else (none, active)
