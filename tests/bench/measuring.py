"""What the benchmark measures with: calls that take turns, memory at its peak, a Markdown table."""

import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device.

    Args:
        repeats: runs of each call; their median counts.
    """

    device: torch.device
    repeats: int

    def medians(self, *calls: Callable, warm_up: bool = True, times: int = 1) -> list[float]:
        """Seconds of each call.

        The calls take turns, A B A B, so that a machine that slows down slows down all of them.

        Args:
            times: factor on the repeats, for short calls.
        """
        runs = [[] for _ in calls]
        if warm_up:
            for call in calls:
                call()
        for _ in range(times * self.repeats):
            for call, seconds in zip(calls, runs, strict=True):
                seconds.append(self.once(call))
        return [statistics.median(seconds) for seconds in runs]

    def once(self, call: Callable) -> float:
        """Seconds of one call, to the end of what it asked of the device."""
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Table:
    """Lines of what was measured, the released pipeline beside ours; also printed as they come."""

    def __init__(self):
        self.lines = ["| | released | ours | |", "|---|---:|---:|---:|"]

    def rates(self, what: str, images: int, released: float | None, ours: float) -> None:
        """Images a second, from seconds."""
        rates = [f"{_digits(images / seconds)} img/s" for seconds in (released, ours) if seconds]
        factor = f"{released / ours:.2f}x as fast" if released else ""
        self._add(what, *([] if released else [""]), *rates, factor)

    def latency(self, what: str, released: float, ours: float) -> None:
        """Milliseconds, from seconds."""
        times = (f"{_digits(1e3 * seconds)} ms" for seconds in (released, ours))
        self._add(what, *times, f"{released / ours:.2f}x as fast")

    def memory(self, what: str, released: float, ours: float) -> None:
        """MiB, from bytes."""
        amounts = (f"{_digits(size / 2**20)} MiB" for size in (released, ours))
        self._add(what, *amounts, f"{100 * ours / released:.0f} %")

    def _add(self, *cells: str) -> None:
        self.lines.append(f"| {' | '.join(cells)} |")
        print(self.lines[-1], file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _digits(value: float) -> str:
    """Three digits that count, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def peak_bytes(device: torch.device, call: Callable, *args) -> int:
    """The most memory that a call takes, in a process of its own: on CUDA what PyTorch allocates
    there, on the CPU (of Linux) by how much the process grows.

    Args:
        call, args: importable and picklable.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_bytes, (device, call, args))


def _peak_bytes(device: torch.device, call: Callable, args: tuple) -> int:
    before = _memory("VmRSS")
    call(*args)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    """Bytes now (VmRSS) or at most so far (VmHWM), which getrusage would count from before the
    process began."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", status)[1])
