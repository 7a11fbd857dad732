"""Follow faces from frame to frame of a video, and smooth what is predicted for them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from utils.demo.detect import Box, intersection
from utils.demo.predictor import Prediction

MIN_OVERLAP = 0.3  # of a face's boxes in two frames, as intersection over union
MEMORY = 1.0  # seconds that a face may be lost before it gets a new number


class Tracker:
    """Numbers the faces of one video from 1 on, and smooths their probabilities over time.

    Args:
        smooth: time constant in seconds of an exponential average; 0 for none.
    """

    def __init__(self, smooth: float):
        self.smooth = smooth
        self.num_faces = 0
        self.last: dict[int, tuple[float, Prediction]] = {}  # by number: when, and what it was

    def __call__(self, faces: Sequence[Prediction], seconds: float) -> list[Prediction]:
        """Return the faces of the next frame, numbered and smoothed, in the same order."""
        self.last = {n: seen for n, seen in self.last.items() if seconds - seen[0] <= MEMORY}
        pairs = [
            (_intersection_over_union(face.box, previous.box), i, number)
            for i, face in enumerate(faces)
            for number, (_, previous) in self.last.items()
        ]
        numbers: dict[int, int] = {}  # by position in `faces`
        for overlap, i, number in sorted(pairs, reverse=True):
            if overlap >= MIN_OVERLAP and i not in numbers and number not in numbers.values():
                numbers[i] = number
        return [self._follow(face, numbers.get(i), seconds) for i, face in enumerate(faces)]

    def _follow(self, face: Prediction, number: int | None, seconds: float) -> Prediction:
        if number is None:
            self.num_faces += 1
            number = self.num_faces
        elif self.smooth > 0:
            before, previous = self.last[number]
            weight = 1 - math.exp((before - seconds) / self.smooth)
            probabilities = {
                name: weight * value + (1 - weight) * previous.probabilities[name]
                for name, value in face.probabilities.items()
            }
            face = replace(face, probabilities=probabilities)
        face = replace(face, number=number)
        self.last[number] = seconds, face
        return face


def _intersection_over_union(a: Box, b: Box) -> float:
    shared = intersection(a, b)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
