"""Measure whether heat maps lie on brows, eyes and mouth, for a checkpoint of toy RAF-DB.

python tests/grad_cam_meaning.py models/toy-rafdb/best.pth
"""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageFilter

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.dan import DAN
from utils.checkpoint import read_trained
from utils.data.datasets import Split, data_of
from utils.data.images import read_rgb
from utils.data.transforms import preprocess
from utils.heatmaps.maps import METHODS, head_maps, normalize
from utils.toy import render
from utils.toy.sets import ToySet, read_toy_set

COUNT = 105  # test faces


def features_of(toy: ToySet, index: int) -> np.ndarray:
    """(h, w) bool: where a test face differs from the same face without features."""
    face = toy.face("test", index).astype(int)
    with patch.object(render, "draw_features", return_value=[]):
        bare = toy.face("test", index)
    # The gain that keeps the mean colour changes all pixels by up to 14 levels.
    changed = Image.fromarray(np.abs(face - bare).max(axis=2) > 20)
    return np.asarray(changed.convert("L").filter(ImageFilter.MaxFilter(3))) > 0


def measure(model: DAN, split: Split, image_size: int, method: str) -> np.ndarray:
    """Compare the mean of the heads' maps with where the features were drawn.

    Returns:
        For each correctly classified face the features' share of the heat divided by their share
        of the area; 1 is chance.
    """
    paths = [split.path(i) for i in range(COUNT)]
    images = torch.tensor(np.stack([read_rgb(path) for path in paths])).permute(0, 3, 1, 2)
    probabilities, maps = head_maps(model, preprocess(images, image_size), method=method)
    correct = probabilities.argmax(dim=1).numpy() == split.labels[:COUNT]
    toy = read_toy_set(paths[0].parents[2])
    gains = []
    for i in correct.nonzero()[0]:
        features = features_of(toy, int(paths[i].stem[5:9]) - 1)  # test_0001_aligned
        heat = [
            Image.fromarray(heat).resize(features.shape[::-1], Image.Resampling.BICUBIC)
            for heat in normalize(maps[i])
        ]
        heat = np.stack(heat).clip(0, 1).mean(axis=0)
        gains.append(heat[features].sum() / max(heat.sum(), 1e-9) / features.mean())
    return np.array(gains)


if __name__ == "__main__":
    trained = read_trained(sys.argv[1])
    model, split = trained.network().requires_grad_(False), data_of(trained).val
    for method in METHODS:
        gains = measure(model, split, trained.image_size, method)
        print(f"{method:10s} {gains.mean():.2f} times chance, more in {(gains > 1).mean():.1%}")
