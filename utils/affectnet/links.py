"""Ready images linked or copied to where training looks for them."""

import os
import shutil

from utils.errors import UserError
from utils.images import read_rgb

TEMPORARY = ".tmp"  # a file's ending, and a dot in front, until it is whole


def place_file(source: str, target: str, *, copy: bool) -> str:
    """Give an image a second place, by a hard link or, where there are none, a copy.

    An existing target stays, but for a link where `copy` asks for a file of its own.

    Returns:
        Why that could not be, empty if it could.
    """
    if os.path.exists(target) and not (copy and _is_link(source, target)):
        return ""
    if not os.path.isfile(source):
        return "missing image"
    if not _is_whole(source):
        return "unreadable image"
    if not copy:
        try:
            # Linux would link the symbolic link itself.
            os.link(os.path.realpath(source) if os.path.islink(source) else source, target)
            return ""
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, temporary(target))
    os.replace(temporary(target), target)
    return ""


def _is_link(source: str, target: str) -> bool:
    """Whether an existing target is a second name of the source."""
    if not os.path.exists(source) or os.path.realpath(source) == os.path.realpath(target):
        return False
    return os.path.samefile(source, target)


def _is_whole(path: str) -> bool:
    """Whether an image can be decoded, which is not tried where a JPEG has both its ends."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(3)
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
            if start == b"\xff\xd8\xff" and b"\xff\xd9" in file.read():
                return True
        read_rgb(path)
    except (OSError, UserError):
        return False
    return True


def temporary(path: str) -> str:
    """The name under which a file is written before it is renamed to `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}{TEMPORARY}")
