"""The one error that a user can cause, and how a script ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something only the user can mend: a wrong path, a broken image, a wrong checkpoint.

    The message is one line that says what is wrong, where, and what to do about it.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as one line on stderr and exit with code 2, on Ctrl-C with 130; let all
    else through."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what was saved before is intact", file=sys.stderr)
        raise SystemExit(130) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
