"""Batched transforms against torchvision's per-image ones, given the same draws."""

import math
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.functional as TF

import affectnet
import rafdb
from utils.data.transforms import Augmentation, preprocess

# As torchvision's documentation gives them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(n, height, width):
    """The hardest pictures: a pixel taken from the wrong place is another colour."""
    return torch.randint(256, (n, 3, height, width), generator=generator(), dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def augmented(images, size, recipe=affectnet.AUGMENT):
    return preprocess(images, size, recipe.draw(len(images), size, generator()))


def grey_levels(result):
    """Undo the normalisation: float (N, 3, h, w) -> grey levels 0-255."""
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (result * std + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255


def torchvision_resized(image, size):
    return TF.resize(TF.to_pil_image(image), [size, size])


def torchvision_normalized(image):
    return TF.normalize(TF.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)


def torchvision_augmented(image, size, draws, i):
    """One image through the released recipes' chain of PIL operations."""
    image = torchvision_resized(image, size)
    if draws.flip[i]:
        image = TF.hflip(image)
    if draws.geometric[i]:
        angle, scale, shift = draws.angle[i].item(), draws.scale[i].item(), draws.shift[i].tolist()
        if scale == 1 and shift == [0, 0]:  # RandomRotation counts its angles counter-clockwise
            image = TF.rotate(image, -angle)
        else:
            image = TF.affine(image, angle, shift, scale, shear=[0.0, 0.0])
        left, top = draws.crop[i].tolist()
        image = TF.crop(image, top, left, size, size)  # black outside the image
    result = torchvision_normalized(image)
    top, left, height, width = draws.erase[i].tolist()
    return TF.erase(result, top, left, height, width, torch.zeros(())) if height else result


@pytest.mark.parametrize("height, width", [(96, 96), (224, 224), (300, 180), (640, 480)])
def test_preprocess_equals_torchvision(height, width):
    images = noise(3, height, width)
    result = preprocess(images, 224)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    resized = [torchvision_resized(image, 224) for image in images]
    expected = torch.stack([torchvision_normalized(image) for image in resized])
    difference = (grey_levels(result) - grey_levels(expected)).abs()
    assert difference.max() < 1.01  # each has rounded to a grey level
    assert difference.mean() < 0.3
    if height == width == 224:
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("transform", [preprocess, augmented])
def test_memory_layout_does_not_matter_and_the_input_stays(transform, side):
    images = noise(33, 96, 96)
    before = images.clone()
    last = images.contiguous(memory_format=torch.channels_last)
    strided = images.repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(transform(images, side), transform(last, side))
    assert torch.equal(transform(images, side), transform(strided, side))
    assert torch.equal(images, before) and torch.equal(last, before)


@pytest.mark.parametrize("recipe", [rafdb.AUGMENT, affectnet.AUGMENT], ids=["RAF-DB", "AffectNet"])
@pytest.mark.parametrize("height, width, size", [(224, 224, 224), (100, 100, 224), (120, 90, 97)])
def test_recipes_equal_torchvision(recipe, height, width, size):
    images = noise(40, height, width)
    draws = recipe.draw(40, size, generator(1))._replace(geometric=torch.arange(40) % 4 != 0)
    result = preprocess(images, size, draws)
    expected = [torchvision_augmented(image, size, draws, i) for i, image in enumerate(images)]
    difference = (grey_levels(result) - grey_levels(torch.stack(expected))).abs()
    # A nearest pixel may fall either way at an edge; everything else is within a grey level.
    assert (difference > 1.01).float().mean() < 1e-4
    if height == width == size:
        assert (difference > 0.01).float().mean() < 1e-4


def test_each_image_has_draws_of_its_own():
    source = generator()
    draws, next_draws = (affectnet.AUGMENT.draw(64, 224, source) for _ in range(2))
    for values in (draws.angle, draws.scale, draws.erase[draws.erase[:, 2] > 0]):
        assert len(values.unique(dim=0)) == len(values)
    assert not torch.equal(next_draws.angle, draws.angle)
    # The first images draw the same whatever follows them.
    for values, fewer in zip(draws, affectnet.AUGMENT.draw(10, 224, generator()), strict=True):
        assert torch.equal(values[:10], fewer)


@pytest.mark.parametrize(
    ("recipe", "geometric", "scale", "shift", "padding"),
    [(rafdb.AUGMENT, 0.2, (1, 1), 0, 32), (affectnet.AUGMENT, 0.7, (0.8, 1), 0.2 * 224, 0)],
    ids=["RAF-DB", "AffectNet"],
)
def test_rates_and_ranges_are_the_published_ones(recipe, geometric, scale, shift, padding):
    n = 20_000
    draws = recipe.draw(n, 224, generator())

    def assert_rate(flags, p):
        assert abs(flags.double().mean() - p) < 4 * math.sqrt(p * (1 - p) / n)

    def assert_uniform(values, low, high):
        values = values.double()
        assert low <= values.min() < low + 0.01 * (high - low) + 0.5
        assert high - 0.01 * (high - low) - 0.5 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * n) + 1e-9

    erased = draws.erase[:, 2] > 0
    assert_rate(draws.flip, 0.5)
    assert_rate(draws.geometric, geometric)
    assert_rate(erased, 0.5)
    # They are independent of each other.
    assert_rate(draws.flip & erased, 0.25)
    assert_rate(draws.flip & draws.geometric, geometric / 2)
    assert_uniform(draws.angle, -20, 20)
    assert_uniform(draws.scale, *scale)
    for axis in (0, 1):
        assert_uniform(draws.crop[:, axis], -padding, padding)
        assert_uniform(draws.shift[:, axis], -round(shift), round(shift))


@pytest.mark.parametrize(
    ("recipe", "largest"),
    [(rafdb.AUGMENT, 0.25), (affectnet.AUGMENT, 0.33)],
    ids=["RAF-DB", "AffectNet"],
)
def test_erased_areas_and_ratios(recipe, largest):
    draws = replace(recipe, erasing=1.0).draw(20_000, 224, generator())
    top, left, height, width = draws.erase.double().unbind(1)
    for start, length in ((top, height), (left, width)):
        assert length.min() > 0 and length.max() < 224
        assert start.min() == 0 and (start + length).max() == 224
    area, ratio = height * width / 224**2, height / width
    assert area.min() > 0.02 * 0.95 and area.max() < largest * 1.05
    assert ratio.min() > 0.3 * 0.93 and ratio.max() < 3.3 * 1.07
    assert abs(area.mean() - (0.02 + largest) / 2) < 0.005
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
@pytest.mark.parametrize("transform", [preprocess, augmented])
def test_cuda_equals_cpu_without_synchronising(transform, side):
    images = noise(40, side, side)
    on_gpu = images.cuda()
    transform(on_gpu, 224)  # the first call allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = transform(on_gpu, 224)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_contiguous(memory_format=torch.channels_last)
    difference = (grey_levels(result.cpu()) - grey_levels(transform(images, 224))).abs()
    assert difference.max() < 1.01 and difference.mean() < 0.1
