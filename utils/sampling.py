"""Which images an epoch sees, in which order and in which batches."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from utils.distributed import ALONE, World
from utils.errors import UserError
from utils.seed import generator

# (labels (N,), seed, epoch) -> indices (N,): which images an epoch sees, and in which order.
Order = Callable[[np.ndarray, int, int], Tensor]


def in_order(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """0, 1, ..., N - 1."""
    return torch.arange(len(labels))


def shuffled(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Every image once, in an order that depends on seed and epoch alone."""
    return torch.randperm(len(labels), generator=generator(seed, epoch))


def balanced(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """N draws with replacement, each image with weight 1 / images of its class."""
    weights = 1 / np.bincount(labels)[labels]
    draws = generator(seed, epoch)
    return torch.multinomial(torch.from_numpy(weights), len(labels), True, generator=draws)


class EpochBatches(Sampler):
    """Lists of indices, this process's share of each batch. Set `epoch`, which decides on their
    order, and `start`, the first batch's number, before each pass.

    Args:
        labels: (N,) of all images.
        order: `in_order`, `shuffled` or `balanced`.
        world: the processes that share each batch.
        smallest: a last batch of fewer images a process joins the one before it.

    Raises:
        UserError: a batch has too few images for so many processes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        order: Order = in_order,
        seed: int = 0,
        world: World = ALONE,
        smallest: int = 0,
    ):
        self.labels = labels
        self.order = order
        self.seed = seed
        self.world = world
        self.epoch = self.start = 0
        full, rest = divmod(len(labels), batch_size)
        self.sizes = [batch_size] * full + [rest] * (rest > 0)
        smallest *= world.size
        if 0 < rest < smallest and full:
            self.sizes[-2:] = [batch_size + rest]
        if self.sizes[-1] < smallest:
            raise UserError(
                f"batches of {self.sizes[-1]} images are too small for {world.size} processes: "
                "each needs two; use a larger --batch_size or fewer processes"
            )

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.order(self.labels, self.seed, self.epoch)
        for batch in indices.split(self.sizes)[self.start :]:
            yield batch[self.world.share(len(batch))].tolist()
