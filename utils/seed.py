"""Randomness that depends on the seed and on where in the run it is drawn, on nothing else."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices), for what draws from global state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*key: int) -> torch.Generator:
    """A CPU generator of its own for a key such as (seed, epoch, step).

    The draws of a step are then the same whether the run got there in one go, was resumed,
    loads with other workers or trains on another device.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
