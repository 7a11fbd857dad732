"""Batched transforms against torchvision's per-image ones, given the same draws."""

import math
import os

import matplotlib
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.transforms import InterpolationMode

import affectnet
import rafdb
from utils.data.transforms import Augmentation, Draws, preprocess

RAFDB, AFFECTNET = rafdb.AUGMENT, affectnet.AUGMENT
# As torchvision's documentation gives them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(n, height, width):
    """n different pieces of a photo: (n, 3, height, width) uint8."""
    path = os.path.join(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")
    photo = Image.open(path).convert("RGB")
    boxes = [(100 + 3 * i, 20 + 2 * i, 350 + 4 * i, 330 + 3 * i) for i in range(n)]
    pieces = [np.asarray(photo.resize((width, height), box=box)) for box in boxes]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).contiguous()


def augmented(recipe, images, size):
    return preprocess(images, size, recipe.draw(len(images), size, generator()))


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def grey_levels(result):
    """Undo the normalisation: float (N, 3, h, w) -> grey levels 0-255."""
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (result * std + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255


def torchvision_normalized(image):
    return TF.normalize(TF.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


def torchvision_augmented(image, size, draws, i):
    """One image through the released recipes' chain of PIL operations."""
    image = TF.resize(to_pil(image), [size, size])
    if draws.flip[i]:
        image = TF.hflip(image)
    if draws.geometric[i]:
        image = TF.affine(
            image,
            angle=draws.angle[i].item(),
            translate=draws.shift[i].tolist(),
            scale=draws.scale[i].item(),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.NEAREST,
        )
        left, top = draws.crop[i].tolist()
        image = TF.crop(image, top, left, size, size)  # black outside the image
    result = torchvision_normalized(image)
    top, left, height, width = draws.erase[i].tolist()
    return TF.erase(result, top, left, height, width, torch.zeros(())) if height else result


def unchanged(n):
    """Draws that leave images without crop padding as they are."""
    return Draws(
        flip=torch.zeros(n, dtype=torch.bool),
        geometric=torch.zeros(n, dtype=torch.bool),
        angle=torch.zeros(n, dtype=torch.float64),
        scale=torch.ones(n, dtype=torch.float64),
        shift=torch.zeros(n, 2, dtype=torch.int64),
        crop=torch.zeros(n, 2, dtype=torch.int64),
        erase=torch.zeros(n, 4, dtype=torch.int64),
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "height, width", [(96, 96), (100, 100), (224, 224), (300, 180), (640, 480)]
)
def test_preprocess_equals_torchvision(height, width):
    images = photos(3, height, width)
    result = preprocess(images, 224)
    assert result.shape == (3, 3, 224, 224) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack(
        [torchvision_normalized(TF.resize(to_pil(i), [224, 224])) for i in images]
    )
    difference = (grey_levels(result) - grey_levels(expected)).abs()
    assert difference.max() < 1.01  # each has rounded to a grey level
    assert difference.mean() < 0.3
    if height == width == 224:
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("transform", [preprocess, lambda i, s: augmented(RAFDB, i, s)])
def test_memory_layout_does_not_matter_and_the_input_stays(transform):
    for side in (64, 96):
        images = photos(33, 96, 96)
        before = images.clone()
        last = images.contiguous(memory_format=torch.channels_last)
        strided = images.repeat_interleave(2, dim=3)[..., ::2]
        assert torch.equal(transform(images, side), transform(last, side))
        assert torch.equal(transform(images, side), transform(strided, side))
        assert torch.equal(images, before) and torch.equal(last, before)


@pytest.mark.parametrize("n", [0, 1, 33])
def test_any_number_of_images(n):
    images = torch.zeros(n, 3, 40, 40, dtype=torch.uint8)
    assert preprocess(images, 32).shape == (n, 3, 32, 32)
    assert augmented(AFFECTNET, images, 32).shape == (n, 3, 32, 32)


def test_flip_crop_and_erasing_are_exact():
    """Where torchvision only moves whole pixels, so do we."""
    images = photos(6, 224, 224)
    draws = unchanged(6)
    draws.flip[[0, 2]] = True
    draws.geometric[:5] = True
    draws.crop[:] = torch.tensor([[0, 0], [64, 64], [32, 32], [5, 60], [40, 0], [0, 0]]) - 32
    draws.shift[3] = torch.tensor([-30, 44])
    draws.erase[[1, 2]] = torch.tensor([[0, 0, 50, 223], [100, 200, 124, 24]])
    result = preprocess(images, 224, draws)
    expected = [torchvision_augmented(image, 224, draws, i) for i, image in enumerate(images)]
    torch.testing.assert_close(result, torch.stack(expected), atol=2e-6, rtol=0)
    assert (result[1, :, :50, :223] == 0).all() and (result[2, :, 100:, 200:] == 0).all()


@pytest.mark.parametrize("recipe", [RAFDB, AFFECTNET])
@pytest.mark.parametrize("height, width, size", [(224, 224, 224), (100, 100, 224), (120, 90, 97)])
def test_recipes_equal_torchvision(recipe, height, width, size):
    images = photos(16, height, width)
    draws = recipe.draw(16, size, generator(1))._replace(geometric=torch.arange(16) % 4 != 0)
    result = preprocess(images, size, draws)
    expected = torch.stack(
        [torchvision_augmented(image, size, draws, i) for i, image in enumerate(images)]
    )
    difference = (grey_levels(result) - grey_levels(expected)).abs()
    # A nearest pixel may fall either way at an edge; everything else is within a grey level.
    assert (difference > 1.01).float().mean() < 1e-4
    if height == width == size:
        assert (difference > 0.01).float().mean() < 1e-4


def test_rotation_equals_torchvision_rotate():
    """RandomRotation counts its angles counter-clockwise, the affine map clockwise."""
    images = photos(8, 128, 128)
    angle = torch.tensor([-20, -13.37, -1, -0.01, 0, 0.5, 7.7, 20], dtype=torch.float64)
    draws = unchanged(8)._replace(angle=angle, geometric=torch.ones(8, dtype=torch.bool))
    result = grey_levels(preprocess(images, 128, draws))
    for image, degrees, ours in zip(images, angle.tolist(), result, strict=True):
        rotated = TF.pil_to_tensor(TF.rotate(to_pil(image), -degrees))
        assert ((ours - rotated).abs() > 0.01).float().mean() < 1e-4


def test_each_image_has_draws_of_its_own():
    draws = AFFECTNET.draw(64, 224, generator())
    for values in (draws.angle, draws.scale, draws.erase[draws.erase[:, 2] > 0]):
        assert len(values.unique(dim=0)) == len(values)
    # The first images draw the same whatever follows them, and a second batch draws anew.
    for values, fewer in zip(draws, AFFECTNET.draw(10, 224, generator()), strict=True):
        assert torch.equal(values[:10], fewer)
    source = generator()
    AFFECTNET.draw(64, 224, source)
    assert not torch.equal(AFFECTNET.draw(64, 224, source).angle, draws.angle)


@pytest.mark.parametrize("recipe", [RAFDB, AFFECTNET])
def test_rates_and_ranges(recipe):
    n, size = 20_000, 224
    draws = recipe.draw(n, size, generator())

    def assert_rate(flags, p):
        assert abs(flags.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)

    def assert_uniform(values, low, high):
        values = values.double()
        assert low <= values.min() < low + 0.01 * (high - low) + 0.5
        assert high - 0.01 * (high - low) - 0.5 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * n) + 1e-9

    assert_rate(draws.flip, 0.5)
    assert_rate(draws.geometric, recipe.geometric)
    assert_rate(draws.erase[:, 2] > 0, 0.5)
    assert_uniform(draws.angle, -20, 20)
    assert_uniform(draws.scale, *recipe.scale)
    padding = round(recipe.crop_padding * size)
    shift = round(recipe.translate * size)
    for axis in (0, 1):
        assert_uniform(draws.crop[:, axis], -padding, padding)
        assert_uniform(draws.shift[:, axis], -shift, shift)
    # Flags and erasing are independent of each other.
    assert_rate(draws.flip & (draws.erase[:, 2] > 0), 0.25)
    assert_rate(draws.flip & draws.geometric, recipe.geometric / 2)


@pytest.mark.parametrize("scale", [(0.02, 0.25), (0.02, 0.33)])
def test_erased_areas_and_ratios(scale):
    draws = Augmentation(erasing=1.0, erasing_scale=scale).draw(20_000, 224, generator())
    top, left, height, width = draws.erase.double().unbind(1)
    assert (height > 0).all() and (width > 0).all()
    assert (height < 224).all() and (width < 224).all()
    assert (top >= 0).all() and (top + height <= 224).all() and (top + height == 224).any()
    assert (left >= 0).all() and (left + width <= 224).all() and (left + width == 224).any()
    area, ratio = height * width / 224**2, height / width
    assert area.min() > scale[0] * 0.95 and area.max() < scale[1] * 1.05
    assert ratio.min() > 0.3 * 0.93 and ratio.max() < 3.3 * 1.07
    assert abs(area.mean() - sum(scale) / 2) < 0.005
    assert abs(ratio.log().mean() - math.log(0.3 * 3.3) / 2) < 0.03


def test_erasing_tries_ten_times_then_leaves_the_image():
    """An area of one and a half images fits only with luck; twenty images never do."""
    never = Augmentation(erasing=1.0, erasing_scale=(20.0, 20.0)).draw(100, 224, generator())
    assert (never.erase == 0).all()
    # About one candidate in three fits: nearly all of ten attempts, not of one.
    big = Augmentation(erasing=1.0, erasing_scale=(0.2, 1.4)).draw(5000, 224, generator())
    erased = big.erase[:, 2] > 0
    assert 0.95 < erased.double().mean() < 1
    assert (big.erase[~erased] == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("side", [100, 224])
def test_cuda_equals_cpu_without_synchronising(side):
    images = photos(40, side, side)
    on_gpu = images.cuda()
    augmented(AFFECTNET, on_gpu, 224)  # the first call allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = augmented(AFFECTNET, on_gpu, 224)
        plain = preprocess(on_gpu, 224)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, expected in (
        (ours, augmented(AFFECTNET, images, 224)),
        (plain, preprocess(images, 224)),
    ):
        assert result.is_contiguous(memory_format=torch.channels_last)
        difference = (grey_levels(result.cpu()) - grey_levels(expected)).abs()
        assert difference.max() < 1.01 and difference.mean() < 0.1
