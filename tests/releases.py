"""Small releases of data sets on disk, and what a conversion made of them."""

import csv
import os

import numpy as np
from PIL import Image

BOX = ["face_x", "face_y", "face_width", "face_height"]
MANUAL_COLUMNS = ["subDirectory_filePath", *BOX, "facial_landmarks", "expression", "valence"]
GOOD = ("a/1.jpg", 10, 10, 50, 50, 0)  # a row of the older release that becomes a face


def write_image(path, shade=0, size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 100, 50)).save(path)


def write_npy_release(root, train, val):
    """Phases as lists of what each N_exp.npy holds; image N has shade N."""
    for phase, codes in (("train_set", train), ("val_set", val)):
        annotations = root / phase / "annotations"
        annotations.mkdir(parents=True)
        for i, code in enumerate(codes):
            write_image(root / phase / "images" / f"{i}.jpg", i)
            np.save(annotations / f"{i}_exp.npy", code)
            np.save(annotations / f"{i}_val.npy", 0.5)
    return root


def write_manual_release(root, train, val):
    """Rows (path, x, y, width, height, expression) and their photos; a path may be None."""
    for name, rows in (("training.csv", train), ("validation.csv", val)):
        write_csv(root / name, MANUAL_COLUMNS, [[*r[:5], "1.5;2.5;3.5", r[5], 0.1] for r in rows])
        for path in filter(None, (row[0] for row in rows)):
            write_image(root / "Manually_Annotated_Images" / path, size=(100, 80))
    return root


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def tree(root):
    """Files in class folders -> bytes, by path."""
    found = [path for split in ("train", "val", "test") for path in root.glob(f"{split}/*/*")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def report(root):
    """convert_report.csv as {file name: reason}."""
    with open(root / "convert_report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {os.path.basename(source): reason for _, source, _, reason in rows}
