"""The check of a data set: every bad file and label on a line, and nothing else."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.conftest import REPOSITORY
from tests.releases import write_npy_release
from utils import check_data
from utils.convert_affectnet import convert
from utils.data.datasets import read_affectnet, read_rafdb
from utils.data.duplicates import detail, find_matches, same_photo, thumbnail
from utils.errors import UserError
from utils.labels import RAFDB


@pytest.fixture
def raf(tmp_path, toy_raf):
    shutil.copytree(toy_raf, tmp_path / "raf")
    return tmp_path / "raf"


def write_folders(root: Path, classes: str, count: int = 2) -> Path:
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise = np.random.default_rng([*f"{split}{name}{index}".encode()])
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def check(capsys, root: Path, *flags: str) -> tuple[int, list[str], str]:
    """Exit code, the lines below the root's path, and the summary."""
    code = check_data.main([str(root), *flags])
    *lines, summary = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{root}/") for line in lines)
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
    for name in ("1.heic", "2.heic", "notes.txt", ".DS_Store"):
        (root / "train/a" / name).write_text("x")
    assert check_data.main([str(root), "--workers", "1"]) == 1
    problem, image, others, summary = capsys.readouterr().out.splitlines()
    assert problem == f"{root}/val: no images of class b"
    assert image.startswith(f"{root}/train/a/0.png: not an image")
    assert others.startswith(f"{root}: not images: 2 .heic files") and "1 .txt file" in others
    assert summary == f"{root}: mine, 3 classes, 10 images, 1 bad file, 1 bad label, 0 duplicates"


def test_excluded_images_are_left_out_by_training(raf):
    """And only they: checked again, the list is made anew."""
    (raf / "toy.json").unlink()
    for name in ("train_00005", "train_00033", "test_0004"):
        (raf / f"Image/aligned/{name}_aligned.jpg").write_bytes(b"\xff\xd8broken")
    (raf / "Image/aligned/train_00006_aligned.jpg").unlink()
    for _ in range(2):
        assert check_data.main([str(raf), "--workers", "1", "--exclude"]) == 1
    data = read_rafdb(raf)
    assert (len(data.train), len(data.val)) == (46, 20)
    assert "4 images left out, listed in bad_images.csv" in data.summary()
    folders = write_folders(raf.parent / "folders", "ab")
    (folders / "val/b/0.png").write_bytes(b"")
    assert check_data.main([str(folders), "--workers", "1", "--exclude"]) == 1
    assert len(read_affectnet(folders).val) == 3


@pytest.mark.parametrize(
    ("classes", "count", "lines"),
    [
        ("01234567", 8, []),
        ("0123456", 7, []),
        ("0123567", 8, ["train: no images of class 4", "val: no images of class 4"]),
    ],
)
def test_affectnet_with_and_without_contempt(capsys, tmp_path, classes, count, lines):
    root = write_folders(tmp_path, classes)
    code, found, summary = check(capsys, root, "--workers", "1")
    assert (code, found) == (int(bool(lines)), lines)
    assert f"AffectNet, {count} classes, {4 * len(classes)} " in summary


def test_a_release_is_to_be_converted_first_and_can_be_checked_then(capsys, tmp_path):
    codes = [*range(8), 8]
    write_npy_release(tmp_path, train=codes, val=codes)
    with pytest.raises(UserError, match=r"train_set but no class folders.*convert_affectnet\.py"):
        check_data.main([str(tmp_path)])
    image = tmp_path / "train_set/images/3.jpg"
    content = bytearray(image.read_bytes())
    image.write_bytes(content[:200] + content[-2:])  # both ends are there: linked undecoded
    convert(tmp_path)
    capsys.readouterr()
    code, lines, summary = check(capsys, tmp_path)
    assert code == 1 and lines[0].startswith("train/3/3.jpg: ")
    # Both splits hold the same flat images.
    assert "16 images, 1 bad file, 0 bad labels, 7 duplicates" in summary


def test_names_that_break_lines_and_terminals(capsys, tmp_path):
    root = write_folders(tmp_path, "ab")
    for name in (b"\xe9.png", b"a\nb.png", "\u0131.png".encode()):
        with open(os.fsencode(root / "train/a") + b"/" + name, "wb"):
            pass
    code, lines, summary = check(capsys, root, "--workers", "1")
    assert code == 1 and len(lines) == 3 and "3 bad files" in summary
    assert any(line.startswith(r"train/a/a\nb.png: ") for line in lines)


def test_script(raf):
    """Its exit codes, also where the output knows no Unicode."""
    script = [sys.executable, "utils/check_data.py"]
    run = {"cwd": REPOSITORY, "capture_output": True, "text": True}
    assert subprocess.run([*script, raf], **run).returncode == 0
    for path in (raf / "Image/aligned").iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    bad = subprocess.run([*script, raf], **run, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert bad.returncode == 1 and bad.stdout.count("\n") == 71


def crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    box = (0.03 * width, 0.06 * height, 0.93 * width, 0.96 * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


@pytest.fixture(scope="module")
def faces(toy_raf, photo):
    """70 toy faces, some of the same person, and 9 parts of a photo."""
    picture = Image.open(photo)
    toys = [Image.open(path) for path in sorted((toy_raf / "Image/aligned").iterdir())]
    corners = [(170 * x, 200 * y) for x in range(3) for y in range(3)]
    return [*toys, *(picture.crop((x, y, x + 170, y + 200)) for x, y in corners)]


@pytest.mark.parametrize("transform", ["flip", "jpeg", "crop", "half", "double", "all"])
def test_copies_are_found_and_nothing_else(faces, transform):
    def change(image: Image.Image) -> Image.Image:
        if transform in ("flip", "all"):
            image = ImageOps.mirror(image)
        if transform in ("crop", "all"):
            image = crop(image)
        if transform in ("half", "double"):
            image = ImageOps.scale(image, 0.5 if transform == "half" else 2)
        if transform == "jpeg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=50)
            image = Image.open(file)
        return image

    images = [np.asarray(image) for image in (*faces, *map(change, faces[::4]))]
    matches = find_matches(np.stack([thumbnail(image) for image in images]))
    shown, other = ([detail(images[match[side]]) for match in matches] for side in (0, 1))
    found = {
        (min(match[:2]), max(match[:2])): match.flipped
        for match, same in zip(matches, same_photo(shown, other, matches), strict=True)
        if same
    }
    flipped = transform in ("flip", "all")
    assert found == {(4 * i, len(faces) + i): flipped for i in range(len(faces[::4]))}


def test_duplicates_are_listed_with_both_places_and_labels(capsys, raf):
    """And --exclude leaves out the training image, or the second of a split."""
    faces, text = raf / "Image/aligned", (raf / "EmoLabel/list_patition_label.txt").read_text()
    label = {name: RAFDB[int(code) - 1] for name, code in map(str.split, text.splitlines())}
    sources = {"train_00030": "test_0003", "train_00031": "train_00005", "test_0009": "test_0004"}
    for copy, source in sources.items():
        image = Image.open(faces / f"{source}_aligned.jpg")
        if copy == "train_00030":
            image = ImageOps.mirror(crop(image))
        image.save(faces / f"{copy}_aligned.jpg", quality=60)
    code, lines, summary = check(capsys, raf, "--workers", "1")
    assert code == 1 and summary.endswith(", 3 duplicates (1 between splits)")
    for line, (copy, source) in zip(lines, sources.items(), strict=True):
        assert line.startswith(f"Image/aligned/{copy}_aligned.jpg: ")
        names = f"{label[f'{copy}.jpg']}, there {label[f'{source}.jpg']}"
        assert line.endswith(f"Image/aligned/{source}_aligned.jpg ({names})")
        assert ("mirror" in line) == (copy == "train_00030")
    assert check_data.main([str(raf), "--workers", "1", "--exclude"]) == 1
    data = read_rafdb(raf)
    assert (len(data.train), len(data.val)) == (47, 20)
    assert check_data.main([str(raf), "--workers", "1"]) == 0


def test_identical_and_flat_images(capsys, tmp_path):
    """Copies of one file are paired with the first; flat images only with those of their shade."""
    root = write_folders(tmp_path, "ab")
    for name in ("train/b/2.png", "train/b/3.png", "val/a/2.png"):
        shutil.copy(root / "train/a/1.png", root / name)
    for shade, name in ((0, "train/a/4.png"), (90, "train/b/4.png"), (90, "val/b/4.png")):
        Image.new("L", (40, 40), shade).save(root / name)
    code, lines, _ = check(capsys, root, "--workers", "1")
    named = {line.partition(": ")[0] for line in lines}
    assert code == 1
    assert named == {"train/a/1.png", "train/b/2.png", "train/b/3.png", "train/b/4.png"}
