"""Checkpoints: safe reading and atomic writing.

They hold plain types and tensors only; files are data, never code. What a trained network's file
means is in `utils.trained`.
"""

import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from utils.errors import UserError
from utils.outputs import writing
from utils.places import checkpoint_file

# What a damaged file makes PyTorch raise, whose unpickler trusts the file to be well formed.
_DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old file or the whole new one."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it onto `path`.

    The temporary name is always the same, so what a killed run left behind is overwritten.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        failure = _failed_write(error)
        if failure is None:
            raise
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({failure.strerror}); what was there before is intact"
        ) from None


def _failed_write(error: BaseException | None) -> OSError | None:
    """The system's error, which torch.save buries under one of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source` in one step; a copy where links are unknown."""
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        if target.exists() and target.samefile(source):
            return  # renaming a file onto itself would leave the other name
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def load(path: str | os.PathLike) -> dict[Any, Any]:
    """Read a file that `torch.save` wrote, on the CPU, refusing anything but tensors and plain
    types (`weights_only=True`, without fallback).

    Raises:
        UserError: there is no such file, or it is no checkpoint, or a damaged one.
    """
    path = checkpoint_file(path)
    refused = f"{path}: not a checkpoint that can be read"
    try:
        if hint := _other_kind(path):
            raise UserError(f"{refused}; {hint}")
        is_zip = zipfile.is_zipfile(path)
        damaged = _damaged_record(path) if is_zip else None
        if damaged:
            raise UserError(f"{refused} ({damaged} is damaged); get another copy")
        # Mapped, an optimizer's state takes no memory where only the weights are used.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "weights_only" in str(error).lower():
            hint = "it holds Python objects, which could run code, or is damaged: get another copy"
        else:
            hint = "it is damaged or of another format: get another copy"
        raise UserError(f"{refused}; {hint}") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    except _DAMAGED as error:
        text = str(error) or type(error).__name__
        reason = text.splitlines()[0].split(". ")[0][:120]
        raise UserError(
            f"{refused} ({reason}); it is cut short or of another format: get another copy"
        ) from None
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind} where a dict of weights was expected")
    return dict(content)


def _other_kind(path: Path) -> str | None:
    """What to do about a file that is known to be something else."""
    with open(path, "rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.stat().st_size == 0:
        return "it is empty: get another copy"
    if start.startswith(b"<"):
        return "it is a web page, so the download failed: download the file again"
    if start.startswith(b"version https://git-lfs"):
        return "it only points to a file that git-lfs keeps: fetch that with git lfs pull"
    if start.startswith(b"PK"):  # a zip file, whose table of contents is at its end
        return None if zipfile.is_zipfile(path) else "it is cut short: get another copy"
    if start.isascii() or start.startswith((b"\x89PNG", b"\xff\xd8")):
        return "it is a text or a picture: check the path"
    return None


def _damaged_record(path: Path) -> str | None:
    """The first part of a zipped checkpoint whose checksum is wrong; PyTorch looks at none, and
    would hand out whatever a bad disk or a bad copy has made of the weights."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
