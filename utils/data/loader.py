"""The loader of all recipes: files -> uint8 batches on the device, in an order set by the epoch."""

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
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


# ---- decoding and batches ------------------------------------------------------------------------


def read_image(path: Path) -> np.ndarray:
    """Decode an image of a data set, (h, w, 3) uint8; an error says how to find all broken ones."""
    try:
        return read_rgb(path)
    except UserError as error:
        raise UserError(
            f"{error} (python utils/check_data.py --exclude finds all such images, and makes "
            "training leave them out)"
        ) from None


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
                image = read_image(self.split.path(index))
                if image.shape[:2] != self.size:
                    # As torchvision's Resize does with a Pillow image: bilinear, antialiased.
                    size, method = self.size[::-1], Image.Resampling.BILINEAR
                    image = Image.fromarray(image).resize(size, method)
                images[place] = image
        except UserError as error:
            return error
        return torch.from_numpy(images).permute(0, 3, 1, 2)


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
        self.split, self.order, self.seed = split, order, seed
        self.world = world = world or World()
        self.device = world.device
        self.dataset = FaceDataset(split, _stored_size(split, image_size))
        self._labels = torch.tensor(split.labels, dtype=torch.int64)
        full, rest = divmod(len(split), batch_size)
        self.sizes = [batch_size] * full + ([rest] if rest else [])  # of an epoch's batches
        if full and 0 < rest < min_images * world.size:
            self.sizes[-2:] = [batch_size + rest]
        num_bytes = len(split) * 3 * self.dataset.size[0] * self.dataset.size[1]
        room = CACHE_SHARE * _free_memory() / world.local_size
        self.cached = len(split) <= CACHE_IMAGES and num_bytes <= room
        workers = min(workers, max(1, (os.cpu_count() or 1) // world.local_size))
        if self.cached and len(split) <= 256:
            workers = 0  # decoded before they would have started
        self._batches: list[list[int]] = []  # this process's part of each, to be decoded
        self._stream = DataLoader(
            self.dataset,
            batch_size=None,  # the dataset decodes whole batches
            sampler=self._batches,
            num_workers=workers,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # otherwise each pass draws from the global one
            persistent_workers=workers > 0 and not self.cached,
            pin_memory=self.device.type == "cuda" and not self.cached,
        )
        if self.cached:
            self._images = self._decode_all()
            if self.device.type == "cuda":
                free, _ = torch.cuda.mem_get_info(self.device)
                if num_bytes <= CACHE_SHARE * free:
                    self._images = self._images.to(self.device)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sizes)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's batches, beginning with number `start`."""
        batches = self.order(self.split.labels, self.seed, epoch).split(self.sizes)[start:]
        # In place, as workers that stay alive draw from this list.
        self._batches[:] = [batch[self.world.share(len(batch))].tolist() for batch in batches]
        stream = map(self._from_memory, self._batches) if self.cached else self._decoded()
        for size, batch, images in zip(self.sizes[start:], self._batches, stream, strict=True):
            labels = to_device(self._labels[batch], self.device)
            yield Batch(to_device(images, self.device), labels, self.world.share(size), size)

    def close(self) -> None:
        """Stop the workers. Left to garbage collection, each takes five seconds to notice."""
        if self._stream._iterator is not None:
            self._stream._iterator._shutdown_workers()

    def _from_memory(self, batch: list[int]) -> Tensor:
        indices = torch.tensor(batch, dtype=torch.int64)
        return self._images[to_device(indices, self._images.device)]

    def _decoded(self) -> Iterator[Tensor]:
        for images in self._stream:
            if isinstance(images, UserError):
                raise images
            yield images

    def _decode_all(self) -> Tensor:
        """Read all files once: (N, 3, h, w) uint8."""
        images = torch.empty(len(self.split), 3, *self.dataset.size, dtype=torch.uint8)
        blocks = torch.arange(len(self.split)).split(64)
        self._batches[:] = [block.tolist() for block in blocks]
        with self.world.progress(total=len(images), desc="decode", unit="img") as bar:
            for block, decoded in zip(blocks, self._decoded(), strict=True):
                images[block] = decoded
                bar.update(len(block))
        return images


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the run needs its workers until its step is
    finished. SIGTERM still ends them: that is how they are stopped at exit."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _stored_size(split: Split, image_size: int) -> tuple[int, int]:
    """(h, w) in which a split's images are kept, according to 64 of them."""
    chosen = np.linspace(0, len(split) - 1, min(64, len(split))).astype(int)
    sizes = {read_image(split.path(index)).shape[:2] for index in chosen}
    size = sizes.pop()
    return (image_size, image_size) if sizes or max(size) > image_size else size


def _free_memory() -> int:
    """Bytes that are free in this machine's memory."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # systems other than Linux
        return 4 * 2**30  # enough for RAF-DB
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1])
