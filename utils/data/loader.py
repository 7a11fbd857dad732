"""The loader of all recipes: files -> uint8 batches on the device, in an order set by the epoch."""

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.data.datasets import Split
from utils.data.images import read_rgb
from utils.data.transforms import to_device
from utils.device import generator
from utils.distributed import World
from utils.errors import UserError

# The share of the free memory that decoded images may take; RAF-DB's 460 MB nearly always fit.
CACHE_SHARE = 0.25
# A larger set is always streamed: its first step should not wait for all images to be decoded.
CACHE_IMAGES = 50_000

# ---- which images an epoch sees, in which order --------------------------------------------------

# (labels (N,), seed, epoch) -> indices (N,)
Order = Callable[[np.ndarray, int, int], Tensor]


def in_order(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """0, 1, ..., N - 1."""
    return torch.arange(len(labels))


def shuffled(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """Every image once, in an order that depends on seed and epoch only."""
    return torch.randperm(len(labels), generator=generator(seed, epoch))


def balanced(labels: np.ndarray, seed: int, epoch: int) -> Tensor:
    """N draws with replacement, each image with weight 1 / images of its class."""
    weights = 1 / np.bincount(labels)[labels]
    draws = generator(seed, epoch)
    return torch.multinomial(torch.from_numpy(weights), len(labels), True, generator=draws)


def batch_sizes(count: int, batch_size: int, min_images: int) -> list[int]:
    """Sizes of an epoch's batches; a last one below `min_images` joins the one before it."""
    full, rest = divmod(count, batch_size)
    if full and 0 < rest < min_images:
        return [batch_size] * (full - 1) + [batch_size + rest]
    return [batch_size] * full + [rest] * (rest > 0)


@dataclass
class EpochBatches:
    """Yields lists of indices, this process's share of each batch.

    Set `epoch`, which determines the order, and `start`, the number of the first batch, before
    each pass.
    """

    labels: np.ndarray
    sizes: list[int]
    order: Order
    seed: int
    world: World
    epoch: int = 0
    start: int = 0

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.order(self.labels, self.seed, self.epoch)
        for batch in indices.split(self.sizes)[self.start :]:
            yield batch[self.world.share(len(batch))].tolist()


# ---- decoding and batches ------------------------------------------------------------------------


@dataclass
class FaceDataset(Dataset):
    """Images of a split, decoded batch by batch, all of one size."""

    split: Split
    size: tuple[int, int]  # (h, w)

    def __getitem__(self, indices: Sequence[int]) -> Tensor | UserError:
        """Decode a batch, (n, 3, h, w) uint8. A broken image's error is returned: raised in a
        worker process, it would reach the user wrapped in a traceback."""
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        try:
            for place, index in enumerate(indices):
                images[place] = self._read(index)
        except UserError as error:
            return UserError(
                f"{error} (python utils/check_data.py --exclude finds all such images, and makes "
                "training leave them out)"
            )
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def _read(self, index: int) -> np.ndarray:
        image = read_rgb(self.split.path(index))
        if image.shape[:2] == self.size:
            return image
        # As torchvision's Resize does with a Pillow image: bilinear, antialiased.
        resized = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized)


class Batch(NamedTuple):
    """This process's share of a batch."""

    images: Tensor  # (n, 3, h, w) uint8, on the device
    labels: Tensor  # (n,) int64, on the device
    share: slice  # its place in the whole batch
    size: int  # images of the whole batch


class FaceLoader:
    """Batches on the device, in an order that the epoch determines.

    A set that is small enough is decoded once and kept, on the device if it has room; a larger
    one is streamed by worker processes. Both give the same batches.

    Args:
        order: `in_order`, `shuffled` or `balanced`.
        image_size: side of the network's input in pixels. Images are kept in their own size if
            all have the same and it is not larger, else they are resized to this one.
        workers: decoding processes, at most one per core; 0 decodes in this process.
        world: device, and the processes that share each batch.
        min_images: a last batch of fewer images per process joins the one before it (BatchNorm
            cannot train on a single image).

    Raises:
        UserError: an image cannot be read; `epoch` raises it too.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        image_size: int,
        order: Order = in_order,
        seed: int = 0,
        workers: int = 0,
        world: World | None = None,
        min_images: int = 0,
    ):
        self.split = split
        self.world = world = world or World()
        self.device = world.device
        self.dataset = FaceDataset(split, _stored_size(split, image_size))
        sizes = batch_sizes(len(split), batch_size, min_images * world.size)
        self.batches = EpochBatches(split.labels, sizes, order, seed, world)
        num_bytes = len(split) * 3 * self.dataset.size[0] * self.dataset.size[1]
        workers = min(workers, max(1, (os.cpu_count() or 1) // world.local_size))
        self._stream = None
        self._labels = torch.tensor(split.labels, dtype=torch.int64)
        room = CACHE_SHARE * _free_memory() / world.local_size
        self.cached = len(split) <= CACHE_IMAGES and num_bytes <= room
        if self.cached:
            self._images = self._decode_all(workers)
            if self.device.type == "cuda":
                free, _ = torch.cuda.mem_get_info(self.device)
                if num_bytes <= CACHE_SHARE * free:
                    self._images = self._images.to(self.device)
        else:
            self._stream = self._data_loader(
                self.batches,
                workers,
                persistent_workers=workers > 0,
                pin_memory=self.device.type == "cuda",
            )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.batches.sizes)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches, beginning with number `start`."""
        self.batches.epoch, self.batches.start = epoch, start
        stream = self._from_memory() if self.cached else self._stream
        # The order once more, for the labels; it is cheap and depends on the epoch only.
        for size, indices, images in zip(
            self.batches.sizes[start:], self.batches, stream, strict=True
        ):
            if isinstance(images, UserError):
                raise images
            labels = to_device(self._labels[indices], self.device)
            yield Batch(to_device(images, self.device), labels, self.world.share(size), size)

    def close(self) -> None:
        """Stop the workers. Left to garbage collection, each takes five seconds to notice."""
        if self._stream is not None and self._stream._iterator is not None:
            self._stream._iterator._shutdown_workers()

    def _from_memory(self) -> Iterator[Tensor]:
        for batch in self.batches:
            indices = torch.tensor(batch, dtype=torch.int64)
            yield self._images[to_device(indices, self._images.device)]

    def _decode_all(self, workers: int) -> Tensor:
        """Read all files once: (N, 3, h, w) uint8."""
        count, done = len(self.split), 0
        images = torch.empty(count, 3, *self.dataset.size, dtype=torch.uint8)
        batches = [range(count)[start : start + 64] for start in range(0, count, 64)]
        with self.world.progress(total=count, desc="decode", unit="img") as bar:
            for decoded in self._data_loader(batches, workers if count > 256 else 0):
                if isinstance(decoded, UserError):
                    raise decoded
                images[done : done + len(decoded)] = decoded
                done += len(decoded)
                bar.update(len(decoded))
        return images

    def _data_loader(self, batches: Iterable[Sequence[int]], workers: int, **options) -> DataLoader:
        return DataLoader(
            self.dataset,
            batch_size=None,  # the dataset decodes whole batches
            sampler=batches,
            num_workers=workers,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # otherwise each pass draws from the global one
            **options,
        )


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the run needs its workers until its step is
    finished. SIGTERM still ends them: that is how they are stopped at exit."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _stored_size(split: Split, image_size: int) -> tuple[int, int]:
    """(h, w) in which a split's images are kept, according to the headers of 64 of them."""
    sizes = set()
    for index in np.linspace(0, len(split) - 1, min(64, len(split))).astype(int):
        try:
            with Image.open(split.path(index)) as image:
                sizes.add(image.size)
        except OSError:
            continue  # decoding it reports what is wrong
    if len(sizes) == 1:
        width, height = sizes.pop()
        if max(width, height) <= image_size:
            return height, width
    return image_size, image_size


def _free_memory() -> int:
    """Bytes that are free in this machine's memory."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # systems other than Linux
        return 4 * 2**30  # enough for RAF-DB
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1])
