"""Faces in a picture: where they are, and the cut-outs of them that the network gets."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError

YUNET = "face_detection_yunet_2023mar.onnx"  # MIT, from OpenCV's model zoo

# Pictures are searched at most this large, so a face is found from 1/40 of the longer side on.
MAX_SIDE = 1280
MIN_FACE = 1 / 40
MIN_PIXELS = 24

Box = tuple[int, int, int, int]  # left, top, width, height in pixels
Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """A face, its box inside the picture."""

    box: Box
    score: float | None = None  # the detector's confidence in [0, 1], where it gives one
    eyes: tuple[Point, Point] | None = None  # left and right as one looks at the picture


Detector = Callable[[np.ndarray], list[Face]]  # (h, w, 3) uint8 RGB -> faces from left to right


def choose_detector(folder: Path) -> Detector:
    """YuNet where its file lies in `folder`, else the cascade, which needs no file.

    Raises:
        UserError: the YuNet file is damaged.
    """
    path = folder / YUNET
    return YuNet(path) if path.is_file() else HaarCascade()


class HaarCascade:
    """Upright frontal faces by OpenCV's boosted cascade (Viola and Jones, CVPR 2001).

    The `alt` cascade finds several times fewer phantom faces in foliage, cloth and text than the
    `default` one. Evening out the contrast around each pixel first brings back faces in shade;
    without a border of five hits around it, no face is believed.
    """

    name = "Haar cascade"
    min_neighbors = 4  # more than these hits have to agree on a face

    def __init__(self):
        file = Path(cv2.data.haarcascades, "haarcascade_frontalface_alt.xml")
        self.cascade = cv2.CascadeClassifier(str(file))
        self.contrast = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))

    def __call__(self, image: np.ndarray) -> list[Face]:
        """image: (h, w, 3) uint8 RGB -> its faces from left to right."""
        small, scale = _shrink(image)
        grey = self.contrast.apply(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
        side = max(MIN_PIXELS, round(MIN_FACE * max(grey.shape)))
        boxes, hits = self.cascade.detectMultiScale2(
            grey, scaleFactor=1.1, minNeighbors=self.min_neighbors, minSize=(side, side)
        )
        # Of boxes on one face the one with the most hits stays.
        order = np.argsort(np.ravel(hits), kind="stable")[::-1]
        faces = [Face(_inside(boxes[i] / scale, image)) for i in order]
        return _left_to_right(merge_overlapping(faces))


class YuNet:
    """Faces in any pose, with their eyes, by YuNet (Wu et al., Machine Intelligence Research 2023).

    Args:
        path: the network as an ONNX file.
    """

    name = "YuNet"
    threshold = 0.7  # on the score

    def __init__(self, path: Path):
        try:
            self.network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), self.threshold)
        except cv2.error:
            raise UserError(
                f"{path}: not the YuNet face detector, or damaged; download it again, or remove it "
                "to use the built-in Haar cascade"
            ) from None

    def __call__(self, image: np.ndarray) -> list[Face]:
        """image: (h, w, 3) uint8 RGB -> its faces from left to right."""
        small, scale = _shrink(image)
        if min(small.shape[:2]) < MIN_PIXELS:  # where its coordinates overflow
            return []
        self.network.setInputSize(small.shape[1::-1])
        _, found = self.network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        faces = []
        for row in np.empty((0, 15)) if found is None else found.astype(float):
            # x, y, w, h, then five landmarks of which the first two are the eyes, then the score.
            if np.isfinite(row).all() and min(row[2:4]) > 0:
                x0, y0, x1, y1 = (row[4:8] / scale).tolist()
                eyes = tuple(sorted([(x0, y0), (x1, y1)]))
                faces.append(Face(_inside(row[:4] / scale, image), float(row[14]), eyes))
        faces.sort(key=lambda face: -face.score)
        return _left_to_right(merge_overlapping(faces))


def merge_overlapping(faces: Sequence[Face], overlap: float = 0.5) -> list[Face]:
    """Drop faces that share more than `overlap` of the smaller box with one before them.

    Unlike the intersection over the union, that catches a mouth or an eye found inside a face.

    Args:
        faces: the surest first.
    """
    kept = []
    for face in faces:
        if all(_shared(face.box, other.box) <= overlap for other in kept):
            kept.append(face)
    return kept


def with_margin(face: Face, margin: float, image: np.ndarray) -> Face:
    """The face with a square box around its own, `margin` of the side wider on each side.

    The square is moved inside the picture, and is no larger than its shorter side.
    """
    height, width = image.shape[:2]
    x, y, w, h = face.box
    side = min(round(max(w, h) * (1 + 2 * margin)), height, width)
    left = min(max(round(x + (w - side) / 2), 0), width - side)
    top = min(max(round(y + (h - side) / 2), 0), height - side)
    return replace(face, box=(left, top, side, side))


def whole_image(image: np.ndarray) -> Face:
    """The picture itself as a face, for pictures that are cropped to one."""
    return Face((0, 0, image.shape[1], image.shape[0]))


def cut_out(image: np.ndarray, face: Face, size: int) -> np.ndarray:
    """The face alone, turned upright where its eyes are known, resized as for training.

    Args:
        image: (h, w, 3) uint8.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    x, y, w, h = face.box
    tilt = eye_tilt(face)
    if tilt:
        turn = cv2.getRotationMatrix2D((x + (w - 1) / 2, y + (h - 1) / 2), tilt, 1)
        turn[:, 2] -= x, y
        # The corners of a turned box may stick out of the picture.
        crop = cv2.warpAffine(image, turn, (w, h), borderMode=cv2.BORDER_REPLICATE)
    else:
        crop = image[y : y + h, x : x + w]
    resized = Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def eye_tilt(face: Face) -> float:
    """Degrees by which the right end of the eye line lies lower; 0 where it is unknown.

    In a profile both eyes fall together and their line says nothing, which counts as unknown.
    """
    if face.eyes is None:
        return 0.0
    (x0, y0), (x1, y1) = face.eyes
    if math.hypot(x1 - x0, y1 - y0) < 0.15 * face.box[2]:
        return 0.0
    return math.degrees(math.atan2(y1 - y0, x1 - x0))


def _shrink(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at no more than MAX_SIDE, and by how much it was scaled."""
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _inside(box: Sequence[float], image: np.ndarray) -> Box:
    """left, top, width, height -> the part of it inside the picture, in whole pixels."""
    height, width = image.shape[:2]
    left, right = (min(max(round(x), 0), width) for x in (box[0], box[0] + box[2]))
    top, bottom = (min(max(round(y), 0), height) for y in (box[1], box[1] + box[3]))
    return left, top, right - left, bottom - top


def _shared(a: Box, b: Box) -> float:
    """The intersection's share of the smaller box; a box without area counts as all shared."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    smaller = min(a[2] * a[3], b[2] * b[3])
    return max(width, 0) * max(height, 0) / smaller if smaller else 1.0


def _left_to_right(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: face.box)
