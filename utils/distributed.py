"""The processes that train one network together, one a GPU, as torchrun starts them.

A process alone is a world of one, in which all of this costs nothing.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from utils.device import resolve_device
from utils.errors import UserError
from utils.progress import progress

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among those that share each batch."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def progress(self, iterable: Iterable | None = None, **kwargs) -> tqdm:
        """How far an iterable has come, shown by the main process."""
        return progress(iterable, shown=self.is_main, **kwargs)

    def share(self, count: int) -> slice:
        """Which of `count` images are this process's; shares differ by one image at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean(self, values: Tensor) -> Tensor:
        """(n,), a number an image -> their mean over all processes, a scalar.

        Its gradient is right once the processes' gradients are averaged, as
        DistributedDataParallel averages them.
        """
        if self.size == 1:
            return values.mean()
        total = torch.stack([values.sum(), values.new_full((), len(values))])
        total = _SumOfAll.apply(total, self.size)
        return total[0] / total[1].detach()

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes; without a gradient."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def fewest(self, count: int) -> int:
        """The smallest of every process's number."""
        if self.size == 1:
            return count
        smallest = torch.tensor(count)  # on the CPU: no process waits for its device
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return smallest.item()

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of the ranks; plain types and CPU tensors."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all have come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(()))  # on the CPU, so no process waits for its device

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through this while the others wait; then they do."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def spread_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's BatchNorm statistics, which differ where BatchNorm is
        not synchronised."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def leave(self) -> None:
        """The end, where all went well."""
        if self.size > 1:
            # PyTorch 2.6's gloo lets go of its last tensors in a thread that needs the interpreter,
            # and hangs where that is busy with ending it.
            time.sleep(0.5)
            dist.destroy_process_group()


ALONE = World()


def join(device: str = "auto") -> World:
    """Meet the other processes where torchrun started several, each on a GPU of its own.

    Args:
        device: `--device`; cpu where the GPUs should not be used.

    Raises:
        UserError: fewer GPUs than processes, or a device that all of them would share.
    """
    resolve_device(device)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    local_rank, local_size = (int(os.environ[f"LOCAL_{key}"]) for key in ("RANK", "WORLD_SIZE"))
    world = World(int(os.environ["RANK"]), size, local_size)
    if device.startswith("cuda:"):
        raise UserError(f"--device {device}: {size} processes cannot share it; leave it out")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        dist.init_process_group("gloo")
        return world
    gpus = torch.cuda.device_count()
    if local_size > gpus:
        raise UserError(
            f"torchrun started {local_size} processes on a machine of {gpus} GPUs; "
            f"use --nproc_per_node={gpus}"
        )
    torch.cuda.set_device(local_rank)
    # Tensors on the GPU go by NCCL; what the hosts tell each other need not wait for the GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl")
    return world


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes. What follows it is the same everywhere and so is its gradient:
    summing that over the processes, too, is multiplying it by their number."""

    @staticmethod
    def forward(ctx, value: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.size, None
