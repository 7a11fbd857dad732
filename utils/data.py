"""The one loader module: data sets on disk -> compact lists of files -> batches on the device."""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.distributed import ALONE, World
from utils.errors import UserError
from utils.face_data import Split
from utils.images import read_rgb
from utils.interruptions import SIGNALS
from utils.sampling import EpochBatches, Order, in_order

# The share of the memory at hand that decoded images may take; RAF-DB's 460 MB fit nearly always.
CACHE_SHARE = 0.25
# A larger set is streamed whatever its size: its first step should not wait for all the others.
CACHE_IMAGES = 50_000


class FaceDataset(Dataset):
    """Images of a split, decoded and of one size: uint8 (3, h, w)."""

    def __init__(self, split: Split, size: tuple[int, int]):
        self.split = split
        self.size = size  # (h, w)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        image = read_rgb(self.split.path(index))
        if image.shape[:2] != self.size:
            # As torchvision's Resize does with a Pillow image: bilinear, antialiased.
            resized = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        return torch.tensor(image).permute(2, 0, 1)

    def __getitems__(self, indices: list[int]) -> "Decoded":
        """A batch, without the images that cannot be read. Their errors come back as values:
        raised in a worker process, they would reach the user wrapped into a traceback."""
        images, places, errors = [], [], {}
        for place, index in enumerate(indices):
            try:
                image = self[index]
            except UserError as error:
                errors[index] = str(error)
            else:
                images.append(image)
                places.append(place)
        images = torch.stack(images) if images else torch.empty(0, 3, *self.size).byte()
        places = torch.tensor(places, dtype=torch.int64)
        return Decoded(images, torch.tensor(indices, dtype=torch.int64)[places], places, errors)


class Decoded(NamedTuple):
    """Images of a list of indices, as far as they can be read."""

    images: Tensor  # (n, 3, h, w) uint8
    indices: Tensor  # (n,) int64
    places: Tensor  # (n,) int64: where in the list they stand
    errors: dict[int, str]  # what is wrong with the others, by index


class Batch(NamedTuple):
    """This process's share of a batch, without images that cannot be read."""

    images: Tensor  # (n, 3, h, w) uint8, on the device
    labels: Tensor  # (n,) int64, on the device
    places: Tensor  # (n,) int64, on the CPU: where in the whole batch they stand
    size: int  # images of the whole batch


class FaceLoader:
    """Batches on the device, in an order that is set by the epoch.

    A decoded set that is small enough is decoded once and kept, on the device where that has
    room; a larger one is streamed by worker processes. Neither changes what comes out.

    Args:
        order: `in_order`, `shuffled` or `balanced`.
        image_size: pixels a side that the network sees; files are kept at their own size where
            all have the same and it is not larger, else they are resized to this one.
        workers: processes that decode, at most one a core is started; 0 decodes in this one.
        world: the processes that share each batch.
        smallest: a last batch of fewer images than this a process joins the one before it
            (BatchNorm cannot train on a single one).
        skip_bad: leave out images that cannot be read, and note them in `bad`; else they raise.

    Raises:
        UserError: there are no images, or one cannot be read; as does `epoch`.
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
        world: World = ALONE,
        smallest: int = 0,
        skip_bad: bool = False,
    ):
        if not len(split):
            raise UserError(f"{split.root}: one of its splits has no images; check the data set")
        self.split = split
        self.device = device
        self.world = world
        self.skip_bad = skip_bad
        self.bad: dict[int, str] = {}  # what is wrong with unreadable images, by index
        self.dataset = FaceDataset(split, _stored_size(split, image_size))
        self.batches = EpochBatches(
            split.labels, batch_size, order=order, seed=seed, world=world, smallest=smallest
        )
        height, width = self.dataset.size
        num_bytes = len(split) * 3 * height * width
        workers = min(workers, max(1, (os.cpu_count() or 1) // world.local_size))
        self._images = self._stream = None
        self._labels = torch.tensor(split.labels, dtype=torch.int64)
        room = CACHE_SHARE * _available_memory() / world.local_size
        if len(split) <= CACHE_IMAGES and num_bytes <= room:
            self._images, self._readable = self._decode_all(workers)
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
                worker_init_fn=_leave_signals_to_the_main_process,
                generator=torch.Generator(),  # else each pass draws from the global one
            )

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.batches.sizes)

    @property
    def cached(self) -> bool:
        return self._images is not None

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """An epoch's batches, from one on: what an interrupted epoch goes on with."""
        self.batches.epoch, self.batches.start = epoch, start
        stream = self._kept(self.batches) if self.cached else self._stream
        for size, decoded in zip(self.batches.sizes[start:], stream, strict=True):
            self._note_bad(decoded.errors)
            images = decoded.images.to(self.device, non_blocking=True)
            labels = _to_device(self._labels[decoded.indices], self.device)
            yield Batch(images, labels, self.world.share(size).start + decoded.places, size)

    def _kept(self, batches: Iterable[list[int]]) -> Iterator[Decoded]:
        """What the workers would stream, from memory."""
        for batch in batches:
            indices = torch.tensor(batch, dtype=torch.int64)
            places = self._readable[indices].nonzero().squeeze(1)
            indices = indices[places]
            if self._images.device.type == "cuda":
                images = self._images[_to_device(indices, self.device)]
            else:
                images = _to_device(self._images[indices], self.device)
            yield Decoded(images, indices, places, {})

    def _note_bad(self, errors: dict[int, str]) -> None:
        if errors and not self.skip_bad:
            raise UserError(
                f"{next(iter(errors.values()))} (--skip_bad_images leaves out all such images, "
                "python utils/check_data.py lists them)"
            )
        self.bad |= errors

    def _decode_all(self, workers: int) -> tuple[Tensor, Tensor]:
        """One pass over all files: (N, 3, h, w) uint8, and (N,) whether they can be read."""
        images = torch.zeros(len(self.split), 3, *self.dataset.size, dtype=torch.uint8)
        readable = torch.zeros(len(self.split), dtype=torch.bool)
        once = DataLoader(
            self.dataset,
            batch_sampler=EpochBatches(self.split.labels, 64),
            collate_fn=_unchanged,
            num_workers=workers if len(self.split) > 256 else 0,
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=torch.Generator(),
        )
        with self.world.progress(total=len(self.split), desc="decode", unit="img") as bar:
            for decoded in once:
                self._note_bad(decoded.errors)
                images[decoded.indices] = decoded.images
                readable[decoded.indices] = True
                bar.update(len(decoded.indices) + len(decoded.errors))
        return images, readable


def _unchanged(batch):
    """FaceDataset has put the batch together already."""
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A Ctrl-C reaches every process of the terminal; the run ends its step before it stops, and
    needs its workers for that. SIGTERM still ends them, which is how they are ended at exit."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


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
