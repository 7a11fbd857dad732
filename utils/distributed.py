"""The processes that train one network together, one per GPU, as torchrun starts them.

A single process is a world of size 1, in which all of this costs nothing.
"""

import argparse
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

from utils.device import resolve_device, resolve_precision, seed_everything
from utils.errors import UserError
from utils.progress import print_above, progress

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process, its device, and its place among those that share each batch."""

    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None  # bfloat16, or None for plain float32
    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    @property
    def is_main(self) -> bool:  # the process that prints and writes files
        return self.rank == 0

    @property
    def precision(self) -> str:
        return "fp32" if self.autocast is None else "bf16"

    def print_once(self, text: str) -> None:
        if self.is_main:
            print_above(text)

    def progress(self, iterable: Iterable | None = None, **kwargs) -> tqdm:
        """Show a progress bar in the main process."""
        return progress(iterable, shown=self.is_main, **kwargs)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a network to the device; on several GPUs its BatchNorms see the whole batch."""
        if self.size > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device, memory_format=torch.channels_last)

    def share(self, count: int) -> slice:
        """Which of `count` images belong to this process; shares differ by at most one image."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean(self, values: Tensor) -> Tensor:
        """(n,), one number per image -> their mean over all processes, a scalar.

        Its gradient is correct once the processes' gradients are averaged, as
        DistributedDataParallel does.
        """
        if self.size == 1:
            return values.mean()
        local = values.sum()
        total, count = self.sum(torch.stack([local.detach(), values.new_full((), len(values))]))
        # All processes compute the same loss from the total, so its gradient is their number times
        # that of the local sum. The term adds nothing but this gradient.
        return (total + self.size * (local - local.detach())) / count

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, without a gradient."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of the ranks; plain types and CPU tensors only."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes get here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(()))  # on the CPU: no process waits for its device

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run the block before the others."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the main process's BatchNorm statistics, which differ unless synchronised."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def shutdown(self) -> None:
        """Shut down the process group."""
        if self.size > 1:
            # gloo in PyTorch 2.6 frees its last tensors in a thread that needs the interpreter, and
            # hangs if that is already shutting down.
            time.sleep(0.5)
            dist.destroy_process_group()


def init(args: argparse.Namespace) -> World:
    """Join the other processes if torchrun started several, choose device and precision, seed.

    Args:
        args: flags of a recipe: device, precision, seed, deterministic.

    Raises:
        UserError: the device does not exist, or the processes would share one.
    """
    device = resolve_device(args.device)
    rank, size, local_size = _join(device.type)
    if device.type == "cuda" and size > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    autocast = resolve_precision(args.precision, device)
    seed_everything(args.seed)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not args.deterministic
        if autocast is None:  # plain float32; cuDNN's default would round to TF32
            torch.backends.cudnn.allow_tf32 = False
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return World(device, autocast, rank, size, local_size)


def _join(device: str) -> tuple[int, int, int]:
    """Set up the process group on cpu or cuda; this process's rank, and the sizes of World."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        return 0, 1, 1
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    if device == "cpu":
        dist.init_process_group("gloo")
        return rank, size, local_size
    gpus = torch.cuda.device_count()
    if local_size > gpus:
        raise UserError(
            f"torchrun started {local_size} processes on a machine of {gpus} GPUs; "
            f"use --nproc_per_node={gpus}"
        )
    torch.cuda.set_device(local_rank)
    # GPU tensors go by NCCL; what the hosts tell each other need not wait for the GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl")
    return rank, size, local_size
