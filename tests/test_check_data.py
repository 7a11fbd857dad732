"""The check of a data set: every bad file and label on a line, and nothing else."""

import io
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import REPOSITORY
from tests.releases import write_npy_release
from utils import check_data
from utils.convert_affectnet import convert
from utils.data import duplicates
from utils.data.datasets import read_rafdb
from utils.data.duplicates import detail, find_matches, same_photo, thumbnail
from utils.errors import UserError
from utils.labels import RAFDB


@pytest.fixture
def raf(tmp_path, toy_raf):
    shutil.copytree(toy_raf, tmp_path / "raf")
    return tmp_path / "raf"


def write_folders(root: Path, classes: str, held_out: str = "val") -> Path:
    """Two splits with folders of these classes, which hold two different images each."""
    random = np.random.default_rng(0)
    for folder in (root / split / name for split in ("train", held_out) for name in classes):
        folder.mkdir(parents=True)
        for index in range(2):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def check(capsys, root: Path, *flags: str) -> tuple[int, list[str], str]:
    """Exit code, the lines without the root's path, and the summary."""
    capsys.readouterr()
    code = check_data.main([str(root), "--workers", "1", *flags])
    *lines, summary = capsys.readouterr().out.splitlines()
    return code, [line.removeprefix(f"{root}/") for line in lines], summary


def test_a_good_set_is_one_line(capsys, raf):
    code, lines, summary = check(capsys, raf)
    counts = "7 classes, 70 images, 0 bad files, 0 bad labels, 0 duplicates"
    assert (code, lines, summary) == (0, [], f"{raf}: RAF-DB, {counts}")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_problem_of_rafdb_is_named(capsys, raf, monkeypatch, workers):
    """Seven bad files and three bad labels: more than training's error names."""
    monkeypatch.setattr(check_data, "BLOCK", 8)
    labels = raf / "EmoLabel/list_patition_label.txt"
    text = labels.read_text().splitlines()
    labels.write_text("\n".join([*text, "train_00001.jpg 9", text[0], "nonsense"]))
    faces = raf / "Image/aligned"
    whole = (faces / "train_00010_aligned.jpg").read_bytes()
    for n in range(1, 5):
        (faces / f"train_0000{n}_aligned.jpg").write_bytes(whole[: 100 * n])
    (faces / "test_0021_aligned.jpg").write_bytes(b"<html>")
    for n in (7, 8):
        (faces / f"train_0000{n}_aligned.jpg").unlink()
    code, lines, summary = check(capsys, raf, "--workers", workers)
    assert code == 1 and summary.endswith(", 70 images, 7 bad files, 3 bad labels, 0 duplicates")
    expected = [
        *((f"EmoLabel/list_patition_label.txt:{n}", "label from 1 to 7") for n in (71, 72, 73)),
        *((f"Image/aligned/train_0000{n}_aligned.jpg", "cannot be read") for n in (1, 2, 3, 4)),
        *((f"Image/aligned/train_0000{n}_aligned.jpg", "missing") for n in (7, 8)),
        ("Image/aligned/test_0021_aligned.jpg", "not an image"),
    ]
    for line, (where, reason) in zip(lines, expected, strict=True):
        assert line.startswith(f"{where}: ") and reason in line


def test_class_folders(capsys, tmp_path):
    root = write_folders(tmp_path / "mine", "abc")
    (root / "train/a/0.png").write_bytes(b"")
    for path in (root / "val/b").iterdir():
        path.unlink()
    code, (problem, image), summary = check(capsys, root)
    assert code == 1 and problem == "val: no images of class b"
    assert image.startswith("train/a/0.png: not an image")
    assert summary == f"{root}: mine, 3 classes, 10 images, 1 bad file, 1 bad label, 0 duplicates"


def test_files_that_are_not_images_are_counted_by_kind(capsys, tmp_path):
    root = write_folders(tmp_path / "mine", "ab")
    for name in ("1.heic", "2.heic", "notes.txt", ".DS_Store"):
        (root / "train/a" / name).touch()
    code, (line,), summary = check(capsys, root)
    assert code == 1 and line.startswith(f"{root}: not images: 2 .heic files")
    assert "1 .txt file" in line and "8 images, 0 bad files" in summary


def test_excluded_images_are_left_out_by_training(capsys, raf):
    """And only they: checked again, the list is made anew."""
    for name in ("train_00005", "train_00033", "test_0004"):
        (raf / f"Image/aligned/{name}_aligned.jpg").write_bytes(b"\xff\xd8broken")
    (raf / "Image/aligned/train_00006_aligned.jpg").unlink()
    for _ in range(2):
        assert check(capsys, raf, "--exclude")[0] == 1
    data = read_rafdb(raf)
    assert (len(data.train), len(data.val)) == (46, 20)
    assert "4 images left out, listed in bad_images.csv" in data.summary()


@pytest.mark.parametrize(
    ("classes", "held_out", "name", "missing"),
    [
        ("01234567", "val", "AffectNet, 8 classes, 32 images", None),
        ("0123456", "val", "AffectNet, 7 classes, 28 images", None),
        ("0123567", "val", "AffectNet, 8 classes, 28 images", 4),
        ("1234567", "test", "RAF-DB, 7 classes, 28 images", None),
    ],
)
def test_numbered_folders(capsys, tmp_path, classes, held_out, name, missing):
    code, lines, summary = check(capsys, write_folders(tmp_path, classes, held_out))
    expected = [f"{split}: no images of class {missing}" for split in ("train", held_out)]
    assert lines == (expected if missing else []) and code == bool(missing)
    assert name in summary


def test_a_release_is_to_be_converted_first_and_can_be_checked_then(capsys, tmp_path):
    write_npy_release(tmp_path, train=range(8), val=range(8))
    with pytest.raises(UserError, match=r"train_set but no class folders.*convert_affectnet\.py"):
        check_data.main([str(tmp_path)])
    image = tmp_path / "train_set/images/3.jpg"
    content = image.read_bytes()
    image.write_bytes(content[:200] + content[-2:])  # both ends are there: linked undecoded
    convert(tmp_path)
    code, lines, summary = check(capsys, tmp_path)
    assert code == 1 and lines[0].startswith("train/3/3.jpg: ")
    # Both splits hold the same flat images.
    assert "16 images, 1 bad file, 0 bad labels, 7 duplicates" in summary


def test_names_that_break_lines_and_terminals(capsys, tmp_path):
    root = write_folders(tmp_path / "mine", "ab")
    for name in (b"\xe9.png", b"a\nb.png", "\u0131.png".encode()):
        with open(os.fsencode(root / "train/a") + b"/" + name, "wb"):
            pass
    code, lines, summary = check(capsys, root)
    assert code == 1 and len(lines) == 3 and "3 bad files" in summary
    assert any(line.startswith(r"train/a/a\nb.png: ") for line in lines)


def test_script(raf):
    """Also where the output knows no Unicode."""
    for path in (raf / "Image/aligned").iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    script = [sys.executable, "utils/check_data.py", raf]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stdout.count("\n") == 71


# ---- duplicates ----------------------------------------------------------------------------------


def crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    box = (0.03 * width, 0.06 * height, 0.93 * width, 0.96 * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def recompress(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


@pytest.fixture(scope="module")
def faces(toy_raf, photo):
    """70 toy faces, some of the same person, and 9 parts of a photo."""
    picture = Image.open(photo)
    toys = [Image.open(path) for path in sorted((toy_raf / "Image/aligned").iterdir())]
    corners = [(170 * x, 200 * y) for x in range(3) for y in range(3)]
    return [*toys, *(picture.crop((x, y, x + 170, y + 200)) for x, y in corners)]


@pytest.mark.parametrize("transform", ["flip", "jpeg", "crop", "half", "double", "flip and crop"])
def test_copies_are_found_and_nothing_else(faces, transform, monkeypatch):
    monkeypatch.setattr(duplicates, "_CHUNK", 8)
    change = {
        "flip": ImageOps.mirror,
        "jpeg": recompress,
        "crop": crop,
        "half": partial(ImageOps.scale, factor=0.5),
        "double": partial(ImageOps.scale, factor=2),
        "flip and crop": lambda image: crop(ImageOps.mirror(image)),
    }
    images = [np.asarray(image) for image in (*faces, *map(change[transform], faces[::4]))]
    matches = find_matches(np.stack([thumbnail(image) for image in images]))
    shown, other = ([detail(images[match[side]]) for match in matches] for side in (0, 1))
    found = {
        (min(match[:2]), max(match[:2])): match.flipped
        for match, same in zip(matches, same_photo(shown, other, matches), strict=True)
        if same
    }
    flipped = transform.startswith("flip")
    assert found == {(4 * i, len(faces) + i): flipped for i in range(len(faces[::4]))}


def test_duplicates_are_listed_with_both_places_and_labels(capsys, raf, monkeypatch):
    """And --exclude leaves out the training image, or the second of a split."""
    monkeypatch.setattr(check_data, "BLOCK", 2)
    faces, text = raf / "Image/aligned", (raf / "EmoLabel/list_patition_label.txt").read_text()
    label = {name: RAFDB[int(code) - 1] for name, code in map(str.split, text.splitlines())}
    sources = {"train_00030": "test_0003", "train_00031": "train_00005", "test_0009": "test_0004"}
    for copy, source in sources.items():
        image = Image.open(faces / f"{source}_aligned.jpg")
        if copy == "train_00030":
            image = ImageOps.mirror(crop(image))
        image.save(faces / f"{copy}_aligned.jpg", quality=60)
    code, lines, summary = check(capsys, raf)
    assert code == 1 and summary.endswith(", 3 duplicates (1 between splits)")
    for line, (copy, source) in zip(lines, sources.items(), strict=True):
        assert line.startswith(f"Image/aligned/{copy}_aligned.jpg: ")
        names = f"{label[f'{copy}.jpg']}, there {label[f'{source}.jpg']}"
        assert line.endswith(f"Image/aligned/{source}_aligned.jpg ({names})")
        assert ("mirror" in line) == (copy == "train_00030")
    assert check(capsys, raf, "--exclude")[0] == 1
    data = read_rafdb(raf)
    assert (len(data.train), len(data.val)) == (47, 20)
    assert check(capsys, raf)[0] == 0


def test_identical_and_flat_images(capsys, tmp_path):
    """Copies of one file are paired with the first; flat images only with those of their shade."""
    root = write_folders(tmp_path / "mine", "ab")
    for name in ("train/b/2.png", "train/b/3.png", "val/a/2.png"):
        shutil.copy(root / "train/a/1.png", root / name)
    for shade, name in ((0, "train/a/4.png"), (90, "train/b/4.png"), (90, "val/b/4.png")):
        Image.new("L", (40, 40), shade).save(root / name)
    code, lines, _ = check(capsys, root)
    named = {line.partition(": ")[0] for line in lines}
    assert code == 1
    assert named == {"train/a/1.png", "train/b/2.png", "train/b/3.png", "train/b/4.png"}
