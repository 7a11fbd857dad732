"""Image files: which there are, and any of them -> uint8 RGB, the same way for every script."""

import os
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError, one_line, plural, writing

try:  # decodes JPEG files in half of Pillow's time, to the same pixels
    import simplejpeg
except ImportError:  # where it has no wheel
    simplejpeg = None
with suppress(ImportError):  # an optional plugin that lets Pillow read the photos of iPhones
    import pillow_heif

    pillow_heif.register_heif_opener()

# Our own limit replaces Pillow's, which starts as a warning. Photos of faces are far smaller.
Image.MAX_IMAGE_PIXELS = None
MAX_PIXELS = 100_000_000

# Pillow warns about damaged metadata. Damaged pixels are an error, which is enough.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# Pillow knows these formats only by name, or needs another program to decode them.
_STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in _STUBS
)
# What operating systems and other programs leave in folders.
RUBBISH = {"thumbs.db", "desktop.ini", "@eadir", "__macosx", "__pycache__"}


def read_rgb(path: str | os.PathLike, *, min_side: int = 0) -> np.ndarray:
    """Decode an image file to RGB, upright according to its EXIF orientation.

    Grey, palette, CMYK, RGBA (over white), animated (first frame), 16-bit and float files (scaled
    to 8 bits by the range that their values span) are all fine.

    Args:
        min_side: if not 0, a JPEG file may be decoded at a fraction of its size, which is faster,
            to sides of at least this many pixels.

    Returns:
        (h, w, 3) uint8.

    Raises:
        UserError: the file is missing, not an image, truncated, or a decompression bomb.
    """
    try:
        if simplejpeg is not None and (pixels := _decode_plain_jpeg(path, min_side)) is not None:
            return pixels
        with Image.open(path) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width}x{image.height} is too large for a photo of faces; "
                    "shrink or remove it"
                )
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(to_rgb(image))
    except FileNotFoundError:
        problem = "missing"
    except UnidentifiedImageError:
        problem = "not an image that Pillow can read"
    # What Pillow raises on damaged data.
    except (OSError, SyntaxError, ValueError, RuntimeError, struct.error) as error:
        problem = f"cannot be read ({error})"
    raise UserError(f"{path}: {problem}; replace it or leave it out")


def _decode_plain_jpeg(path: str | os.PathLike, min_side: int) -> np.ndarray | None:
    """Decode a JPEG file that needs neither turning nor another colour space; None for all other
    files and for broken ones, of which Pillow's error says more."""
    with open(path, "rb") as file:
        content = file.read(1 << 16)
        if not content.startswith(b"\xff\xd8\xff") or b"Exif" in content:
            return None
        content += file.read()
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content, min_height=min_side, min_width=min_side)
    except ValueError:
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode, as `read_rgb` does."""
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion would clip
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(levels: np.ndarray) -> np.ndarray:
    """(h, w) float or integer -> uint8. Files do not say how many bits their values use, so the
    scale is the smallest usual one that holds the brightest value."""
    if not np.isfinite(levels).all():
        raise ValueError("it holds NaN or infinite values")
    brightest = levels.max()
    usual = (2**bits - 1 for bits in (1, 8, 10, 12, 14, 16))
    white = next((scale for scale in usual if scale >= brightest), brightest)
    return (levels.clip(0).astype(np.float64) * (255 / white) + 1e-6).astype(np.uint8)


# ---- which files ---------------------------------------------------------------------------------


def is_rubbish(name: str) -> bool:
    """Whether a file or folder is hidden or left by an operating system: never data."""
    return name.startswith(".") or name.lower() in RUBBISH


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def walk_files(folder: str | os.PathLike, visited: set[str] | None = None) -> Iterator[str]:
    """Paths of all files in and below a folder, sorted, without rubbish; none where there is no
    folder. Links are followed, but no folder is visited twice."""
    visited = set() if visited is None else visited
    place = os.path.realpath(folder)
    if place in visited or not os.path.isdir(place):
        return
    visited.add(place)
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not is_rubbish(e.name))
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if is_folder:
            yield from walk_files(path, visited)
        else:
            yield path


def list_files(
    paths: Sequence[str | os.PathLike],
    *,
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    output: str | os.PathLike | None = None,
) -> list[Path]:
    """Expand folders to the files in and below them that can be read; list each file once.

    What is missing, and how many files of which other kinds a folder holds, is reported on stderr.

    Args:
        suffixes: which files are taken from folders; files named themselves are always taken.
        output: the folder of results, whose files are left out.

    Raises:
        UserError: no file is left, or a folder would be both read and written.
    """
    found, problems, others = [], [], []
    results = os.path.realpath(output) if output else ""
    for path in paths:
        if not os.path.exists(path):
            problems.append(f"{path}: no such file or folder; check the path")
        elif not os.path.isdir(path):
            found.append(path)
        elif os.path.realpath(path) == results:
            raise UserError(f"{path}: would be both read and written; give another --output")
        else:
            files = list(walk_files(path, visited={results}))
            readable = [file for file in files if has_suffix(file, suffixes)]
            others += [file for file in files if not has_suffix(file, suffixes)]
            found += readable
            if not readable:
                problems.append(f"{path}: holds no file to read")
    if others:
        problems.append(describe_others(others))
    if not found:
        raise UserError("; ".join(problems))
    for problem in problems:
        print(f"skipped: {one_line(problem)}", file=sys.stderr)
    places: dict[str, Path] = {}
    for file in found:
        places.setdefault(os.path.realpath(file), Path(file))
    return list(places.values())


def describe_others(paths: Iterable[str]) -> str:
    """["a.heic", "b.heic", "c.txt"] -> "2 .heic files (...), 1 .txt file"."""
    parts = []
    for suffix, count in Counter(Path(path).suffix.lower() for path in paths).most_common():
        hint = " (convert them, or pip install pillow-heif)" if suffix == ".heic" else ""
        parts.append(plural(count, f"{suffix} file".lstrip()) + hint)
    return ", ".join(parts)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file's results: its stem; where several files share it, with the folder's
    name in front; where that is not enough, with a number. Case does not tell names apart."""
    counts = Counter(path.stem.casefold() for path in paths)
    taken, unique = set(), []
    for path in paths:
        name = path.stem
        if counts[name.casefold()] > 1:
            name = f"{path.absolute().parent.name}_{name}"
        number, candidate = 1, name
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def save_picture(picture: Image.Image, path: str | os.PathLike, **options) -> None:
    """Write an image file in the format of its suffix; options are Pillow's.

    Raises:
        UserError: it cannot be written.
    """
    content = BytesIO()  # Pillow itself does not notice a disk that fills up with its last block
    picture.save(content, Image.registered_extensions()[Path(path).suffix.lower()], **options)
    with writing(path):
        Path(path).write_bytes(content.getvalue())
