"""Sort any release of AffectNet into the class folders that training reads.

    python utils/convert_affectnet.py --aff_path datasets/AffectNet

writes train/0 ... train/7 and val/0 ... val/7, the list affectnet.csv, and convert_report.csv with
every row that was dropped and why. The folder may hold
  - the npy release: train_set/images/N.jpg, train_set/annotations/N_exp.npy, val_set/ likewise;
  - the Manually_Annotated release: photos in Manually_Annotated_Images/, and training.csv and
    validation.csv with a box around each face, which is cropped;
  - a list of images, affectnet.csv, with the columns phase, img_path, label.
An interrupted conversion continues when it is started again.
"""

import csv
import io
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil, floor, isfinite
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from PIL import Image

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import Parser, locate, whole_number
from utils.data.datasets import AFFECTNET_URL, TOY_MARKER, UNFINISHED
from utils.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    has_suffix,
    is_rubbish,
    read_rgb,
    save_picture,
)
from utils.errors import UserError, exit_on_user_error, plural, writing
from utils.labels import AFFECTNET, AFFECTNET_COUNTS
from utils.progress import progress

REPOSITORY = Path(__file__).resolve().parents[1]
PHASES = ("train", "val")
CLASS_FOLDERS = [f"{phase}/{code}" for phase in PHASES for code in range(len(AFFECTNET))]
CROP_SIZE = 224  # pixels

LIST_COLUMNS = ["phase", "img_path", "label"]
BOX_COLUMNS = ["face_x", "face_y", "face_width", "face_height"]
PHASE_NAMES = {"training": "train", "valid": "val", "validation": "val"} | {p: p for p in PHASES}
UNUSED = {8: "none", 9: "uncertain", 10: "non-face"}
CODES = {name: code for code, name in [*enumerate(AFFECTNET), *UNUSED.items()]} | {
    "happiness": 1, "sadness": 2, "surprised": 3, "fearful": 4, "disgusted": 5, "angry": 6
}  # fmt: skip
MARGIN = ".conversion_margin"  # a file in the output folder: the margin of the crops there

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


@dataclass(slots=True)
class Face:
    """A row of a release."""

    phase: str  # train or val
    source: str  # the image's path, or the place in the list where the row has none
    label: str  # as the release gives it: "3", "3.0", "happy"
    reason: str = ""  # why the row is dropped; empty where it is used
    box: Box | None = None  # of the face, where it is to be cropped from a photo
    target: str = ""  # path below the output folder: train/3/0.jpg


class Release(NamedTuple):
    name: str
    faces: list[Face]
    is_cropped: bool
    is_list: bool = False


class Conversion(NamedTuple):
    """What a conversion found and wrote."""

    release: str
    output: Path
    counts: dict[str, list[int]]  # images per class, of train and of val
    dropped: list[Face]

    def summary(self) -> str:
        """Return a table of counts beside the published ones, and why rows were dropped."""
        columns = [counts[p] for p in PHASES for counts in (self.counts, AFFECTNET_COUNTS)]
        names = [f"{code} {name}" for code, name in enumerate(AFFECTNET)]
        rows = [*zip(names, *columns, strict=True), ("all", *map(sum, columns))]
        lines = [f"{'':14}{'train':>8}  published{'val':>8}  published"]
        lines += ["{:14}{:8,}{:11,}{:8,}{:11,}".format(*row) for row in rows]
        reasons = Counter(face.reason for face in self.dropped).most_common(10)
        lines += [f"dropped {number:,}: {reason}" for reason, number in reasons]
        total = sum(map(sum, self.counts.values()))
        lines.append(f"{self.output}: {total:,} images; convert_report.csv lists dropped rows")
        return "\n".join(lines)


def convert(
    aff_path: str | os.PathLike,
    *,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    margin: float = 0.0,
    workers: int | None = None,
) -> Conversion:
    """Write class folders for the AffectNet release that lies in a folder.

    Args:
        aff_path: the folder of the release.
        output: where `train/` and `val/` go; the same folder by default.
        copy: copy images; by default they are hard-linked where the file system allows it.
        margin: added to each side of a face's box before a photo is cropped, as a fraction of the
            box's width and height.
        workers: processes that crop photos; one per core by default.

    Raises:
        UserError: there is no release, it is incomplete, or no row of it can be used; or the
            output folder holds other images, or cannot be written.
    """
    if not 0 <= margin <= 2:
        raise UserError(f"--margin {margin}: must be from 0 to 2")
    folder = Path(aff_path)
    output = folder if output is None else Path(output)
    try:
        release = read_release(folder)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None
    print(f"{folder}: found the {release.name}, {plural(len(release.faces), 'row')}")
    _choose_targets(release)
    todo = [face for face in release.faces if not face.reason]
    with writing(output):
        present = _present_images(output, {face.target for face in todo})
        if not (copy and release.is_cropped):  # copies also replace links of an earlier conversion
            todo = [face for face in todo if face.target not in present]
        if present and not release.is_cropped:
            _check_margin(output / MARGIN, margin)
        output.mkdir(parents=True, exist_ok=True)
        (output / UNFINISHED).touch()
        for name in CLASS_FOLDERS:
            with writing(output / name):
                (output / name).mkdir(parents=True, exist_ok=True)
        if release.is_cropped:
            reasons = (_place_image(face, output, copy) for face in todo)
        else:
            (output / MARGIN).write_text(str(float(margin)))
            reasons = _crop_faces(todo, output, margin, workers or os.cpu_count() or 1)
        bar = progress(reasons, desc="images", total=len(todo), unit="img")
        for face, reason in zip(todo, bar, strict=True):
            face.reason = reason

        used = [face for face in release.faces if not face.reason]
        dropped = [face for face in release.faces if face.reason]
        rows = ([face.phase, face.source, face.label, face.reason] for face in dropped)
        _write_csv(output / "convert_report.csv", ["phase", "source", "label", "reason"], rows)
        if used:
            if not (release.is_list and output.samefile(folder)):
                _write_list(output / "affectnet.csv", used)
            if (folder / TOY_MARKER).exists() and not (output / TOY_MARKER).exists():
                shutil.copyfile(folder / TOY_MARKER, output / TOY_MARKER)
        else:
            for name in reversed([*PHASES, *CLASS_FOLDERS]):
                if not os.listdir(output / name):
                    (output / name).rmdir()
            (output / MARGIN).unlink(missing_ok=True)
        (output / UNFINISHED).unlink()
    if not used:
        reason, number = Counter(face.reason for face in dropped).most_common(1)[0]
        example = next(face.source for face in dropped if face.reason == reason)
        raise UserError(
            f"{folder}: no row can be used; most common reason ({number:,} of {len(dropped):,} "
            f"rows): {reason}, for example {example}; {output / 'convert_report.csv'} lists all"
        )
    numbers = Counter(os.path.dirname(face.target) for face in used)
    counts = {p: [numbers[f"{p}/{code}"] for code in range(len(AFFECTNET))] for p in PHASES}
    return Conversion(release.name, output, counts, dropped)


# ---- releases ------------------------------------------------------------------------------------


def read_release(folder: Path) -> Release:
    """Find which release lies in a folder and read its annotations, but not its images.

    Raises:
        UserError: there is none, or it is incomplete, malformed or empty.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put AffectNet there or name it by --aff_path")
    photos = folder / "Manually_Annotated_Images"
    if not photos.is_dir():
        photos = folder / "Manually_Annotated" / photos.name
    if (folder / "train_set").is_dir():
        release = Release("npy release", _read_npy(folder), is_cropped=True)
    elif photos.is_dir():
        faces = _read_manual(folder, photos)
        release = Release("Manually_Annotated release", faces, is_cropped=False)
    elif (folder / "affectnet.csv").is_file():
        faces = _read_list(folder / "affectnet.csv")
        release = Release("list affectnet.csv", faces, is_cropped=True, is_list=True)
    else:
        raise UserError(
            f"{folder}: holds no train_set/, Manually_Annotated_Images/ or affectnet.csv; get "
            f"AffectNet from {AFFECTNET_URL} and unpack it there"
        )
    if not release.faces:
        raise UserError(f"{folder}: the {release.name} is empty; get another copy")
    return release


@lru_cache
def read_label(label: str) -> tuple[int | None, str]:
    """Return the code of an expression ("3", "3.0", "happy"), and why it is not used, if so."""
    try:
        code = float(label)
    except ValueError:
        code = CODES.get(label.lower())
    if label == "" or code != code:  # NaN
        return None, "no expression"
    if code in UNUSED:
        return None, f"expression {int(code)} ({UNUSED[code]})"
    if code not in range(len(AFFECTNET)):
        return None, f"unknown expression {label[:40]!r}"
    return int(code), ""


def _read_npy(folder: Path) -> list[Face]:
    faces = []
    for phase in PHASES:
        images, annotations = (folder / f"{phase}_set" / name for name in ("images", "annotations"))
        for part in (images, annotations):
            if not part.is_dir():
                raise UserError(f"{part}: missing from the npy release; unpack it there")
        names = [name for name in os.listdir(images) if not is_rubbish(name)]
        files = {os.path.splitext(n)[0]: n for n in names if has_suffix(n, IMAGE_SUFFIXES)}
        names = [name for name in os.listdir(annotations) if not is_rubbish(name)]
        labelled = {n.removesuffix("_exp.npy") for n in names if n.endswith("_exp.npy")}
        stems = sorted(files.keys() | labelled, key=lambda stem: (len(stem), stem))
        for stem in progress(stems, desc=f"{phase} annotations", unit="img"):
            face = Face(phase, f"{images}/{files.get(stem, f'{stem}.jpg')}", label="")
            if stem not in labelled:
                face.reason = "no annotation"
            else:
                with open(f"{annotations}/{stem}_exp.npy", "rb", buffering=0) as file:
                    face.label = _read_annotation(file.read())
                face.reason = read_label(face.label)[1] if face.label else "unreadable annotation"
            if stem not in files:
                face.reason = "missing image"
            faces.append(face)
    return faces


@lru_cache  # hundreds of thousands of files share a few contents
def _read_annotation(content: bytes) -> str:
    """Return the label in a .npy file, which holds a string or a number; "" if it is damaged."""
    try:
        label = np.load(io.BytesIO(content), allow_pickle=False).item()
        return label.decode() if isinstance(label, bytes) else str(label)
    # What numpy raises for damaged files.
    except (ValueError, EOFError, SyntaxError, TypeError, SystemError, TokenError):
        return ""


def _read_manual(folder: Path, photos: Path) -> list[Face]:
    places = [folder, folder / "Manually_Annotated", folder / "Manually_Annotated_file_lists"]
    faces = []
    for phase, name in zip(PHASES, ("training.csv", "validation.csv"), strict=True):
        path = next((place / name for place in places if (place / name).exists()), None)
        if path is None:
            raise UserError(f"{folder / name}: missing from the Manually_Annotated release")
        columns = ["subDirectory_filePath", "expression", *BOX_COLUMNS]
        for place, reason, (image, label, *numbers) in _read_table(path, columns):
            box = _read_box(numbers)
            reason = reason or ("" if image else "no image path") or read_label(label)[1]
            reason = reason or ("" if box else "no face box")
            faces.append(Face(phase, image or place, label, reason, box))
    _locate(faces, [photos])
    return faces


def _read_box(numbers: Sequence[str]) -> Box | None:
    try:
        box = left, top, width, height = tuple(map(float, numbers))
    except ValueError:
        return None
    return box if all(map(isfinite, box)) and width > 0 and height > 0 else None


def _read_list(path: Path) -> list[Face]:
    faces = []
    for place, reason, (phase, image, label) in _read_table(path, LIST_COLUMNS):
        phase = PHASE_NAMES.get(phase.lower(), phase)
        reason = reason or ("" if phase in PHASES else "phase is neither train nor val")
        reason = reason or ("" if image else "no image path") or read_label(label)[1]
        faces.append(Face(phase, image or place, label, reason))
    # Paths should be relative to the repository; some are to the working folder or to the list.
    _locate(faces, [REPOSITORY, Path.cwd(), path.parent.resolve()])
    return faces


def _read_table(path: Path, columns: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Read columns of a CSV file: of each row its place ("training.csv:17"), why it cannot be read,
    if so, and its cells without spaces around them. Commas, semicolons or tabs separate them.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if missing := [name for name in columns if name not in header]:
                expected = ", ".join(columns)
                raise UserError(f"{path}: no column {', '.join(missing)}; expected {expected}")
            indices = [header.index(name) for name in columns]
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            for row in rows:
                place, reason = f"{path.name}:{rows.line_num + 1}", ""
                if not any(row):
                    continue
                if not any(row[len(header) :]):
                    del row[len(header) :]  # empty cells that spreadsheets leave
                if len(row) != len(header):
                    reason = f"a row of {len(row)} fields under a header of {len(header)}"
                    row = [""] * len(header)
                yield place, reason, [row[index].strip() for index in indices]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a valid CSV file in UTF-8 ({error}); export it again"
        ) from None


def _locate(faces: Iterable[Face], bases: Sequence[Path]) -> None:
    """Replace the paths in a list by those of the images on this computer.

    Lists come from other computers, with backslashes, absolute, or relative to other folders: the
    longest end of a path that exists below one of `bases` is taken. What lay in one folder there
    is expected in one folder here: that of the first image found.
    """
    places: dict[str, list[str]] = {}  # of a folder in the list, where it may be here
    for face in faces:
        if face.reason:
            continue
        folder, _, name = face.source.replace("\\", "/").rpartition("/")
        if folder not in places:
            parts = folder.split("/")
            ends = ["/".join(parts[start:]) for start in range(len(parts) + 1)]
            places[folder] = [os.path.join(base, end) for end in ends for base in bases]
        found = [p for p in places[folder] if os.path.isfile(os.path.join(p, name))]
        if found:
            places[folder] = found[:1]
            face.source = os.path.join(found[0], name)
        else:
            face.reason = "missing image"


def _choose_targets(release: Release) -> None:
    """Give each usable face its path below the output folder, such as `train/3/name.jpg`."""
    usable, seen = [], set()
    for face in release.faces:
        if face.reason:
            continue
        name = os.path.basename(face.source)
        if is_rubbish(name) or not has_suffix(name, IMAGE_SUFFIXES):
            face.reason = "unsupported file type"
        elif (face.phase, face.source) in seen:
            face.reason = "listed before"
        else:
            seen.add((face.phase, face.source))
            name = name if release.is_cropped else f"{os.path.splitext(name)[0]}.jpg"
            face.target = f"{face.phase}/{read_label(face.label)[0]}/{name}"
            usable.append(face)
    # Some file systems do not tell upper and lower case apart.
    counts = Counter(face.target.casefold() for face in usable)
    clashing = [face for face in usable if counts[face.target.casefold()] > 1]
    if clashing:  # images of one name from several folders: the folders go into the name
        taken = {face.target for face in usable if counts[face.target.casefold()] == 1}
        sources = [os.path.abspath(face.source) for face in clashing]
        top = os.path.commonpath([os.path.dirname(source) for source in sources])
        for face, source in zip(clashing, sources, strict=True):
            name = os.path.relpath(source, top).replace(os.sep, "_")
            name = name if release.is_cropped else f"{name}.jpg"
            face.target = f"{os.path.dirname(face.target)}/{name}"
            if face.target in taken:
                face.reason = "its name is taken by another image"
            taken.add(face.target)


# ---- images --------------------------------------------------------------------------------------


def _place_image(face: Face, output: Path, copy: bool) -> str:
    """Hard-link an image into its class folder, or copy it; return why it cannot be used, or "".

    An existing target stays, except a link where `copy` asks for a file of its own.
    """
    source, target = face.source, f"{output}/{face.target}"
    if os.path.exists(target) and not (copy and os.stat(target).st_nlink > 1):
        return ""
    if not _is_whole(source):
        return "unreadable image"
    if not copy:
        try:  # a symbolic link is followed, which os.link does not do on Linux
            os.link(os.path.realpath(source) if os.path.islink(source) else source, target)
            return ""
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, _temporary(target))
    os.replace(_temporary(target), target)
    return ""


def _is_whole(path: str) -> bool:
    """Whether an image can be decoded; a JPEG with its start and end markers is not tried."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(3)
            file.seek(-64, os.SEEK_END)
            if start == b"\xff\xd8\xff" and b"\xff\xd9" in file.read():
                return True
        read_rgb(path)
    except (OSError, UserError):
        return False
    return True


def _crop_faces(faces: Sequence[Face], output: Path, margin: float, workers: int) -> Iterator[str]:
    """Crop faces from their photos in parallel; yield why each cannot be used, or ""."""
    crop = partial(_crop_face_file, output=output, margin=margin)
    with ProcessPoolExecutor(  # whose processes leave Ctrl-C to the parent
        workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as processes:
        yield from processes.map(crop, faces, chunksize=16)


def _crop_face_file(face: Face, output: Path, margin: float) -> str:
    target = f"{output}/{face.target}"
    try:
        photo = Image.fromarray(read_rgb(face.source))
    except UserError:
        return "unreadable image"
    crop = crop_face(photo, face.box, margin)
    if crop is None:
        return "face box outside the image"
    save_picture(crop, _temporary(target), quality=95)
    os.replace(_temporary(target), target)
    return ""


def crop_face(photo: Image.Image, box: Box, margin: float) -> Image.Image | None:
    """Cut a face from an RGB photo and resize it to CROP_SIZE squared.

    The margin, a fraction of the box's width and height, is added on each side. What reaches beyond
    the photo is black, so that the face keeps its place and proportions. None if the box lies
    outside the photo, or is far too large for it.
    """
    left, top, width, height = box
    left, right = left - margin * width, left + (1 + margin) * width
    top, bottom = top - margin * height, top + (1 + margin) * height
    if min(photo.width, right) - max(0, left) < 1 or min(photo.height, bottom) - max(0, top) < 1:
        return None
    x0, x1 = min(0, floor(left)), max(photo.width, ceil(right))
    y0, y1 = min(0, floor(top)), max(photo.height, ceil(bottom))
    if (x1 - x0) * (y1 - y0) > MAX_PIXELS:
        return None
    if (x0, y0, x1, y1) != (0, 0, *photo.size):
        photo = photo.crop((x0, y0, x1, y1))
    box = (left - x0, top - y0, right - x0, bottom - y0)
    return photo.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC, box=box)


# ---- the output folder ---------------------------------------------------------------------------


def _present_images(output: Path, targets: set[str]) -> set[str]:
    """List the targets that an earlier conversion has written.

    Raises:
        UserError: the class folders hold other images, which training would read too.
    """
    present = {
        f"{folder}/{name}"
        for folder in CLASS_FOLDERS
        if (output / folder).is_dir()
        for name in os.listdir(output / folder)
        if has_suffix(name, IMAGE_SUFFIXES) and not is_rubbish(name)
    }
    if foreign := sorted(present - targets):
        raise UserError(
            f"{output}: the class folders hold {plural(len(foreign), 'image')} that this release "
            f"does not put there ({', '.join(foreign[:3])}); move train/ and val/ away or choose "
            "another --output"
        )
    return present


def _check_margin(path: Path, margin: float) -> None:
    """Refuse to mix crops of two margins."""
    if path.is_file() and float(path.read_text()) != margin:
        raise UserError(
            f"{path.parent}: its faces were cropped with --margin {path.read_text()}; give the "
            "same margin, or move train/ and val/ away"
        )


def _write_list(path: Path, used: Sequence[Face]) -> None:
    """Write affectnet.csv as the released one is, with paths relative to the repository.

    A list that the user brought is kept beside it.
    """
    aside = path.with_name("affectnet.original.csv")
    if path.is_file() and not _is_own_list(path):
        if aside.exists() and aside.read_bytes() != path.read_bytes():
            raise UserError(
                f"{path}: was not written by this script, and {aside.name} exists; move one of "
                "them away and run again"
            )
        path.replace(aside)
        print(f"{path}: was not written by this script; kept as {aside.name}")
    root = path.parent.resolve()
    root = root.relative_to(REPOSITORY) if root.is_relative_to(REPOSITORY) else root
    rows = ([f.phase, f"{root.as_posix()}/{f.target}", f.target.split("/")[1]] for f in used)
    _write_csv(path, LIST_COLUMNS, rows)


def _is_own_list(path: Path) -> bool:
    """Whether a list holds nothing but images in the class folder of their phase and label."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        return next(rows, []) == LIST_COLUMNS and all(
            len(row) == 3
            and f"{row[0]}/{row[2]}" in CLASS_FOLDERS
            and f"/{os.path.dirname(row[1])}".endswith(f"/{row[0]}/{row[2]}")
            for row in rows
        )


def _write_csv(path: Path, columns: list[str], rows: Iterable[list[str]]) -> None:
    temporary = _temporary(str(path))
    with writing(path):
        # Names of files may hold bytes that are not valid UTF-8.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        os.replace(temporary, path)


def _temporary(path: str) -> str:
    """The hidden file that is renamed to `path` once it is whole."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".tmp-{name}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--aff_path",
        metavar="DIR",
        default=locate("datasets/AffectNet"),
        help="folder of the release",
    )
    add("--output", metavar="DIR", help="folder for train/ and val/ (default: that of --aff_path)")
    add("--copy", action="store_true", help="copy images instead of linking them")
    help = "added to each side of a face's box, as a fraction of its width and height"
    add("--margin", metavar="X", type=float, default=0.0, help=help)
    help = "processes that crop photos"
    add("--workers", metavar="N", type=whole_number(1), default=os.cpu_count(), help=help)
    print(convert(**vars(parser.parse_args(argv))).summary())


if __name__ == "__main__":
    with exit_on_user_error(interrupted="interrupted; run the same command again to continue"):
        main()
