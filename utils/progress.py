"""Progress of a long loop: a bar on a terminal, an occasional line in a log."""

import io
import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_FIRST, LOG_EVERY = 10, 60  # seconds until the first line, and between any two after it
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}"


class _Log(tqdm):
    """Prints lines of their own instead of updating one."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # tqdm erases a bar with an empty one
            print(self, file=sys.stderr, flush=True)
            self.mininterval = LOG_EVERY


def print_above(text: str) -> None:
    """Print a line at once, above the progress bars that are shown."""
    tqdm.write(text)
    sys.stdout.flush()


def progress(iterable: Iterable | None = None, *, shown: bool = True, **kwargs) -> tqdm:
    """tqdm on stderr. A loop that ends within LOG_FIRST seconds leaves nothing in a log.

    Args:
        shown: False for processes that should stay silent.
        kwargs: tqdm's, such as desc, total and unit.
    """
    if not shown or sys.stderr.isatty():
        return tqdm(iterable, leave=False, disable=not shown, **kwargs)
    return _Log(
        iterable,
        leave=False,
        file=io.StringIO(),  # tqdm.write would draw a bar of stderr anew
        bar_format=LOG_FORMAT,
        delay=LOG_FIRST,
        mininterval=LOG_FIRST,
        miniters=1,  # otherwise tqdm estimates how many iterations fill the interval
        **kwargs,
    )
