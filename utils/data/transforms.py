"""Preprocessing and augmentation of whole uint8 batches, on the device where they lie.

What torchvision does to one PIL image at a time happens here to a batch in a handful of
operations, every image with draws of its own. Draws are made on the CPU and are plain numbers
there: which images an operation touches is then known without asking the device, so nothing here
waits for it, and the CPU and CUDA see the same augmentation.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ERASING_ATTEMPTS = 10  # as many as torchvision's RandomErasing makes
_CPU_PIECE = 32  # images that pass all steps together on a CPU: buffers that small are reused
_FAR = 1 << 29  # a 16.16 fixed-point coordinate outside every image, whatever is added to it


class Draws(NamedTuple):
    """What chance decides for each of N images; all tensors on the CPU."""

    flip: Tensor  # (N,) bool
    geometric: Tensor  # (N,) bool: whether the next four apply
    angle: Tensor  # (N,) float64, degrees clockwise
    scale: Tensor  # (N,) float64
    shift: Tensor  # (N, 2) int64, pixels right and down
    crop: Tensor  # (N, 2) int64, left and top of the crop, negative in the padding
    erase: Tensor  # (N, 4) int64 top, left, height, width; height 0 for none

    def of(self, images: slice) -> "Draws":
        """The draws of some of the images."""
        return Draws(*(values[images] for values in self))


@dataclass(frozen=True)
class Augmentation:
    """The training transform: resize, flip, affine map, padded crop, normalise, erase.

    The arguments mean what they do in torchvision's RandomHorizontalFlip, RandomAffine,
    RandomCrop and RandomErasing, and so do the results on PIL images: nearest pixel, black
    outside the image, erased areas 0 after normalisation.
    """

    flip: float = 0.0  # probability of a horizontal flip
    geometric: float = 0.0  # probability of rotation, scale, translation and crop together
    rotation: float = 0.0  # largest angle in degrees, either way
    scale: tuple[float, float] = (1.0, 1.0)  # range of the scale factor
    translate: float = 0.0  # largest shift along each axis, as a fraction of the side
    crop_padding: float = 0.0  # on each side before a crop back to the size, as a fraction of it
    erasing: float = 0.0  # probability that a rectangle is erased
    erasing_scale: tuple[float, float] = (0.02, 0.25)  # range of the rectangle's share of the image
    erasing_ratio: tuple[float, float] = (0.3, 3.3)  # range of its height divided by its width

    def draw(self, n: int, size: int, generator: torch.Generator) -> Draws:
        """Draw for n images.

        Args:
            size: side of the network's input in pixels.
            generator: of the CPU; it advances by the same amount for every batch of n.
        """
        # Drawn whether needed or not, so that no image's numbers depend on another's.
        u = torch.rand(n, 9 + 4 * _ERASING_ATTEMPTS, generator=generator, dtype=torch.float64)
        padding = round(self.crop_padding * size)
        return Draws(
            flip=u[:, 0] < self.flip,
            geometric=u[:, 1] < self.geometric,
            angle=self.rotation * (2 * u[:, 2] - 1),
            scale=self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 3],
            shift=(self.translate * size * (2 * u[:, 4:6] - 1)).round().long(),
            crop=(u[:, 6:8] * (2 * padding + 1)).long() - padding,
            erase=self._rectangles(u[:, 9:].unflatten(1, (-1, 4)), size)
            * (u[:, 8:9] < self.erasing),
        )

    def _rectangles(self, u: Tensor, size: int) -> Tensor:
        """Uniform numbers (N, attempts, 4) -> the first rectangle that fits, (N, 4) int64."""
        low, high = self.erasing_scale
        area = (low + (high - low) * u[..., 0]) * size**2
        low, high = map(math.log, self.erasing_ratio)
        ratio = (low + (high - low) * u[..., 1]).exp()
        height = (area * ratio).sqrt().round()
        width = (area / ratio).sqrt().round()
        fits = (height < size) & (width < size)
        top = (u[..., 2] * (size - height + 1)).floor()
        left = (u[..., 3] * (size - width + 1)).floor()
        rectangles = torch.stack([top, left, height, width], dim=-1) * fits.unsqueeze(-1)
        first = fits.int().argmax(1)  # the first of equal values; attempt 0, all zero, if none fits
        return rectangles[torch.arange(len(u)), first].long()


def preprocess(images: Tensor, size: int, draws: Draws | None = None) -> Tensor:
    """Resize to a square, augment if there are draws, and normalise.

    Args:
        images: (N, 3, h, w) uint8 RGB, on any device.
        size: side of the result in pixels.
        draws: of `Augmentation.draw` for the N images and this size.

    Returns:
        (N, 3, size, size) float32 in channels-last memory: ImageNet-normalised, resized as
        torchvision's `Resize((size, size))` resizes a PIL image.
    """
    n = len(images)
    result = torch.empty(n, size, size, 3, device=images.device)
    step = max(n, 1) if images.is_cuda else _CPU_PIECE
    for start in range(0, n, step):
        piece = slice(start, start + step)
        pixels = _resize(images[piece], size)  # (M, size, size, 3) uint8
        if draws is None:
            _normalize(pixels, out=result[piece])
            continue
        drawn = draws.of(piece)
        _flip(pixels, drawn.flip)
        _warp(pixels, drawn)
        _normalize(pixels, out=result[piece])
        _erase(result[piece], drawn.erase)
    return result.permute(0, 3, 1, 2)


def _resize(images: Tensor, size: int) -> Tensor:
    """(N, 3, h, w) uint8 -> (N, size, size, 3) uint8, contiguous and never the same memory."""
    if images.shape[-2:] == (size, size):
        return images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    images = images.contiguous(memory_format=torch.channels_last)
    # PIL widens its filter where it shrinks, which is what antialias means.
    kind = {"size": (size, size), "mode": "bilinear", "antialias": True}
    if images.is_cuda:  # where the operation has no uint8 form
        images = F.interpolate(images.float(), **kind).round_().clamp_(0, 255).byte()
    else:
        images = F.interpolate(images, **kind)
    return images.permute(0, 2, 3, 1).contiguous()


def _normalize(images: Tensor, out: Tensor) -> None:
    """(N, h, w, 3) uint8 -> float32 in `out`, of the same shape."""
    n, height, width, _ = images.shape
    # (x / 255 - mean) / std = x * factor + offset. Constants as long as a row of pixels, because
    # broadcasting over a last axis of three is several times slower.
    std = torch.tensor(IMAGENET_STD)
    constants = torch.stack([1 / (255 * std), -torch.tensor(IMAGENET_MEAN) / std])
    factor, offset = to_device(constants.repeat(1, width), images.device)  # (3 * width,) each
    rows = out.copy_(images).view(n * height, width * 3)
    torch.addcmul(offset, rows, factor, out=rows)


def _flip(images: Tensor, flip: Tensor) -> None:
    """Mirror, in place, the images (N, h, w, 3) that the flags (N,) name."""
    chosen = to_device(flip.nonzero().squeeze(1), images.device)
    images[chosen] = images.index_select(0, chosen).flip(2)


def _warp(images: Tensor, draws: Draws) -> None:
    """Map, in place, the images (N, size, size, 3) that `draws.geometric` names.

    The affine map about the centre and the padded crop after it become one look-up of the nearest
    pixel. Coordinates are PIL's 16.16 fixed-point numbers, so that the result is PIL's to the bit
    on every device.
    """
    size = images.shape[1]
    chosen = draws.geometric.nonzero().squeeze(1)
    terms = to_device(_source_terms(draws, chosen, size), images.device)
    chosen = to_device(chosen, images.device)
    x = terms[0].unsqueeze(1) + terms[1].unsqueeze(2)  # (M, size, size)
    y = terms[2].unsqueeze(1) + terms[3].unsqueeze(2)
    # A black frame of one pixel catches whatever points outside the image.
    framed = F.pad(images.index_select(0, chosen), (0, 0, 1, 1, 1, 1))
    side = size + 2
    x = x.bitwise_right_shift_(16).clamp_(-1, size)
    y = y.bitwise_right_shift_(16).clamp_(-1, size)
    first = torch.arange(len(chosen), dtype=torch.int32, device=images.device) * side**2 + side + 1
    index = x.add_(y, alpha=side).add_(first.view(-1, 1, 1))
    warped = framed.view(-1, 3).index_select(0, index.view(-1))
    images[chosen] = warped.view(-1, size, size, 3)


def _source_terms(draws: Draws, chosen: Tensor, size: int) -> Tensor:
    """Where in the source each pixel of M chosen images comes from, in 16.16 fixed point.

    Returns:
        (4, M, size) int32: the source's x is the sum of the first for the pixel's column and the
        second for its row; its y the sum of the third for the column and the fourth for the row.
    """
    angle = draws.angle[chosen].deg2rad()
    cos, sin = angle.cos() / draws.scale[chosen], angle.sin() / draws.scale[chosen]
    # The inverse of: rotate and scale about the centre, then shift. A pixel's centre is at +0.5.
    right, down = (0.5 - size / 2 - draws.shift[chosen]).unbind(1)
    x0 = cos * right + sin * down + size / 2
    y0 = -sin * right + cos * down + size / 2
    fixed = (torch.stack([cos, sin, x0, -sin, cos, y0]) * 65536 + 0.5).floor().long()
    fixed = fixed.unsqueeze(2)  # (6, M, 1)
    # The padded crop moves the pixel; off the uncropped square there is black.
    pixel = draws.crop[chosen].T.unsqueeze(2) + torch.arange(size)  # (2, M, size)
    column, row = pixel
    terms = torch.stack(
        [fixed[0] * column, fixed[1] * row + fixed[2], fixed[3] * column, fixed[4] * row + fixed[5]]
    )
    outside = (pixel < 0) | (pixel >= size)
    terms[0].masked_fill_(outside[0], _FAR)
    terms[3].masked_fill_(outside[1], _FAR)
    return terms.int()


def _erase(images: Tensor, rectangles: Tensor) -> None:
    """Set rectangles (N, 4) of images (N, h, w, 3) to 0, in place, touching their rows alone."""
    n, height, width, _ = images.shape
    top, left, count, across = rectangles.unbind(1)
    # One entry per row of pixels that a rectangle crosses.
    owner = torch.arange(n).repeat_interleave(count)  # the row's image
    before = (count.cumsum(0) - count)[owner]
    row = owner * height + top[owner] + torch.arange(len(owner)) - before
    span = torch.stack([row, 3 * left[owner], 3 * (left + across)[owner]])
    row, start, stop = to_device(span, images.device).unsqueeze(2)
    column = torch.arange(width * 3, device=images.device)
    rows = images.view(n * height, width * 3)
    kept = rows.index_select(0, row[:, 0]).masked_fill_((column >= start) & (column < stop), 0)
    rows.index_copy_(0, row[:, 0], kept)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move from the CPU, unless it lies there already, without waiting for the device."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
