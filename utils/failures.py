"""What can go wrong in a run without anybody's code being wrong, in one line each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.errors import UserError
from utils.run import Run


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """Turn exhausted memory, dead workers and lost processes into a `UserError`."""
    args = run.args
    size, smaller = f"--batch_size {args.batch_size}", max(2, args.batch_size // 2)
    if args.image_size is not None:  # an evaluation's is the checkpoint's
        size += f" at {args.image_size} pixels"
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"out of GPU memory with {size} in {run.precision}; try --batch_size {smaller}"
            f"{'' if run.precision == 'bf16' else ', --precision bf16'} or more GPUs (torchrun)"
        ) from None
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text:
            raise UserError(f"out of memory with {size}; try --batch_size {smaller}") from None
        if text.startswith("DataLoader worker"):
            raise UserError(
                f"a process that decodes images died ({_death(text)}); last.pth holds the epoch "
                "before; if memory or /dev/shm ran out, use fewer --workers, and go on with "
                "--resume"
            ) from None
        if run.world.size > 1 and _is_about_contact(error):
            raise UserError(
                f"process {run.world.rank} of {run.world.size} lost the others: one of them has "
                "ended (its own message says why) or the network failed; go on with --resume"
            ) from None
        raise


def _death(text: str) -> str:
    """DataLoader's report -> how the worker ended."""
    signal = re.search(r"killed by signal: ([^.]*)", text)
    return f"killed by signal: {signal[1]}" if signal else "without a word"


def _is_about_contact(error: RuntimeError) -> bool:
    """NCCL's and the stores' errors have a class of their own, gloo's have not."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return "gloo" in str(error).lower() or "Connection" in str(error)
