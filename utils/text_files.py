"""Label files and CSV files as they come: in which encoding, and with which line ends."""

import codecs
import os
import re
from collections.abc import Iterator

from utils.errors import UserError

# What no text holds: a file with any of these is of another kind, whatever decodes it.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_BLOCK = 1 << 20  # characters


def encoding_of(path: str | os.PathLike) -> str:
    """The encoding of a text file, as `open` names it: UTF-8 or UTF-16 (both with a byte order
    mark, as Windows writes them, or UTF-8 without), else Latin-1 in the form that Windows has.

    The whole file is decoded, a block at a time: what follows cannot fail halfway.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp1252"):
            if _is_text(path, encoding):
                return encoding
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    raise UserError(f"{path}: not plain text in UTF-8, UTF-16 or Latin-1; get another copy")


def _is_text(path: str | os.PathLike, encoding: str) -> bool:
    try:
        with open(path, encoding=encoding) as file:
            while block := file.read(_BLOCK):
                if _CONTROL.search(block):
                    return False
    except UnicodeError:
        return False
    return True


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, stripped, with their numbers from 1; any kind of line end.

    Raises:
        UserError: as `encoding_of`.
    """
    with open(path, encoding=encoding_of(path)) as file:
        for number, line in enumerate(file, start=1):
            if line := line.strip():
                yield number, line
