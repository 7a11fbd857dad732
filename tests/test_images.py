"""Image files: decoding of every kind, and which files a folder holds."""

import os
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data import images
from utils.data.images import list_files, read_rgb, unique_names
from utils.errors import UserError

GRADIENT = np.uint8(np.arange(30) * 6 + np.arange(20)[:, None] * 3)  # to the right and down
COLOURS = np.stack([GRADIENT, 255 - GRADIENT, GRADIENT // 2], axis=-1)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """File names are relative to an empty folder."""
    monkeypatch.chdir(tmp_path)


def saved_and_read(picture: Image.Image, name: str, **options) -> np.ndarray:
    picture.save(name, **options)
    return read_rgb(name)


def encoded(kind: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(COLOURS).resize((90, 60)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_rgb_is_read_as_it_is(suffix):
    pixels = saved_and_read(Image.fromarray(COLOURS), f"a.{suffix}", lossless=True)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, COLOURS)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_are_decoded_to_pillows_pixels(photo, mode, quality, subsampling, progressive):
    """Whatever decodes them; odd sizes end in half a block."""
    picture = Image.open(photo).convert(mode).resize((223, 225))
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    pixels = saved_and_read(picture, "a.jpg", quality=quality, progressive=progressive, **options)
    np.testing.assert_array_equal(pixels, Image.open("a.jpg").convert("RGB"))


def test_16_bit_rgb_keeps_the_high_bytes():
    cv2.imwrite("a.png", np.uint16(257) * COLOURS[..., ::-1])
    np.testing.assert_array_equal(read_rgb("a.png"), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_has_three_equal_channels(mode):
    stripes = np.uint8([[0, 255] * 4])
    pixels = saved_and_read(Image.fromarray(stripes).convert(mode), "a.png")
    np.testing.assert_array_equal(pixels, np.stack([stripes] * 3, axis=-1))


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
def test_values_are_scaled_by_the_range_they_span(levels, expected):
    pixels = saved_and_read(Image.fromarray(levels), "a.tif")
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=1)


def test_cmyk_is_converted():
    cyan = saved_and_read(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.jpg", quality=100)
    np.testing.assert_allclose(cyan[4, 4], [0, 255, 255], atol=3)


def test_palette_is_looked_up_and_transparent_pixels_are_white():
    picture = Image.fromarray(np.uint8([[0, 1, 2]]))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    assert saved_and_read(picture, "a.png").tolist() == [[red, green, blue]]
    pixels = saved_and_read(picture, "a.gif", transparency=1)
    assert pixels.tolist() == [[red, [255] * 3, blue]]
    rgba = Image.fromarray(np.uint8([[(200, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]]))
    pixels = saved_and_read(rgba, "b.png")
    np.testing.assert_allclose(pixels[0], [[200, 0, 0], [255] * 3, [204] * 3], atol=1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animations_give_their_first_frame(suffix):
    first, *others = (Image.new("RGB", (16, 16), shade) for shade in ("red", "lime", "blue"))
    options = {"save_all": True, "append_images": others, "lossless": True}
    assert saved_and_read(first, f"a.{suffix}", **options)[8, 8].tolist() == [255, 0, 0]


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


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = saved_and_read(Image.fromarray(COLOURS), name, exif=exif, quality=100)
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](np.asarray(Image.open(name))))


BROKEN = {
    "empty": b"",
    "web page": b"<!DOCTYPE html><html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "header alone": encoded("JPEG")[:20],
    "damaged PNG": encoded("PNG").replace(b"IDAT", b"I.AT"),
}
for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "PPM"):
    BROKEN[f"half a {kind}"] = encoded(kind)[: len(encoded(kind)) // 2]


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # pytest undoes the module's own filter
def test_a_broken_file_is_named(content):
    Path("broken.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"^broken\.jpg: .+; replace it or leave it out$"):
        read_rgb("broken.jpg")


def test_a_picture_of_nan_is_refused():
    with pytest.raises(UserError, match="NaN"):
        saved_and_read(Image.fromarray(np.float32([[0, np.nan]])), "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_decompression_bomb_is_refused(monkeypatch, name):
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(UserError, match="30x20 is too large"):
        saved_and_read(Image.fromarray(COLOURS), name)


def test_a_missing_file_and_a_folder_are_user_errors():
    with pytest.raises(UserError, match="missing"):
        read_rgb("a.jpg")
    with pytest.raises(UserError, match="cannot be read"):
        read_rgb(".")


# ---- which files ---------------------------------------------------------------------------------


def touch(*names: str) -> list[Path]:
    paths = [Path(name) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_list_files_walks_folders_and_keeps_files_as_they_are(capsys):
    # The first one is named itself: reading it says what is wrong.
    wanted = touch("not-an-image.txt", "a/1.JPG", "a/2.jfif", "a/below/3.png")
    touch("a/.hidden/4.png", "a/Thumbs.db")
    assert list_files(["not-an-image.txt", "a"]) == wanted
    assert capsys.readouterr().err == ""


def test_list_files_lists_a_file_once_and_follows_links():
    touch("a/1.jpg", "b/2.jpg")
    os.symlink("1.jpg", "a/3.jpg")
    os.symlink("../b", "a/linked")
    os.symlink("../a", "b/loop")
    assert list_files(["a", "a/1.jpg"]) == [Path("a/1.jpg"), Path("a/linked/2.jpg")]


def test_list_files_says_what_it_leaves_out(capsys):
    os.mkdir("empty")
    touch("a/1.jpg", "a/film.xyz", "a/model.h5", *(f"a/{i}.heic" for i in range(3)))
    assert list_files(["missing\n.jpg", "empty", "a"]) == [Path("a/1.jpg")]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("skipped: ") for line in lines)
    assert r"missing\n.jpg: no such" in lines[0] and "empty: holds no file" in lines[1]
    assert "3 .heic files (convert them, or pip install pillow-heif), 1 " in lines[2]
    assert "1 .xyz file" in lines[2] and "1 .h5 file" in lines[2]
    with pytest.raises(UserError, match="empty: holds no file to read"):
        list_files(["empty"])


def test_list_files_leaves_out_results():
    touch("1.jpg", "out/1_sheet.jpg")
    assert list_files(["."], output="out") == [Path("1.jpg")]
    with pytest.raises(UserError, match="both read and written"):
        list_files(["out"], output="out")


def test_unique_names_keep_stems_apart():
    paths = ["x/happy.jpg", "x/1.jpg", "y/1.jpg", "y/1.png", "y/A.jpg", "z/a.jpg", "Y_1.jpg"]
    names = unique_names([Path(path) for path in paths])
    assert names == ["happy", "x_1", "y_1", "y_1-2", "y_A", "z_a", "Y_1-3"]
