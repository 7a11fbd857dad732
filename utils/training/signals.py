"""Signals that end a run in good order: finish the step, save everything, then exit."""

import os
import signal

import torch
import torch.distributed as dist

from utils.distributed import World
from utils.errors import Interrupted

# Ctrl-C, and what cluster schedulers send; Windows has no SIGUSR1.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Interruptions:
    """While this context is entered, a signal is only noted; `check` raises it after a step.

    A second Ctrl-C ends the process immediately. Several processes all stop after the same step,
    whichever of them got the signal.
    """

    def __init__(self, world: World):
        self.world = world
        self.received = 0

    def __enter__(self) -> "Interruptions":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error, traceback) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # The step may still have needed a batch from workers that the signal has ended.
        if kind is RuntimeError and self.received and str(error).startswith("DataLoader worker"):
            raise Interrupted(self.received) from None

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived. All processes call it after each step."""
        received = torch.tensor(self.received)
        if self.world.size > 1:
            dist.all_reduce(received, dist.ReduceOp.MAX)
        if received:
            raise Interrupted(received.item())

    def _note(self, number: int, frame) -> None:
        if self.received:
            return
        self.received = number
        if hasattr(signal, "SIGCHLD"):
            # PyTorch raises an error when a loader's worker dies, in the middle of whatever runs.
            # A signal to the whole process group ends the workers too, and that is no error.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        again = ""
        # torchrun forwards a Ctrl-C to processes that already got it from the terminal.
        if number == signal.SIGINT and self.world.size == 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; press Ctrl-C again to stop immediately"
        if self.world.is_main:  # not with print, which the signal may have interrupted
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing this step, then saving{again}\n".encode())
