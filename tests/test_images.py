"""Image files: decoding of every kind, and which files a folder holds."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.images import list_files, read_rgb, unique_names
from utils.errors import UserError

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


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_are_decoded_to_pillows_pixels(tmp_path, photo, subsampling, quality, mode):
    """Whatever decodes them; odd sizes end in half a block."""
    picture = Image.open(photo).convert(mode).resize((223, 225))
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    for progressive in (False, True):
        path = tmp_path / "a.jpg"
        save(path, picture, quality=quality, progressive=progressive, **options)
        np.testing.assert_array_equal(read_rgb(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_has_three_equal_channels(tmp_path, mode):
    stripes = np.where(np.arange(WIDTH) % 2, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    image = read_rgb(save(tmp_path / "a.png", Image.fromarray(stripes).convert(mode)))
    np.testing.assert_array_equal(image, np.stack([stripes] * 3, axis=-1))


def png(width: int, height: int, depth: int, raw: bytes) -> bytes:
    """An RGB file put together by hand, as Pillow writes neither 16 bits nor bombs."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        checksum = zlib.crc32(kind + data)
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    return content


def test_16_bit_rgb_keeps_the_high_bytes(tmp_path):
    rows = (color().astype(">u2") * 257).reshape(HEIGHT, -1)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    path = tmp_path / "a.png"
    path.write_bytes(png(WIDTH, HEIGHT, 16, raw))
    np.testing.assert_array_equal(read_rgb(path), color())


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(40_000, 40_000, 8, b""))
    with pytest.raises(UserError, match="40000x40000 is too large"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.uint16([[0, 100, 255]]), [0, 100, 255]),  # read as black before
        (np.uint16([[0, 100 * 257, 65535]]), [0, 100, 255]),
        (np.uint16([[0, 2048, 4095]]), [0, 127, 255]),  # 12 bits, as X-rays and raw files have
        (np.int32([[0, 128, 255]]), [0, 128, 255]),
        (np.int32([[0, 65536, 131072]]), [0, 127, 255]),  # no usual depth: the brightest is white
        (np.float32([[0, 0.5, 1]]), [0, 127, 255]),
        (np.float32([[-5, 100, 255]]), [0, 100, 255]),
        (np.float32([[0, 32768, 65535]]), [0, 127, 255]),
    ],
)
def test_values_are_scaled_by_the_range_they_span(tmp_path, levels, expected):
    image = read_rgb(save(tmp_path / "a.tif", Image.fromarray(levels)))
    np.testing.assert_allclose(image[0, :, 0], expected, atol=1)


def test_a_picture_of_nan_is_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.float32([[0, np.nan]])))
    with pytest.raises(UserError, match="NaN"):
        read_rgb(path)


def test_cmyk_is_converted(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    path = save(tmp_path / "a.jpg", cyan, quality=100)
    np.testing.assert_allclose(read_rgb(path)[4, 4], [0, 255, 255], atol=3)


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1, 2]]))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = read_rgb(save(tmp_path / "a.png", image))
    assert pixels[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.uint8([[(200, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]])
    pixels = read_rgb(save(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_allclose(pixels[0], [[200, 0, 0], [255] * 3, [204] * 3], atol=1)
    palette = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
    palette.putpalette([10, 20, 30])
    assert (read_rgb(save(tmp_path / "a.gif", palette, transparency=0)) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animations_give_their_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), shade) for shade in ("red", "lime", "blue")]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    path = save(tmp_path / f"a.{suffix}", frames[0], **options)
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
    path = save(tmp_path / "a.jpg", Image.fromarray(color()), exif=exif, quality=100)
    decoded = np.asarray(Image.open(path))
    np.testing.assert_array_equal(read_rgb(path), UPRIGHT[orientation](decoded))


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


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="missing"):
        read_rgb(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_rgb(tmp_path)


# ---- which files ---------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_list_files_walks_folders_and_keeps_files_as_they_are(tmp_path, capsys):
    wanted = [tmp_path / "a" / name for name in ("1.JPG", "2.jfif", "below/3.png")]
    odd = tmp_path / "not-an-image.txt"  # named itself: reading it says what is wrong
    touch(odd, *wanted, tmp_path / "a" / ".hidden" / "4.png", tmp_path / "a" / "Thumbs.db")
    assert list_files([odd, tmp_path / "a"]) == [odd, *wanted]
    assert capsys.readouterr().err == ""


def test_list_files_lists_a_file_once_and_follows_links(tmp_path):
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg")
    os.symlink(tmp_path / "a" / "1.jpg", tmp_path / "a" / "3.jpg")
    os.symlink(tmp_path / "b", tmp_path / "a" / "linked")
    os.symlink(tmp_path / "a", tmp_path / "b" / "loop")
    found = list_files([tmp_path / "a", tmp_path / "a" / "1.jpg"])
    assert found == [tmp_path / "a" / "1.jpg", tmp_path / "a" / "linked" / "2.jpg"]


def test_list_files_says_what_it_leaves_out(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "1.jpg", tmp_path / "film.xyz", *(tmp_path / f"{i}.heic" for i in range(3)))
    missing = tmp_path / "missing.jpg"
    assert list_files([missing, tmp_path / "empty", tmp_path]) == [tmp_path / "1.jpg"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("skipped: ") for line in lines)
    assert str(missing) in lines[0] and str(tmp_path / "empty") in lines[1]
    assert "3 .heic files (convert them, or pip install pillow-heif), 1 .xyz file" in lines[2]


def test_list_files_leaves_out_results(tmp_path):
    touch(tmp_path / "1.jpg", tmp_path / "out" / "1_sheet.jpg")
    assert list_files([tmp_path], output=tmp_path / "out") == [tmp_path / "1.jpg"]
    with pytest.raises(UserError, match="both read and written"):
        list_files([tmp_path / "out"], output=tmp_path / "out")


def test_unique_names_keep_stems_apart():
    paths = ["x/happy.jpg", "x/1.jpg", "y/1.jpg", "y/1.png", "y/A.jpg", "z/a.jpg", "y_1.jpg"]
    names = unique_names([Path(path) for path in paths])
    assert names == ["happy", "x_1", "y_1", "y_1-2", "y_A", "z_a", "y_1-3"]
