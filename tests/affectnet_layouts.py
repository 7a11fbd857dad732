"""Small AffectNet releases on disk, and what a conversion made of them."""

import os

import numpy as np
import pandas as pd
from PIL import Image

GOOD = ("a/1.jpg", 10, 10, 50, 50, 0)  # a row of the older release that becomes a face


def write_image(path, shade, size=(16, 12)):
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
    """Rows (path, x, y, width, height, expression) and the photos, which tests may take away."""
    columns = "subDirectory_filePath face_x face_y face_width face_height expression".split()
    for name, rows in (("training.csv", train), ("validation.csv", val)):
        table = pd.DataFrame(rows, columns=columns, dtype=object)
        table.insert(5, "facial_landmarks", "1.5;2.5;3.5;4.5")
        table.assign(valence=0.1, arousal=-2).to_csv(root / name, index=False)
        for row in rows:
            if isinstance(row[0], str):
                write_image(root / "Manually_Annotated_Images" / row[0], 200, size=(100, 80))
    return root


def tree(root):
    """Class-folder images -> bytes, by path."""
    found = [*root.glob("train/*/*"), *root.glob("val/*/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def snapshot(root):
    """All files with what a rewrite would change."""
    stats = {path: path.stat() for path in root.rglob("*") if path.is_file()}
    return {path: (s.st_ino, s.st_mtime_ns, path.read_bytes()) for path, s in stats.items()}


def report(root):
    """convert_report.csv as {file name: reason}."""
    rows = pd.read_csv(root / "convert_report.csv", keep_default_na=False)
    assert list(rows) == ["phase", "source", "label", "reason"]
    return {os.path.basename(s): r for s, r in zip(rows["source"], rows["reason"], strict=True)}


def write_list(root, rows, **kwargs):
    columns = ["phase", "img_path", "label"]
    pd.DataFrame(rows, columns=columns, dtype=object).to_csv(root / "affectnet.csv", **kwargs)
