import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.errors import UserError
from utils.images import read_rgb

HEIGHT, WIDTH = 20, 30


def gradient() -> np.ndarray:
    """(20, 30) uint8, brighter to the right and to the bottom."""
    return (np.arange(WIDTH) * 6 + np.arange(HEIGHT)[:, None] * 3).astype(np.uint8)


def color() -> np.ndarray:
    grey = gradient()
    return np.stack([grey, 255 - grey, grey // 2], axis=-1)


def save(path, image: Image.Image, **kwargs):
    image.save(path, **kwargs)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb_is_read_as_it_is(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(color()), lossless=True)
    image = read_rgb(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, color())


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_has_three_equal_channels(tmp_path, mode):
    stripes = np.where(np.arange(WIDTH) % 2, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    image = read_rgb(save(tmp_path / "a.png", Image.fromarray(stripes).convert(mode)))
    np.testing.assert_array_equal(image, np.stack([stripes] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    levels = gradient().astype(np.uint16) * 257  # 0 ... 65535
    image = read_rgb(save(tmp_path / f"a.{suffix}", Image.fromarray(levels)))
    np.testing.assert_array_equal(image, np.stack([gradient()] * 3, axis=-1))


def test_16_bit_rgb_keeps_the_high_bytes(tmp_path):
    """Pillow cannot write this format, so the file is put together by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (color().astype(">u2") * 257).reshape(HEIGHT, -1)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_rgb(path), color())


def test_float_grey_is_clipped_to_8_bits(tmp_path):
    values = np.float32([[-5.0, 0.0, 100.0, 300.0]])
    image = read_rgb(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert image[0, :, 0].tolist() == [0, 0, 100, 255]


def test_cmyk_is_converted(tmp_path):
    inks = np.zeros((8, 8, 4), dtype=np.uint8)
    inks[..., 0] = 255  # cyan alone
    path = save(tmp_path / "a.jpg", Image.fromarray(inks, mode="CMYK"), quality=100)
    np.testing.assert_allclose(read_rgb(path)[4, 4], [0, 255, 255], atol=3)


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray((np.arange(WIDTH * HEIGHT) % 3).reshape(HEIGHT, WIDTH).astype(np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = read_rgb(save(tmp_path / "a.png", image))
    assert pixels[0, :3].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (200, 0, 0, 255)
    rgba[3] = (0, 0, 0, 51)  # a fifth of black over white
    pixels = read_rgb(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[2, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(pixels[3, 0], 204, atol=1)


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
    image.putpalette([10, 20, 30])
    path = save(tmp_path / "a.gif", image, transparency=0)
    assert (read_rgb(path) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), shade) for shade in ("red", "lime", "blue")]
    path = save(
        tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], lossless=True
    )
    assert read_rgb(path)[8, 8].tolist() == [255, 0, 0]


# What a camera held in each of the eight ways has to do to the stored pixels (EXIF 2.3, 4.6.4).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(color()), exif=exif)
    np.testing.assert_array_equal(read_rgb(path), UPRIGHT[orientation](color()))


def broken_files() -> dict[str, bytes]:
    def encoded(kind: str, **kwargs) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(color()).resize((90, 60)).save(buffer, kind, **kwargs)
        return buffer.getvalue()

    jpeg, png, tiff = encoded("JPEG"), encoded("PNG"), encoded("TIFF", compression="tiff_lzw")
    webp = encoded("WEBP")
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"this is no image\n",
        "web page": b"<!DOCTYPE html><html></html>",
        "header alone": jpeg[:20],
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[: len(png) // 2],
        "cut gif": encoded("GIF")[:900],
        "cut webp": webp[: len(webp) // 2],
        "cut tiff": tiff[: len(tiff) // 2],
        "damaged png": bytes(damaged),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    }


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # pytest undoes the module's own filter
@pytest.mark.parametrize("kind", broken_files())
def test_a_broken_file_is_one_line_that_names_it(tmp_path, kind):
    path = tmp_path / "broken.jpg"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(UserError) as caught:
        read_rgb(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message and len(message) > len(str(path)) + 20


def small_files() -> dict[str, bytes]:
    """One of each kind, turned by its EXIF data where it has some."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "hello"
    files = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "DDS"):
        buffer = io.BytesIO()
        Image.fromarray(color()).save(buffer, kind, exif=exif)
        files[kind] = buffer.getvalue()
    return files


SMALL = small_files()


@pytest.mark.filterwarnings("ignore::UserWarning")  # remarks on damaged metadata
@settings(max_examples=200)
@given(st.sampled_from(sorted(SMALL)), st.integers(0, 2000), st.integers(0, 255))
@example("DDS", 80, 0)  # Pillow's NotImplementedError
@example("WEBP", SMALL["WEBP"].index(b"EXIF") + 19, 0)  # its struct.error
def test_damage_leads_to_pixels_or_one_line(tmp_path_factory, kind, place, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    content = bytearray(SMALL[kind])
    content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        pixels = read_rgb(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_rgb(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_rgb(tmp_path)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    """A file of a few bytes that says it has 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(UserError, match="40000x40000 is too large"):
        read_rgb(path)


def test_threads_read_the_same_and_report_each_its_own_error(tmp_path):
    good = save(tmp_path / "good.png", Image.fromarray(color()))
    bad = tmp_path / "bad.png"
    bad.write_bytes(broken_files()["cut png"])

    def read(path):
        try:
            return read_rgb(path)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, [good, bad] * 40))
    assert all(np.array_equal(image, color()) for image in results[::2])
    assert all(isinstance(text, str) and str(bad) in text for text in results[1::2])
