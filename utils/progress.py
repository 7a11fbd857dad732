"""Progress of a long loop: a bar on a terminal, an occasional line in a log."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

LOG_EVERY = 60  # seconds between two lines where stderr is not a terminal
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}"


def progress(iterable: Iterable | None = None, *, shown: bool = True, **kwargs) -> tqdm:
    """tqdm on stderr. A loop that ends within LOG_EVERY seconds leaves nothing in a log.

    Args:
        shown: False for processes that should stay silent.
        kwargs: tqdm's, such as desc, total and unit.
    """
    if not shown or sys.stderr.isatty():
        return tqdm(iterable, leave=False, disable=not shown, **kwargs)
    return tqdm(
        iterable,
        leave=False,
        file=_Lines(sys.stderr),
        bar_format=LOG_FORMAT,
        delay=LOG_EVERY,
        mininterval=LOG_EVERY,
        miniters=1,  # otherwise tqdm estimates how many iterations fill the interval
        **kwargs,
    )


class _Lines:
    """A stream that turns tqdm's updates of one line into lines of their own, and that tqdm.write
    does not take for the terminal, on which it would draw the bar anew."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=self.stream, flush=True)

    def flush(self) -> None:
        self.stream.flush()
