"""How far something has come: a bar on a terminal, now and then a line in a log."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

LOG_EVERY = 60  # seconds between two lines where stderr is no terminal
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} to go{postfix}"


def progress(iterable: Iterable | None = None, *, shown: bool = True, **kwargs) -> tqdm:
    """tqdm on stderr. What is over within LOG_EVERY seconds leaves nothing in a log.

    Args:
        shown: False for the processes that print nothing.
        kwargs: tqdm's, such as desc, total and unit.
    """
    if not shown or sys.stderr is None or sys.stderr.isatty():
        return tqdm(iterable, leave=False, disable=not shown or sys.stderr is None, **kwargs)
    return tqdm(
        iterable,
        leave=False,
        file=_Lines(sys.stderr),
        bar_format=LOG_FORMAT,
        delay=LOG_EVERY,
        mininterval=LOG_EVERY,
        miniters=1,  # else tqdm guesses how many make up the interval
        **kwargs,
    )


class _Lines:
    """What tqdm writes over and over on one line, as lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=self.stream, flush=True)

    def flush(self) -> None:
        self.stream.flush()
