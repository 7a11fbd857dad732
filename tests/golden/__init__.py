"""Numbers of the released implementation, and the rule that makes its weights."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

CASES = ("rafdb_7class_4head", "affectnet_8class_4head")


def load(case: str) -> dict:
    """The arrays of one case; `meta` parsed, keys and shapes as plain lists."""
    with np.load(Path(__file__).parent / f"{case}.npz") as file:
        golden = dict(file)
    golden["meta"] = json.loads(str(golden["meta"]))
    golden["state_keys"] = golden["state_keys"].tolist()
    golden["state_shapes"] = [tuple(json.loads(shape)) for shape in golden["state_shapes"]]
    return golden


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of one state-dict entry, float64; `num_batches_tracked` is 0."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        value = np.exp(0.1 * draw)
    elif name.endswith("running_mean"):
        value = 0.1 * draw
    elif name.endswith("weight") and len(shape) >= 2:
        value = draw * np.sqrt(2 / np.prod(shape[1:]))
    elif name == "centers":
        value = draw
    else:
        value = 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw
        if ".bn2." in name:
            value *= 0.2
        if re.search(r"\.sa\.conv_\w+\.1\.", name):
            value *= 0.002
    return torch.from_numpy(value)


def state_dict(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights by the rule for everything in a module's state dict."""
    return {key: weights(key, tuple(value.shape)) for key, value in module.state_dict().items()}


def batch(meta: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, size, size) float64 and labels (N,) of a case."""
    n, size = meta["batch"], meta["size"]
    images = np.random.RandomState(meta["input_seed"]).standard_normal((n, 3, size, size))
    return torch.from_numpy(images), torch.arange(n) % meta["num_class"]
