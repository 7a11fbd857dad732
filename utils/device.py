"""Device, precision and random state of a script."""

import random
import re

import numpy as np
import torch

from utils.errors import UserError, plural


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that exists.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N")
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            found = plural(count, "GPU") if count else "no GPU"
            raise UserError(f"--device {name}: PyTorch finds {found}; use --device cpu or auto")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Turn `auto`, `fp32` or `bf16` into the dtype for autocast, None for plain float32.

    `auto` is bf16 where the hardware supports it natively: CUDA from compute capability 8 on, and
    CPUs with AVX512-BF16 or AMX.
    """
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device)[0] >= 8
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bf16" if native else "fp32"
    return torch.bfloat16 if name == "bf16" else None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({plural(torch.get_num_threads(), 'thread')})"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*key: int) -> torch.Generator:
    """Make a CPU generator that depends on a key such as (seed, epoch, step) and nothing else.

    The draws of a step are then the same whether the run got there in one go or was resumed, and
    with any number of workers on any device.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
