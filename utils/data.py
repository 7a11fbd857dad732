"""The one loader module: data sets on disk -> compact lists of files -> batches on the device."""

import os
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from utils.errors import UserError
from utils.images import read_rgb
from utils.readers import Split
from utils.seed import generator

# The share of the memory at hand that decoded images may take; RAF-DB's 460 MB fit nearly always.
CACHE_SHARE = 0.25
# A larger set is streamed whatever its size: its first step should not wait for all the others.
CACHE_IMAGES = 50_000


# (labels (N,), seed, epoch) -> indices (N,): which images an epoch sees, and in which order.
Order = Callable[[np.ndarray, int, int], Tensor]


class FaceDataset(Dataset):
    """Images of a split, decoded and of one size: (uint8 (3, h, w), label)."""

    def __init__(self, split: Split, size: tuple[int, int]):
        self.split = split
        self.size = size  # (h, w)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_rgb(self.split.path(index))
        if image.shape[:2] != self.size:
            # As torchvision's Resize does with a Pillow image: bilinear, antialiased.
            resized = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        return torch.tensor(image).permute(2, 0, 1), int(self.split.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | UserError:
        """A batch, (N, 3, h, w) and (N,). An unreadable image comes back as a value: raised in
        a worker process, it would reach the user wrapped into a traceback."""
        try:
            images, labels = zip(*(self[index] for index in indices), strict=True)
        except UserError as error:
            return error
        return torch.stack(images), torch.tensor(labels)


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


class FaceLoader:
    """Batches (uint8 (N, 3, h, w), labels (N,)) on the device, in an order set by the epoch.

    A decoded set that is small enough is decoded once and kept, on the device where that has
    room; a larger one is streamed by worker processes. Neither changes what comes out.

    Args:
        order: `in_order`, `shuffled` or `balanced`.
        image_size: pixels a side that the network sees; files are kept at their own size where
            all have the same and it is not larger, else they are resized to this one.
        workers: processes that decode, at most one a core is started; 0 decodes in this one.
        drop_single: leave out a last batch of one image, which BatchNorm cannot train on.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        image_size: int,
        device: torch.device,
        order: Order = in_order,
        seed: int = 0,
        workers: int = 0,
        drop_single: bool = False,
    ):
        self.split = split
        self.device = device
        self.dataset = FaceDataset(split, _stored_size(split, image_size))
        self.batches = _EpochBatches(split.labels, batch_size, order, seed, drop_single)
        height, width = self.dataset.size
        num_bytes = len(split) * 3 * height * width
        workers = min(workers, os.cpu_count() or 1)
        self._images = self._labels = self._stream = None
        if len(split) <= CACHE_IMAGES and num_bytes <= CACHE_SHARE * _available_memory():
            self._images, self._labels = self._decode_all(workers)
            if device.type == "cuda" and num_bytes <= CACHE_SHARE * _available_memory(device):
                self._images = self._images.to(device)
        else:
            self._stream = DataLoader(
                self.dataset,
                batch_sampler=self.batches,
                collate_fn=_unchanged,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.batches)

    @property
    def cached(self) -> bool:
        return self._images is not None

    def epoch(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.batches.epoch = epoch
        if not self.cached:
            for batch in self._stream:
                if isinstance(batch, UserError):
                    raise batch
                yield tuple(part.to(self.device, non_blocking=True) for part in batch)
            return
        for indices in self.batches:
            index = torch.tensor(indices)
            labels = self._labels[index]
            if self._images.device.type == "cuda":
                images = self._images[index.pin_memory().to(self.device, non_blocking=True)]
            else:
                images = _to_device(self._images[index], self.device)
            yield images, _to_device(labels, self.device)

    def _decode_all(self, workers: int) -> tuple[Tensor, Tensor]:
        """One pass over all files, as it would be streamed but in order."""
        images = torch.empty(len(self.split), 3, *self.dataset.size, dtype=torch.uint8)
        once = DataLoader(
            self.dataset,
            batch_sampler=_EpochBatches(self.split.labels, 64, in_order, 0, False),
            collate_fn=_unchanged,
            num_workers=workers if len(self.split) > 256 else 0,
        )
        start = 0
        bar = tqdm(total=len(self.split), desc="decode", unit="img", leave=False, disable=None)
        with bar:
            for batch in once:
                if isinstance(batch, UserError):
                    raise batch
                stop = start + len(batch[0])
                images[start:stop] = batch[0]
                bar.update(stop - start)
                start = stop
        return images, torch.from_numpy(self.split.labels)


class _EpochBatches(Sampler):
    """Lists of indices; which ones follows from `epoch`, set before each pass."""

    def __init__(self, labels, batch_size, order, seed, drop_single):
        self.labels = labels
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.epoch = 0
        single = drop_single and len(labels) % batch_size == 1
        self.used = len(labels) - single

    def __len__(self) -> int:
        return -(-self.used // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.order(self.labels, self.seed, self.epoch)[: self.used]
        for batch in indices.split(self.batch_size):
            yield batch.tolist()


def _unchanged(batch):
    """FaceDataset has put the batch together already."""
    return batch


def _to_device(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _stored_size(split: Split, image_size: int) -> tuple[int, int]:
    """(h, w) at which a split's images are kept, judged by the headers of 64 spread over it."""
    sizes = set()
    for index in np.linspace(0, len(split) - 1, min(64, len(split))).astype(int):
        try:
            with Image.open(split.path(index)) as image:
                sizes.add(image.size)
        except OSError:
            continue  # decoding it will say what is wrong, and where
    if len(sizes) == 1:
        width, height = sizes.pop()
        if max(width, height) <= image_size:
            return height, width
    return image_size, image_size


def _available_memory(device: torch.device | None = None) -> int:
    """Bytes free on the device, or in this machine's memory."""
    if device is not None:
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    return 4 * 2**30  # no such file elsewhere: enough for RAF-DB to be kept
