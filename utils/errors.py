"""The one error that a user can cause, and how a script ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that only the user can correct: a wrong path, a broken image, a wrong checkpoint.

    The message is one line that says what is wrong, where, and what to do about it. Unprintable
    characters, as in a file's name, are shown as escapes.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Interrupted(Exception):
    """A signal asked the run to stop; the message, if any, says how to continue."""

    def __init__(self, signal_number: int, message: str = ""):
        super().__init__(message)
        self.signal_number = signal_number


def one_line(text: str) -> str:
    """Replace each unprintable character by its escape, such as `\\n`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, noun: str) -> str:
    """3, "image" -> "3 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn an `OSError` raised while writing `path` into a `UserError` that names it."""
    try:
        yield
    except BrokenPipeError:  # not the user's mistake: `| head` has stopped reading
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def exit_on_user_error(
    interrupted: str = "interrupted; everything saved so far is intact",
) -> Iterator[None]:
    """End a script with one line and an exit code instead of a traceback.

    A `UserError` is printed to stderr and exits with 2, and so does a file that the system does not
    let us read; Ctrl-C exits with 130, another signal with 128 plus its number, and a closed stdout
    (`| head`) silently with 141. Other exceptions propagate.

    Args:
        interrupted: printed on Ctrl-C.
    """
    if hasattr(sys.stdout, "reconfigure"):  # file names may hold bytes that are not valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # Python's own flush at exit would print what fails
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))  # set by torchrun
        print(f"error{f' (process {rank})' if rank else ''}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        # A terminal has just echoed ^C, maybe after a progress bar.
        print(("\n" if sys.stderr.isatty() else "") + interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except Interrupted as interruption:
        if str(interruption):
            print(interruption, file=sys.stderr)
        raise SystemExit(128 + interruption.signal_number) from None
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # of stdout, not of a worker process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        raise
    except OSError as error:
        if error.filename is None:
            raise
        name = one_line(os.fsdecode(error.filename))
        print(f"error: {name}: cannot be read ({error.strerror})", file=sys.stderr)
        raise SystemExit(2) from None
