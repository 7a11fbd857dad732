"""How much faster all heads' Grad-CAM++ maps come at once than one image and head at a time.

    python tests/grad_cam_speed.py

The slow way is the grad-cam package used as its documentation shows, and as the released script
does it: a forward pass and a backward pass through the whole network for each image and head.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pytorch_grad_cam import GradCAMPlusPlus
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.dan import DAN
from utils.head_maps import head_maps


class Speed(NamedTuple):
    """Median seconds for all images and heads."""

    at_once: float
    one_by_one: float

    @property
    def ratio(self) -> float:
        return self.one_by_one / self.at_once


class Logits(nn.Module):
    """The package cannot handle a model that returns a tuple."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def maps_one_by_one(model: DAN, images: Tensor) -> np.ndarray:
    """(N, 3, H, W) -> (N, K, H, W) float32 in [0, 1], of the predicted classes."""
    maps = []
    for head in model.heads:
        with GradCAMPlusPlus(model=Logits(model), target_layers=[head.sa]) as cam:
            maps.append([cam(input_tensor=image[None], targets=None)[0] for image in images])
    return np.stack(maps, axis=1)


def measure(
    *, num_images: int = 64, num_head: int = 4, image_size: int = 224, repeat: int = 3
) -> Speed:
    """Both ways on the CPU, alternating, after one small warm-up of each."""
    torch.manual_seed(0)
    images = torch.randn(num_images, 3, image_size, image_size)
    released = DAN(num_class=7, num_head=num_head).eval()
    ours = DAN(num_class=7, num_head=num_head).eval().requires_grad_(False)
    ours.load_state_dict(released.state_dict())
    ours.to(memory_format=torch.channels_last)
    inputs = images.contiguous(memory_format=torch.channels_last)

    def at_once(count: int) -> None:
        for batch in inputs[:count].split(32):
            head_maps(ours, batch)

    def one_by_one(count: int) -> None:
        maps_one_by_one(released, images[:count])

    at_once(2)
    one_by_one(2)
    times = [
        (_seconds(at_once, num_images), _seconds(one_by_one, num_images)) for _ in range(repeat)
    ]
    return Speed(*map(statistics.median, zip(*times, strict=True)))


def _seconds(function: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    function(count)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, default in (("num_images", 64), ("num_head", 4), ("image_size", 224), ("repeat", 3)):
        parser.add_argument(f"--{flag}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    speed = measure(**vars(args))
    print(
        f"Grad-CAM++ of {args.num_images} images of {args.image_size} px, {args.num_head} heads, "
        f"CPU with {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {args.repeat}\n"
        f"one image and head at a time  {speed.one_by_one:8.2f} s\n"
        f"all heads of a batch at once  {speed.at_once:8.2f} s\n"
        f"ratio                         {speed.ratio:8.1f}"
    )


if __name__ == "__main__":
    main()
