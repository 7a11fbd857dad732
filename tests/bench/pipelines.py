"""The pipelines that the benchmark compares: ours as the recipes run it, beside the yardstick."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import affectnet
import rafdb
from networks.dan import DAN
from networks.losses import DANLoss
from tests.bench import yardstick
from tests.bench.measuring import Stopwatch
from tests.bench.yardstick import ImageFiles, YardstickTraining
from utils import cli
from utils.data.datasets import FaceData, Split, read_rafdb
from utils.data.loader import FaceLoader, Order, in_order
from utils.data.transforms import Augmentation
from utils.device import generator
from utils.distributed import World
from utils.labels import RAFDB
from utils.toy.sets import write_affectnet, write_rafdb
from utils.training import engine
from utils.training.run import Run

SIZE = 224
DRAWN = 512  # faces; a longer epoch goes through their files again


@dataclass(frozen=True)
class Setup:
    """What everything is measured with."""

    device: torch.device
    autocast: torch.dtype | None
    batch_size: int
    workers: int
    compile: bool
    watch: Stopwatch

    @property
    def world(self) -> World:
        return World(self.device, self.autocast)

    def batch(self, size: int, layout=torch.contiguous_format) -> tuple[Tensor, Tensor]:
        """Float images and labels on the device."""
        images = torch.randn(size, 3, SIZE, SIZE, generator=generator(0))
        images = images.to(self.device, memory_format=layout)
        return images, (torch.arange(size) % 7).to(self.device)


@dataclass(frozen=True)
class Source:
    """Images, and how either pipeline loads them."""

    name: str
    split: Split
    augment: Augmentation
    transform: Callable  # the released equivalent of `augment`
    streamed: bool = False  # where false, kept in memory

    def resized(self, count: int) -> "Source":
        """The first `count` images, from the start again where there are fewer."""
        split = self.split
        names, labels = np.resize(split.names, count), np.resize(split.labels, count)
        return replace(self, split=Split(split.root, names, labels))

    def loader(self, setup: Setup, order: Order = in_order) -> FaceLoader:
        options = {"batch_size": setup.batch_size, "image_size": SIZE, "workers": setup.workers}
        with mock.patch("utils.data.loader.CACHE_SHARE", 0 if self.streamed else 1):
            return FaceLoader(self.split, **options, world=setup.world, order=order)

    def plain_loader(self, setup: Setup, *, shuffle: bool) -> DataLoader:
        paths = [self.split.path(i) for i in range(len(self.split))]
        return DataLoader(
            ImageFiles(paths, self.split.labels, self.transform),
            batch_size=setup.batch_size,
            shuffle=shuffle,
            num_workers=setup.workers,
            pin_memory=setup.device.type == "cuda",
        )


def training_of(setup: Setup) -> Run:
    """The recipe's; nothing of it is written."""
    parser = cli.RecipeParser("", "bench", batch_size=setup.batch_size, lr=1e-3, epochs=1)
    flags = ["--image_size", str(SIZE), "--output_dir", os.devnull]
    args, _ = cli.parse(parser, [*flags, *(["--compile"] if setup.compile else [])])
    model = setup.world.place(DAN(num_class=7))
    criterion = setup.world.place(DANLoss(num_class=7))
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000)
    split = Split(Path(), np.zeros(7, "S1"), np.arange(7))
    data = FaceData("bench", RAFDB, split, split)
    with mock.patch.object(World, "print_once"):
        run = Run(args, None, data, setup.world, model, criterion, optimizer, scheduler)
    model.train()
    return run


def bare_steps(run: Run, images: Tensor, labels: Tensor, count: int = 1) -> None:
    """What `engine.train_one_epoch` does without loading, augmenting and logging."""
    for _ in range(count):
        losses, _ = run.forward(images, labels)
        run.optimizer.zero_grad()
        losses.total.backward()
        run.optimizer.step()


def whole_epoch(run: Run, loader: FaceLoader, augment: Augmentation) -> None:
    """The first one, as often as it is asked for."""
    run.progress = run._new_progress()
    engine.train_one_epoch(run, loader, augment)


def draw_sources(folder: Path, count: int) -> tuple[Source, Source]:
    """`count` images each, as RAF-DB kept in memory and as AffectNet streamed."""
    drawn = min(count, DRAWN)
    write_rafdb(folder / "rafdb", train=drawn, test=7)
    write_affectnet(folder / "affectnet", train=drawn, val=8)
    jpegs = folder / "affectnet/train_set/images"
    streamed = Split(jpegs, np.array(os.listdir(jpegs), "S"), np.arange(drawn) % 7)
    kept = read_rafdb(folder / "rafdb").train
    return (
        Source("100x100 from memory", kept, rafdb.AUGMENT, yardstick.RAFDB_TRAIN).resized(count),
        Source(
            "224x224 JPEGs", streamed, affectnet.AUGMENT, yardstick.AFFECTNET_TRAIN, streamed=True
        ).resized(count),
    )


def train_released(setup: Setup) -> None:
    training, batch = YardstickTraining(setup.device), setup.batch(setup.batch_size)
    for _ in range(3):
        training.step(*batch)


def train_ours(setup: Setup) -> None:
    bare_steps(training_of(setup), *setup.batch(setup.batch_size, torch.channels_last), count=3)
