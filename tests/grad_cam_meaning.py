"""Do the maps lie on what carries the expression? For checkpoints trained on toy faces.

    python tests/grad_cam_meaning.py models/toy-rafdb/best.pth

Prints for each method how much more of the maps' mass lies on brows, eyes and mouth than these
have of the area (1 is chance), and for how many faces it is more.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.dan import DAN
from utils.face_data import Split
from utils.head_maps import METHODS, PER_CHANNEL, head_maps, normalise
from utils.images import read_rgb
from utils.map_sheets import resize_map
from utils.readers import read_rafdb
from utils.toy_faces import redraw_face
from utils.trained import read_trained
from utils.transforms import preprocess


class Meaning(NamedTuple):
    """Over the correctly classified faces."""

    faces: int
    gain: float  # mean share of the mass on the features divided by their share of the area
    above: float  # fraction of the faces where it is more than 1


def measure(model: DAN, split: Split, *, num_images: int, image_size: int, method: str) -> Meaning:
    """The mean over the heads of a method's maps, as they are drawn, against the drawn features."""
    paths = [split.path(i) for i in range(num_images)]
    images = torch.tensor(np.stack([read_rgb(path) for path in paths])).permute(0, 3, 1, 2)
    gains = []
    for start in range(0, num_images, 1 if method in PER_CHANNEL else 32):
        part = slice(start, start + (1 if method in PER_CHANNEL else 32))
        result = head_maps(model, preprocess(images[part], image_size), method=method)
        correct = result.probabilities.argmax(dim=1).numpy() == split.labels[:num_images][part]
        for path, maps, right in zip(paths[part], normalise(result.maps), correct, strict=True):
            if not right:
                continue
            features = redraw_face(path).features
            size = features.shape[::-1]
            mean = np.mean([np.asarray(resize_map(heat, size), float) for heat in maps], axis=0)
            share = mean[features].sum() / max(mean.sum(), 1e-9)
            gains.append(share / features.mean())
    return Meaning(len(gains), float(np.mean(gains)), float(np.mean(np.array(gains) > 1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="of a run of rafdb.py --toy")
    parser.add_argument("--num_images", type=int, default=105, help="default 105")
    fast = [method for method in METHODS if method not in PER_CHANNEL]
    parser.add_argument("--method", nargs="+", choices=METHODS, default=fast)
    args = parser.parse_args()
    trained = read_trained(args.checkpoint)
    model = DAN(num_class=trained.num_class, num_head=trained.num_head)
    trained.load_into(model)
    model.eval().requires_grad_(False)
    split = read_rafdb(trained.config["raf_path"]).val
    for method in args.method:
        faces, gain, above = measure(
            model,
            split,
            num_images=args.num_images,
            image_size=trained.image_size,
            method=method,
        )
        print(f"{method:13s} {gain:5.2f} times chance, more in {100 * above:5.1f} % of {faces}")


if __name__ == "__main__":
    main()
