"""Any image file -> uint8 RGB, the same way for training, evaluation, demo and heat maps."""

import os
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError

# Our own limit instead of Pillow's, whose first stage is a warning that decoding threads could
# not turn into an error each for itself. A face photo is far smaller.
Image.MAX_IMAGE_PIXELS = None
MAX_PIXELS = 100_000_000

# Remarks on damaged metadata, which all kinds of files carry in TIFF's form. Damaged pixels are an
# error, and one line of that is enough.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Decode an image file to RGB, upright as its EXIF orientation says.

    Grey, palette, CMYK, RGBA (over white), 16-bit (scaled to 8) and animated (first frame)
    files are all fine.

    Returns:
        (h, w, 3) uint8.

    Raises:
        UserError: the file is missing, not an image, truncated, or a decompression bomb.
    """
    try:
        with Image.open(path) as image:  # reads the header alone
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width}x{image.height} is too large for a photo of faces; "
                    "shrink or remove it"
                )
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_to_rgb(image))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not an image that Pillow can read; replace it or leave it out"
        ) from None
    # What Pillow raises on damaged data.
    except (OSError, SyntaxError, ValueError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); replace it or leave it out") from None


def is_readable(path: str | os.PathLike) -> bool:
    """Whether `read_rgb` can decode an image."""
    try:
        read_rgb(path)
    except UserError:
        return False
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        levels = np.asarray(image, dtype=np.int64).clip(0, 65535)
        return Image.fromarray((levels // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
