"""Progress of a long loop: a bar on a terminal, an occasional update in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_EVERY = 60  # seconds between two updates where stderr is not a terminal


def progress(iterable: Iterable | None = None, *, shown: bool = True, **kwargs) -> tqdm:
    """tqdm on stderr. A loop that ends within LOG_EVERY seconds leaves nothing in a log.

    Args:
        shown: False for processes that should stay silent.
        kwargs: tqdm's, such as desc, total and unit.
    """
    if not sys.stderr.isatty():
        kwargs |= {"delay": LOG_EVERY, "mininterval": LOG_EVERY, "miniters": 1}
    return tqdm(iterable, leave=False, disable=not shown, **kwargs)
