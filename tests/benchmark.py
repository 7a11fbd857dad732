"""Measure the released pipeline (bench/yardstick.py) and ours side by side, as a Markdown table.

    python tests/benchmark.py                 on CUDA where there is one, else on the CPU
    python tests/benchmark.py --quick         smaller and fewer runs, for a first look

All data is drawn. Lines appear on stderr as they are measured, the table on stdout at the end.
"released" is float32 as PyTorch does it unasked, on CUDA with convolutions in TF32.
"""

import argparse
import datetime
import os
import platform
import re
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.dan import DAN
from networks.fused import fuse
from tests.bench import yardstick
from tests.bench.demonstration import measure_demo, write_networks
from tests.bench.measuring import Stopwatch, Table, peak_bytes
from tests.bench.pipelines import (
    SIZE,
    Setup,
    Source,
    bare_steps,
    draw_sources,
    train_ours,
    train_released,
    training_of,
    whole_epoch,
)
from tests.bench.yardstick import Yardstick, YardstickTraining, maps_one_by_one
from utils import cli
from utils.data.loader import shuffled
from utils.demo.predictor import OnnxNetwork
from utils.device import device_name, resolve_device, resolve_precision
from utils.errors import exit_on_user_error
from utils.heatmaps.maps import head_maps
from utils.training import engine


def measure_training_step(setup: Setup, table: Table) -> None:
    count = setup.batch_size
    released = partial(YardstickTraining(setup.device).step, *setup.batch(count))
    setups = {"": replace(setup, compile=False)}
    if setup.compile:
        setups[", compiled"] = setup
    batch = setup.batch(count, torch.channels_last)
    calls = [partial(bare_steps, training_of(variant), *batch) for variant in setups.values()]
    theirs, *seconds = setup.watch.medians(released, *calls, times=2)
    for name, ours in zip(setups, seconds, strict=True):
        table.rates(f"training step, batch {count}{name}", count, theirs, ours)


def measure_epoch(setup: Setup, table: Table, source: Source) -> None:
    """A training epoch with loading, and the same steps on a fixed batch beside it."""
    released, training = YardstickTraining(setup.device), training_of(setup)
    batch = setup.batch(setup.batch_size, torch.channels_last)
    loader = source.loader(setup, order=shuffled)
    theirs, ours, bare = setup.watch.medians(
        partial(released.epoch, source.plain_loader(setup, shuffle=True)),
        partial(whole_epoch, training, loader, source.augment),
        partial(bare_steps, training, *batch, count=len(loader)),
        warm_up=setup.device.type == "cuda",
    )
    table.rates(f"training epoch, {source.name}", len(source.split), theirs, ours)
    table.rates("- its steps alone, on a fixed batch", len(source.split), None, bare)


def measure_evaluation(setup: Setup, table: Table, source: Source) -> None:
    setup = replace(setup, batch_size=64)
    released = YardstickTraining(setup.device)
    fused = fuse(DAN(num_class=7).eval().to(setup.device), image_size=64, dtype=setup.autocast)
    plain = replace(source, transform=yardstick.EVALUATION).plain_loader(setup, shuffle=False)
    theirs, ours = setup.watch.medians(
        partial(released.evaluate, plain),
        partial(engine.evaluate, fused, source.loader(setup), SIZE),
        warm_up=setup.device.type == "cuda",
    )
    table.rates("evaluation with loading, batch 64", len(source.split), theirs, ours)


@torch.inference_mode()
def measure_forward(setup: Setup, table: Table, onnx_file: Path) -> None:
    """The network alone, on a fixed batch of float32 images, channels first; ONNX Runtime, on a CPU
    only, on uint8 faces, which it normalises."""
    released = Yardstick().to(setup.device).eval()
    model = DAN(num_class=7).to(setup.device).eval()
    networks = {"float32": fuse(model, image_size=64, dtype=None)}
    if setup.autocast:
        networks["bf16"] = fuse(model, image_size=64, dtype=setup.autocast)
    if setup.compile:
        for name, network in list(networks.items()):
            networks[f"{name}, compiled"] = torch.compile(network, dynamic=False)
    runtime = OnnxNetwork(onnx_file, "cpu", None)
    for size in (64, 16, 1):
        images, _ = setup.batch(size)
        calls = {name: partial(network, images) for name, network in networks.items()}
        if setup.device.type == "cpu":
            faces = np.zeros((size, SIZE, SIZE, 3), dtype=np.uint8)
            calls["ONNX Runtime"] = partial(runtime.probabilities, faces)
        theirs, *seconds = setup.watch.medians(
            partial(released, images), *calls.values(), times=10 if size == 1 else 3
        )
        for name, ours in zip(calls, seconds, strict=True):
            if size == 1:
                table.latency(f"latency, batch 1, {name}", theirs, ours)
            else:
                table.rates(f"forward, batch {size}, {name}", size, theirs, ours)


def measure_host(setup: Setup, table: Table, source: Source) -> None:
    """One core that loads: the released one does all there, ours can leave the rest to a GPU."""
    setup = replace(setup, device=torch.device("cpu"), batch_size=64, workers=0)
    source = source.resized(setup.batch_size)
    loader = source.loader(setup, order=shuffled)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs, ours = replace(setup.watch, device=setup.device).medians(
        lambda: list(source.plain_loader(setup, shuffle=True)),
        lambda: list(loader.epoch()),
        times=3,
    )
    torch.set_num_threads(threads)
    table.rates(f"one core, {source.name}", setup.batch_size, theirs, ours)


def measure_heat_maps(setup: Setup, table: Table) -> None:
    images, _ = setup.batch(4 if setup.device.type == "cpu" else 64)
    released = DAN(num_class=7).to(setup.device).eval()
    model = DAN(num_class=7).to(setup.device, memory_format=torch.channels_last).eval()
    theirs, ours = setup.watch.medians(
        partial(maps_one_by_one, released, images),
        partial(head_maps, model.requires_grad_(False), images, method="gradcam++"),
    )
    table.rates(f"Grad-CAM++ of 4 heads, {len(images)} images", len(images), theirs, ours)


def measure_memory(setup: Setup, table: Table) -> None:
    if setup.device.type == "cuda" or sys.platform == "linux":
        released = peak_bytes(setup.device, train_released, setup)
        ours = peak_bytes(setup.device, train_ours, setup)
        table.memory(f"peak memory of training, batch {setup.batch_size}", released, ours)


def parse() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    cli.add_device_flag(parser)
    add = parser.add_argument
    add("--quick", action="store_true", help="a first look: one run of each")
    add("--compile", action="store_true", help="torch.compile's figures as well")
    images = "an epoch's (default: 256 on a CPU, RAF-DB's 12,271 on CUDA, 64 if --quick)"
    add("--images", type=cli.whole_number(1), help=f"{images}, rounded up to whole batches")
    batch_size = "images a training step (default: 32 on a CPU, 256 on CUDA, 16 if --quick)"
    add("--batch_size", type=cli.whole_number(1), help=batch_size)
    workers = min(16, os.cpu_count() or 1)
    add("--workers", type=cli.whole_number(0), default=workers, help="a loader's")
    return parser.parse_args()


def main() -> None:
    args = parse()
    device = resolve_device(args.device)
    autocast = resolve_precision("auto", device)
    images, batch_size = (12271, 256) if device.type == "cuda" else (256, 32)
    if args.quick:
        images, batch_size = 64, 16
    batch_size = args.batch_size or batch_size
    images = -(-(args.images or images) // batch_size) * batch_size
    setup = Setup(
        device=device,
        autocast=autocast,
        batch_size=batch_size,
        workers=args.workers,
        compile=args.compile,
        watch=Stopwatch(device, repeats=1 if args.quick else 3),
    )
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the released scripts and ours alike
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        rafdb, affectnet = draw_sources(Path(folder), images)
        measure_training_step(setup, table)
        for source in (rafdb, affectnet):
            measure_epoch(setup, table, source)
        measure_evaluation(setup, table, rafdb)
        networks = write_networks(Path(folder))
        measure_forward(setup, table, networks["ONNX Runtime"])
        for source in (rafdb, affectnet):
            measure_host(setup, table, source)
        measure_heat_maps(setup, table)
        measure_memory(setup, table)
        measure_demo(setup, table, Path(folder), networks)
    print(table)
    print(f"\n{describe(setup)}; {images} images an epoch")


def describe(setup: Setup) -> str:
    """Date, machine, versions and how it was measured."""
    return (
        f"{datetime.date.today()}, {device_name(setup.device)}, {processor_name()}, "
        f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}; "
        f"ours in {'float32' if setup.autocast is None else 'bf16'} unless a line says otherwise, "
        f"{setup.workers} workers each, medians of {setup.watch.repeats} runs or more"
    )


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*: (.*)", cpuinfo.read_text())
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
