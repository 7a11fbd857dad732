"""Faces cut out of whole photos by their annotated boxes, in parallel."""

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image

from utils.affectnet.links import temporary
from utils.errors import UserError
from utils.images import read_rgb
from utils.outputs import encode_picture

CROP_SIZE = 224
_BLOCK = 4096  # faces handed to the processes at a time

# left, top, width, height in pixels
Box = tuple[float, float, float, float]


def crop_files(faces: Iterable[tuple[str, str, Box]], margin: float, workers: int) -> Iterator[str]:
    """Crop (photo's path, crop's path, box) each into a JPEG file of its own, whole or not at all.

    Yields:
        Why a face could not be cropped, empty if it could, in the order of the faces.
    """
    crop = partial(_crop_file, margin=margin)
    if workers == 1:
        yield from map(crop, faces)
        return
    faces = iter(faces)
    # An interrupt from the keyboard is for the parent alone.
    with ProcessPoolExecutor(
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as processes:
        while block := list(islice(faces, _BLOCK)):
            yield from processes.map(crop, block, chunksize=16)


def _crop_file(face: tuple[str, str, Box], margin: float) -> str:
    source, target, box = face
    if not os.path.isfile(source):
        return "missing image"
    try:
        photo = Image.fromarray(read_rgb(source))
    except UserError:
        return "unreadable image"
    crop = crop_face(photo, box, margin)
    if crop is None:
        return "face box outside the image"
    Path(temporary(target)).write_bytes(encode_picture(crop, target, quality=95))
    os.replace(temporary(target), target)
    return ""


def crop_face(photo: Image.Image, box: Box, margin: float) -> Image.Image | None:
    """Cut a box with a margin (a fraction of its sides) out, at CROP_SIZE squared.

    What reaches over the photo's edge is black, so that the face keeps its place and proportions.
    None if nothing of the box lies on the photo.
    """
    left, top, width, height = box
    left, top = left - margin * width, top - margin * height
    width, height = width * (1 + 2 * margin), height * (1 + 2 * margin)
    x0, x1 = max(left, 0), min(left + width, photo.width)
    y0, y1 = max(top, 0), min(top + height, photo.height)
    if x0 >= x1 or y0 >= y1:
        return None
    # Only what is on the photo is resized: a box of a million pixels costs no more than others.
    columns = [round((x - left) / width * CROP_SIZE) for x in (x0, x1)]
    rows = [round((y - top) / height * CROP_SIZE) for y in (y0, y1)]
    size = (columns[1] - columns[0], rows[1] - rows[0])
    if min(size) == 0:
        return None
    visible = photo.resize(size, Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
    crop = Image.new("RGB", (CROP_SIZE, CROP_SIZE))
    crop.paste(visible, (columns[0], rows[0]))
    return crop
