"""What a conversion lists: its images in `affectnet.csv`, dropped rows in `convert_report.csv`."""

import os
from pathlib import Path

import pandas as pd

from utils.affectnet.links import temporary
from utils.affectnet.releases import REPOSITORY
from utils.errors import UserError


def users_list(output: Path, *, source: Path | None) -> Path | None:
    """Where an affectnet.csv that the user brought has to move; None where there is none, or where
    it is the release itself and stays."""
    path = output / "affectnet.csv"
    if not path.is_file() or _is_same(path, source):
        return None
    if f",{_listed_root(output)}/train/".encode() in path.read_bytes():
        return None
    aside = path.with_name("affectnet.original.csv")
    if aside.exists():
        raise UserError(f"{path}: not written here, and {aside.name} exists; move it away")
    return aside


def _is_same(path: Path, source: Path | None) -> bool:
    return source is not None and source.resolve() == path.resolve()


def _listed_root(output: Path) -> str:
    """The output folder as lists name it, below the repository relative to its root."""
    root = output.resolve()
    root = root.relative_to(REPOSITORY) if root.is_relative_to(REPOSITORY) else root
    return root.as_posix()


def write_lists(
    output: Path, faces: pd.DataFrame, *, source: Path | None, aside: Path | None
) -> None:
    """Write both CSV files; a list that the user brought moves aside, or is the source."""
    is_used = faces["reason"] == ""
    used, dropped = faces[is_used], faces[~is_used]
    label = dropped["label"].map("{:g}".format, na_action="ignore")
    report = dropped[["phase", "source"]].assign(label=label, reason=dropped["reason"])
    _write_csv(report, output / "convert_report.csv")
    path = output / "affectnet.csv"
    if _is_same(path, source):
        return
    if aside is not None:
        path.rename(aside)
        print(f"{path}: was not written by this script; kept as {aside.name}")
    image = f"{_listed_root(output)}/" + used["target"]
    listed = pd.DataFrame({"phase": used["phase"], "img_path": image, "label": used["label"]})
    _write_csv(listed.astype({"label": int}), path)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    text = table.to_csv(index=False, lineterminator="\n")
    write_if_changed(path, text.encode(errors="surrogateescape"))


def write_if_changed(path: Path, content: bytes) -> None:
    """Replace a file at once, and only if that changes it."""
    if not path.is_file() or path.read_bytes() != content:
        Path(temporary(str(path))).write_bytes(content)
        os.replace(temporary(str(path)), path)
