"""What a run computes on, and in which precision."""

import re

import torch

from utils.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N")
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            there = f"there are {count} GPUs" if count else "there is no GPU that PyTorch can use"
            raise UserError(f"--device {name}: {there}; use --device cpu or auto")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, None for plain float32. auto is bf16 where it is native."""
    if name == "auto":
        name = "bf16" if _native_bf16(device) else "fp32"
    return torch.bfloat16 if name == "bf16" else None


def _native_bf16(device: torch.device) -> bool:
    """CUDA of compute capability 8 and up; CPUs with AMX or AVX512-bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"
