"""The one error that a user can cause, and how a script ends on it."""

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
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as one line on stderr and exit with code 2, on a signal with 128 and its
    number; let all else through."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what was saved before is intact", file=sys.stderr)
        raise SystemExit(130) from None
    except Interrupted as interruption:
        if str(interruption):
            print(interruption, file=sys.stderr)
        raise SystemExit(128 + interruption.number) from None
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))  # torchrun's
        print(f"error{f' of process {rank}' if rank else ''}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
