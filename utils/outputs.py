"""Where results go: checked before work starts, and a write that fails told in one line."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from utils.errors import UserError


@contextmanager
def writing(
    path: str | os.PathLike, hint: str = "make room there, or give another place"
) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `path`, into a `UserError` that names it.

    Args:
        hint: what the user can do.
    """
    try:
        yield
    except BrokenPipeError:  # of a pipe whose reader has gone, which is no mistake
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be written ({reason}); {hint}") from None


def encode_picture(picture: Image.Image, path: str | os.PathLike, **options) -> bytes:
    """The content of an image file, in the format that the path's ending says.

    Files are written from memory because Pillow, like `numpy.save`, does not notice where a disk
    is full before the end of its last block.
    """
    content = BytesIO()
    picture.save(content, Image.registered_extensions()[Path(path).suffix.lower()], **options)
    return content.getvalue()


def write_picture(picture: Image.Image, path: str | os.PathLike, **options) -> None:
    """Write an image file in the format that its ending says; options are Pillow's.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path):
        Path(path).write_bytes(encode_picture(picture, path, **options))


def check_folder(path: str | os.PathLike) -> Path:
    """Whether a folder for results is there or could be made, without making it.

    Raises:
        UserError: it could not.
    """
    path = Path(path)
    _check_place(path, path.absolute())
    return path


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder for results, and find out whether files can be written there.

    Raises:
        UserError: they cannot.
    """
    path = Path(path)
    with writing(path, "give another folder"):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable.tmp"
        probe.touch()
        probe.unlink()
    return path


def check_file(path: str | os.PathLike) -> Path:
    """Whether a file for results, and the folder around it, could be made, without making them.

    Raises:
        UserError: they could not.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give a file")
    if not os.path.exists(path):
        _check_place(path, path.absolute().parent)
    elif not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written, its permissions forbid it; give another file")
    return path


def _check_place(path: Path, folder: Path) -> None:
    """Whether a folder is there or could be made, for a path that is named where it cannot."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        reason = "it is" if there == path.absolute() else f"{there} is"
        raise UserError(f"{path}: cannot be written, {reason} no folder; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written, {there} forbids it; give another place")


class JsonLines:
    """A file of JSON objects, one a line, each of them there as soon as it is added.

    Raises:
        UserError: the file cannot be written, from the start or any more.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            print(json.dumps(record), file=self.file, flush=True)

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *error) -> None:
        with writing(self.path):  # tries again what could not be written before
            self.file.close()
