"""The one error that a user can cause, and how a script ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something only the user can mend: a wrong path, a broken image, a wrong checkpoint.

    The message is one line that says what is wrong, where, and what to do about it. What would
    break the line or the terminal, in a file's name or a damaged file, is shown by its code.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The same text with each character that cannot be printed as its escape, `\\n`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Interrupted(Exception):
    """A signal that asks the run to end; the message, where there is one, says how it goes on."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


@contextmanager
def exit_on_user_error(
    interrupted: str = "interrupted; what was saved before is intact",
) -> Iterator[None]:
    """End a script with one line and an exit code instead of a traceback.

    A `UserError` is printed on stderr and ends with code 2, as does a stdout on a full disk.
    Ctrl-C ends with 130, another signal with 128 and its number. Where nobody reads any more, as
    behind `| head`, the end is silent, with 141 as a program in C would have it. All else goes
    through.

    Args:
        interrupted: what to say on Ctrl-C.
    """
    if hasattr(sys.stdout, "reconfigure"):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except UserError as error:
            rank = int(os.environ.get("RANK", 0))  # torchrun's
            print(f"error{f' of process {rank}' if rank else ''}: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        finally:
            sys.stdout.flush()  # what fails here would else fail after the last line of Python
    except KeyboardInterrupt:
        # A terminal has just shown ^C, perhaps behind a progress bar.
        print("\n" * sys.stderr.isatty() + interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except Interrupted as interruption:
        if str(interruption):
            print(interruption, file=sys.stderr)
        raise SystemExit(128 + interruption.number) from None
    except OSError:
        failure = _silence_failing_stream()
        if failure is None:
            raise
        if isinstance(failure, BrokenPipeError):
            raise SystemExit(141) from None
        print(f"error: stdout cannot be written ({failure.strerror})", file=sys.stderr)
        raise SystemExit(2) from None


def _silence_failing_stream() -> OSError | None:
    """Point stdout, else stderr, to nowhere if it cannot be written; why it cannot."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(file=stream, flush=True)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            return error
    return None
