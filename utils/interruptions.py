"""Signals that end a run in good order: the step is finished and everything saved first."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils.distributed import World
from utils.errors import Interrupted

# What a terminal (Ctrl-C) and cluster schedulers send; there is no SIGUSR1 on Windows.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Interruptions:
    """While it is entered, a signal is noted, and `check` raises it when a step is done.

    A second Ctrl-C ends the process at once, by the system's own means. Several processes all
    stop after the same step, whichever of them the signal reached.
    """

    def __init__(self, world: World):
        self.world = world
        self.received = 0
        self._on_its_way = None  # (work, tensor): what all have received, before the last step

    def __enter__(self) -> "Interruptions":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    @contextmanager
    def of_workers(self) -> Iterator[None]:
        """A signal to the whole process group ends a loader's workers, too: no failure then."""
        try:
            yield
        except RuntimeError as error:
            if str(error).startswith("DataLoader worker") and self.world.size == 1:
                time.sleep(0.2)  # it may reach this process last
                if self.received:
                    raise Interrupted(self.received) from None
            raise

    def __exit__(self, kind: type[BaseException] | None, *details) -> None:
        if self._on_its_way is not None and kind in (None, Interrupted):
            self._on_its_way[0].wait()  # not after a failure, which may have taken the others
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """To be called by all processes after each step.

        Raises:
            Interrupted: a signal has come.
        """
        received = self.received if self.world.size == 1 else self._received_by_any()
        if received:
            raise Interrupted(received)

    def _received_by_any(self) -> int:
        """As of the call before, so that no process waits for another one's step."""
        before, received = self._on_its_way, torch.tensor(self.received)
        self._on_its_way = dist.all_reduce(received, dist.ReduceOp.MAX, async_op=True), received
        if before is None:
            return 0
        work, received = before
        work.wait()
        return received.item()

    def _note(self, number: int, frame) -> None:
        if self.received:
            return
        self.received = number
        again = ""
        # torchrun passes a Ctrl-C on to processes that the terminal has sent it already.
        if number == signal.SIGINT and self.world.size == 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; Ctrl-C again stops at once"
        if self.world.is_main:  # not by print, which a signal may have interrupted
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing this step, then saving{again}\n".encode())
