"""The forms in which AffectNet is handed around, each read into one table of faces.

- The npy release: `train_set/images/N.jpg` + `train_set/annotations/N_exp.npy`, `val_set/` alike.
- The older release: `Manually_Annotated_Images/` (whole photos) + `training.csv`, `validation.csv`.
- `affectnet.csv`: a list of images with columns phase, img_path, label.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.labels import AFFECTNET
from utils.progress import progress
from utils.text_files import encoding_of

REPOSITORY = Path(__file__).resolve().parents[2]
_UNUSED = {8: "none", 9: "uncertain", 10: "non-face"}
BOX = ["face_x", "face_y", "face_width", "face_height"]
_EXP = "_exp.npy"
# A file of a single value as numpy writes it. `np.load` parses the header as Python, which takes
# longer than all else of a conversion, and fails on damaged ones in many ways.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|])([biufSU]\d{1,4})', 'fortran_order': (?:True|False), "
    rb"'shape': \((?:1L?(?:, ?1L?)*,?)?\), \}[ \n]*",
    re.DOTALL,
)


class Release(NamedTuple):
    """What lies in a folder.

    `faces` has one row a face: phase (train or val), source (path of the image), label (code, NaN
    if unknown), reason (why the row cannot be used, empty if it can) and, where photos have to be
    cropped, face_x, face_y, face_width, face_height in pixels.
    """

    name: str
    faces: pd.DataFrame
    is_cropped: bool
    list_path: Path | None = None  # of the list, where that is the release


def read_release(folder: Path) -> Release:
    """Find which release lies in a folder and read its annotations, not its images.

    Raises:
        UserError: there is none, or one with parts missing or malformed.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; put AffectNet there or name it by --aff_path")
    _names(folder)
    if (folder / "train_set").is_dir():
        return Release("npy release", _read_npy(folder), is_cropped=True)
    photos = _first_existing(
        folder / "Manually_Annotated_Images",
        folder / "Manually_Annotated" / "Manually_Annotated_Images",
    )
    if photos is not None:
        return Release("Manually_Annotated release", _read_manual(folder, photos), is_cropped=False)
    path = folder / "affectnet.csv"
    if path.is_file():
        return Release("list affectnet.csv", _read_list(path), is_cropped=True, list_path=path)
    raise UserError(
        f"{folder}: no AffectNet release here; looked for train_set/ and val_set/ with images/ and "
        "annotations/ (npy release), for Manually_Annotated_Images/ with training.csv and "
        "validation.csv (older release), and for affectnet.csv; AffectNet is given out at "
        "http://mohammadmahoor.com/affectnet/"
    )


def _first_existing(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _names(folder: Path) -> list[str]:
    """What lies in a folder."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _label_reason(codes: pd.Series) -> np.ndarray:
    """Why rows with these codes (float, NaN for none) are dropped; empty where they are not."""
    reason = np.full(len(codes), "unknown expression code", dtype=object)
    reason[codes.isna()] = "no expression"
    for code, meaning in _UNUSED.items():
        reason[codes == code] = f"expression {code} ({meaning})"
    reason[codes.isin(range(len(AFFECTNET)))] = ""
    return reason


# --- npy release ---


def _read_npy(folder: Path) -> pd.DataFrame:
    parts = []
    for phase in ("train", "val"):
        images, annotations = (folder / f"{phase}_set" / n for n in ("images", "annotations"))
        for part in (images, annotations):
            if not part.is_dir():
                raise UserError(f"{part}: missing from the npy release; unpack it there")
        codes = {n.removesuffix(_EXP): None for n in _names(annotations) if n.endswith(_EXP)}
        for stem in progress(codes, desc=f"{phase} annotations", unit="img"):
            codes[stem] = _read_code(f"{annotations}/{stem}{_EXP}")
        files = {os.path.splitext(name)[0]: name for name in _names(images) if name[0] != "."}
        stems = sorted(files.keys() | codes.keys(), key=lambda stem: (len(stem), stem))
        label = pd.Series([codes.get(stem, np.nan) for stem in stems], dtype=float)
        reason = _label_reason(label)
        reason[label.isna()] = "unreadable annotation"
        reason[[stem not in codes for stem in stems]] = "no annotation"
        reason[[stem not in files for stem in stems]] = "missing image"
        source = [f"{images}/{files.get(stem, stem + '.jpg')}" for stem in stems]
        parts.append(
            pd.DataFrame({"phase": phase, "source": source, "label": label, "reason": reason})
        )
    return pd.concat(parts, ignore_index=True)


def _read_code(path: str) -> float:
    """An annotation, stored as a string, float or integer -> its number, NaN if it is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        start = 10 + int.from_bytes(content[8:10], "little")
        header = _NPY_HEADER.fullmatch(content[:start])
        if header is None:
            return np.nan
        order, dtype = header[1], np.dtype((header[1] + header[2]).decode())
        if dtype.kind != "U":
            return float(np.frombuffer(content, dtype, count=1, offset=start).item())
        text = content[start : start + dtype.itemsize]
        text = text.decode("utf-32-be" if order == b">" else "utf-32-le").rstrip("\0")
        return float(text) if len(content) >= start + dtype.itemsize else np.nan
    except (OSError, ValueError, TypeError):  # damaged, or not a number
        return np.nan


# --- older release ---


def _read_manual(folder: Path, photos: Path) -> pd.DataFrame:
    places = [folder, folder / "Manually_Annotated", folder / "Manually_Annotated_file_lists"]
    parts = []
    for phase, name in (("train", "training.csv"), ("val", "validation.csv")):
        path = _first_existing(*(place / name for place in places))
        if path is None:
            raise UserError(f"{folder / name}: missing from the Manually_Annotated release")
        rows = _read_csv(path, ["subDirectory_filePath", *BOX, "expression"])
        faces = rows[BOX].apply(pd.to_numeric, errors="coerce").astype(float)
        faces.insert(0, "phase", phase)
        faces.insert(1, "source", f"{photos}/" + rows["subDirectory_filePath"].fillna(""))
        faces.insert(2, "label", pd.to_numeric(rows["expression"], errors="coerce").astype(float))
        reason = _label_reason(faces["label"])
        is_box = np.isfinite(faces[BOX]).all(axis=1)
        is_box &= (faces["face_width"] > 0) & (faces["face_height"] > 0)
        reason[(reason == "") & ~is_box] = "no face box"
        reason[rows["subDirectory_filePath"].isna()] = "no image path"
        faces.insert(3, "reason", reason)
        parts.append(faces)
    return pd.concat(parts, ignore_index=True)


# --- affectnet.csv ---


def _read_list(path: Path) -> pd.DataFrame:
    rows = _read_csv(path, ["phase", "img_path", "label"])
    label = pd.to_numeric(rows["label"], errors="coerce").astype(float)
    reason = _label_reason(label)
    reason[~rows["phase"].isin(["train", "val"])] = "phase is neither train nor val"
    reason[rows["img_path"].isna()] = "no image path"
    # Paths are relative to the repository's root; some are to where one works or to the list.
    listed = rows["img_path"].fillna("").str.replace("\\", "/")
    bases = (REPOSITORY, Path.cwd(), path.parent.resolve())
    some = listed[reason == ""].head(100)
    base = max(bases, key=lambda base: sum(os.path.isfile(base / image) for image in some))
    source = [os.path.join(base, image) for image in listed]
    phase = rows["phase"].fillna("")
    return pd.DataFrame({"phase": phase, "source": source, "label": label, "reason": reason})


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """The named columns as strings without spaces around them; others are passed over.

    Any encoding that `encoding_of` knows; commas, or the semicolons or tabs of other Excels.
    """
    encoding = encoding_of(path)
    with open(path, encoding=encoding) as file:
        header = file.readline()
    try:
        rows = pd.read_csv(
            path,
            sep=max(",;\t", key=header.count),
            dtype=str,
            usecols=lambda name: name.strip() in columns,
            encoding=encoding,
        )
    except ValueError as error:  # pandas' parser errors are
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a CSV file that can be read ({reason})") from None
    rows.columns = rows.columns.str.strip()
    rows = rows.loc[:, ~rows.columns.duplicated()]
    missing = [name for name in columns if name not in rows]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    return rows.apply(lambda column: column.str.strip())
