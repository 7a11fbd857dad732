"""Turn any release of AffectNet into the class folders that training reads.

    python utils/convert_affectnet.py --aff_path datasets/AffectNet

writes train/0 ... train/7 and val/0 ... val/7, the list affectnet.csv and, with every row that was
dropped and why, convert_report.csv. Interrupted and started again, it continues.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.affectnet.crops import crop_files
from utils.affectnet.links import TEMPORARY, place_file
from utils.affectnet.lists import users_list, write_if_changed, write_lists
from utils.affectnet.releases import BOX, read_release
from utils.cli import Parser
from utils.errors import UserError, exit_on_user_error
from utils.images import IMAGE_SUFFIXES
from utils.labels import AFFECTNET, AFFECTNET_COUNTS
from utils.outputs import check_file, check_folder, writing
from utils.progress import progress
from utils.readers import UNFINISHED

PHASES = ("train", "val")
# Lies in the output folder and holds the margin of the crops there.
_MARGIN = ".conversion_margin"


class Conversion(NamedTuple):
    """What a conversion found and wrote."""

    release: str
    output: Path
    counts: dict[str, list[int]]  # images per class, of train and of val
    dropped: pd.DataFrame  # phase, source, label, reason

    def summary(self) -> str:
        """What came out beside the published counts, and what was dropped, as aligned text."""
        columns = [counts[p] for p in PHASES for counts in (self.counts, AFFECTNET_COUNTS)]
        names = [f"{code} {name}" for code, name in enumerate(AFFECTNET)]
        rows = [*zip(names, *columns, strict=True), ("all", *map(sum, columns))]
        lines = [f"{'':14}{'train':>8}  published{'val':>8}  published"]
        lines += ["{:14}{:8,}{:11,}{:8,}{:11,}".format(*row) for row in rows]
        for reason, number in self.dropped["reason"].value_counts().items():
            lines.append(f"dropped {number:,}: {reason}")
        for phase, numbers in self.counts.items():
            empty = [str(code) for code, number in enumerate(numbers) if number == 0]
            if empty:
                lines.append(
                    f"no image in {phase}/ of {', '.join(empty)}, which training on them needs"
                )
        total = sum(map(sum, self.counts.values()))
        lines.append(
            f"{self.output}: {total:,} images in train/ and val/; convert_report.csv lists the rest"
        )
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
        copy: copy ready images; by default they are hard-linked where the file system allows.
        margin: what is added to each side of a face box before a photo is cropped, as a fraction
            of the box's side.
        workers: processes that crop photos; one for each core by default.

    Raises:
        UserError: no release, one that is incomplete, or folders that hold something else.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if not 0 <= margin <= 2:
        raise UserError(f"--margin {margin}: must lie between 0 and 2")
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    folder = Path(aff_path)
    output = folder if output is None else Path(output)
    release = read_release(folder)
    print(f"{folder}: found the {release.name}, {len(release.faces):,} rows")
    faces = _with_targets(release.faces, release.is_cropped)
    used = faces[faces["reason"] == ""]
    hint = "make room or choose another --output, then run again to continue"
    with writing(output, hint):
        present = _check_output(output, set(used["target"]))
        if not release.is_cropped:
            _check_margin(output, margin, is_new=not present)
        aside = users_list(output, source=release.list_path)
        _make_folders(output)
        todo = used[~used["target"].isin(present)]
        if release.is_cropped:
            todo = used if copy else todo  # copies also take the place of an earlier run's links
            jobs = zip(todo["source"], todo["target"], strict=True)
            reasons = (place_file(source, f"{output}/{path}", copy=copy) for source, path in jobs)
        else:
            write_if_changed(output / _MARGIN, str(float(margin)).encode())
            reasons = crop_files(_crop_jobs(todo, output), margin, workers)
        bar = progress(reasons, desc="images", total=len(todo), unit="img")
        faces.loc[todo.index, "reason"] = pd.Series(list(bar), index=todo.index, dtype=object)
        write_lists(output, faces, source=release.list_path, aside=aside)
        (output / UNFINISHED).unlink()
    return _conclude(release.name, output, faces)


def _with_targets(faces: pd.DataFrame, is_cropped: bool) -> pd.DataFrame:
    """Add the path of each usable face below the output folder, `train/3/name.jpg`."""
    faces = faces.copy()
    used = faces[faces["reason"] == ""]
    repeated = used.duplicated(["phase", "source"])
    faces.loc[used.index[repeated], "reason"] = "listed before"
    used = used[~repeated]
    name = used["source"].map(os.path.basename).astype(str)
    is_image = name.str.lower().str.endswith(IMAGE_SUFFIXES) & ~name.str.startswith(".")
    faces.loc[used.index[~is_image], "reason"] = "not named as an image is"
    used, name = used[is_image], name[is_image]
    folder = used["phase"] + "/" + used["label"].astype(int).astype(str) + "/"
    if not is_cropped:
        name = name.map(lambda name: os.path.splitext(name)[0] + ".jpg")
    target = folder + name
    clashing = target.duplicated(keep=False)
    if clashing.any():  # images of one name from several folders: the folders go into the name
        sources = used.loc[clashing, "source"]
        top = os.path.commonpath([os.path.dirname(source) for source in sources])
        names = sources.map(lambda source: os.path.relpath(source, top).replace(os.sep, "_"))
        target[clashing] = folder[clashing] + names + ("" if is_cropped else ".jpg")
    faces["target"] = target
    faces.loc[target.index[target.duplicated()], "reason"] = "another image has its name"
    return faces


def _check_output(output: Path, targets: set[str]) -> set[str]:
    """List which of the targets are there already, before anything is written."""
    check_folder(output)
    for name in ("affectnet.csv", "convert_report.csv"):
        check_file(output / name)
    present = set()
    for folder in _class_folders(output):
        if check_folder(folder).is_dir():
            names = os.listdir(folder)
            present |= {
                f"{folder.relative_to(output).as_posix()}/{name}"
                for name in names
                if name.lower().endswith(IMAGE_SUFFIXES) and not _is_temporary(name)
            }
    foreign = sorted(present - targets)
    if foreign:
        raise UserError(
            f"{output}: the class folders hold {len(foreign):,} images that are not of this release"
            f" ({', '.join(foreign[:3])}); move train/ and val/ away or choose another --output"
        )
    return present


def _class_folders(output: Path) -> list[Path]:
    return [output / phase / str(i) for phase in PHASES for i in range(len(AFFECTNET))]


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _make_folders(output: Path) -> None:
    """Make the class folders, and clear half-written files away."""
    for folder in _class_folders(output):
        folder.mkdir(parents=True, exist_ok=True)
        for name in filter(_is_temporary, os.listdir(folder)):
            (folder / name).unlink()
    (output / UNFINISHED).touch()


def _crop_jobs(faces: pd.DataFrame, output: Path) -> Iterator[tuple]:
    boxes = faces[BOX].itertuples(index=False, name=None)
    for source, target, box in zip(faces["source"], faces["target"], boxes, strict=True):
        yield source, f"{output}/{target}", box


def _check_margin(output: Path, margin: float, *, is_new: bool) -> None:
    """See that a conversion that is continued does not mix two margins."""
    path = output / _MARGIN
    if not is_new and path.is_file() and path.read_text() != str(float(margin)):
        raise UserError(
            f"{output}: its faces were cropped with --margin {path.read_text()}; give the same, or"
            " move train/ and val/ away"
        )


def _conclude(release: str, output: Path, faces: pd.DataFrame) -> Conversion:
    is_used = faces["reason"] == ""
    used, dropped = faces[is_used], faces[~is_used]
    if used.empty:
        raise UserError(f"{output}: no row could be used; convert_report.csv says why")
    counts = {}
    for phase in PHASES:
        number = used.loc[used["phase"] == phase, "label"].value_counts()
        counts[phase] = [int(number.get(code, 0)) for code in range(len(AFFECTNET))]
    return Conversion(release, output, counts, dropped[["phase", "source", "label", "reason"]])


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--aff_path", metavar="DIR", default="datasets/AffectNet", help="folder of the release")
    add("--output", metavar="DIR", help="folder for train/ and val/ (default: that of --aff_path)")
    add("--copy", action="store_true", help="copy ready images instead of linking them")
    add(
        "--margin",
        metavar="X",
        type=float,
        default=0.0,
        help="what is added to each side of a face's box, as a fraction of its length",
    )
    add("--workers", metavar="N", type=int, default=os.cpu_count(), help="processes that crop")
    print(convert(**vars(parser.parse_args(argv))).summary())


if __name__ == "__main__":
    with exit_on_user_error(interrupted="interrupted; run the same command again to continue"):
        main()
