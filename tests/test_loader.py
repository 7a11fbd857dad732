"""The loader: decoding, the order of samples, what happens to the last batch."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import loader as loader_module
from utils.data.datasets import Split
from utils.data.loader import FaceLoader, balanced, in_order, shuffled
from utils.distributed import World
from utils.errors import UserError


def make_split(folder: Path, sizes: list[tuple[int, int]]) -> Split:
    """PNGs of one grey level each, the image's index, so that a batch tells what is in it."""
    names = [f"{index}.png" for index in range(len(sizes))]
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.new("L", size, index % 256).save(folder / name)
    return Split(folder, np.array(names, dtype="S"), np.arange(len(sizes)) % 3)


def make_loader(split, *, cached=True, **kwargs) -> FaceLoader:
    with pytest.MonkeyPatch.context() as patch:
        if not cached:
            patch.setattr(loader_module, "CACHE_SHARE", 0)
        loader = FaceLoader(split, **{"batch_size": 4, "image_size": 16, **kwargs})
    assert loader.cached is cached
    return loader


def load(split, *, epoch=0, **kwargs):
    """An epoch's batches as lists of (indices, labels)."""
    with closing(make_loader(split, **kwargs)) as loader:
        batches = [
            (images[:, 0, 0, 0].tolist(), labels.tolist())
            for images, labels, *_ in loader.epoch(epoch)
        ]
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize("cached", [True, False])
def test_batches_are_uint8_with_their_labels(tmp_path, cached):
    split = make_split(tmp_path, [(10, 8)] * 5)
    batches = load(split, cached=cached, order=in_order)
    assert batches == [([0, 1, 2, 3], [0, 1, 2, 0]), ([4], [1])]  # also a last batch of one


def test_order_depends_on_seed_and_epoch_alone(tmp_path):
    split = make_split(tmp_path, [(8, 8)] * 20)
    for order in (shuffled, balanced):
        reference = load(split, order=order, seed=3, epoch=2)
        for variant in ({"cached": False}, {"cached": False, "workers": 2}, {"workers": 1}):
            assert load(split, order=order, seed=3, epoch=2, **variant) == reference
        assert load(split, order=order, seed=3, epoch=1) != reference
        assert load(split, order=order, seed=4, epoch=2) != reference


def test_workers_that_stay_follow_the_epoch(tmp_path):
    split = make_split(tmp_path, [(8, 8)] * 20)
    with closing(make_loader(split, cached=False, order=shuffled, workers=1)) as loader:
        for epoch in (0, 1, 0):
            seen = [images[:, 0, 0, 0].tolist() for images, *_ in loader.epoch(epoch)]
            assert seen == [indices for indices, _ in load(split, order=shuffled, epoch=epoch)]


def test_shuffled_shows_every_image_once(tmp_path):
    split = make_split(tmp_path, [(8, 8)] * 11)
    shown = [index for indices, _ in load(split, order=shuffled) for index in indices]
    assert sorted(shown) == list(range(11)) and shown != list(range(11))


def test_balanced_draws_each_class_equally():
    """Within three standard deviations of an equal share, whatever the imbalance."""
    labels = np.repeat(np.arange(4), [5000, 900, 90, 10])
    drawn = np.bincount(labels[balanced(labels, 0, 1).numpy()], minlength=4)
    share = len(labels) / 4
    assert np.abs(drawn - share).max() < 3 * np.sqrt(share * 3 / 4)
    assert drawn.sum() == len(labels)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (8, [4, 4])])
def test_last_training_batch_of_one_joins_the_one_before(tmp_path, cached, count, sizes):
    """A batch of one image crashed the released code in BatchNorm."""
    split = make_split(tmp_path, [(8, 8)] * count)
    batches = load(split, cached=cached, order=shuffled, min_images=2)
    assert [len(labels) for _, labels in batches] == sizes
    assert sorted(index for indices, _ in batches for index in indices) == list(range(count))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("count", [20, 21, 23])
def test_processes_share_each_batch(tmp_path, cached, count):
    """Together they see what one process sees, batch by batch, and each image once."""
    split = make_split(tmp_path, [(8, 8)] * count)
    kind = {"cached": cached, "order": shuffled, "batch_size": 6, "epoch": 2}
    alone = load(split, **kind, min_images=4)
    shares = [
        load(split, **kind, min_images=2, world=World(rank=rank, size=2)) for rank in range(2)
    ]
    for whole, first, second in zip(alone, *shares, strict=True):
        assert (first[0] + second[0], first[1] + second[1]) == whole
        assert len(first[0]) >= 2 and abs(len(first[0]) - len(second[0])) <= 1


def test_shares_of_a_batch_say_where_they_stand(tmp_path):
    split = make_split(tmp_path, [(8, 8)] * 5)
    batch = next(make_loader(split, batch_size=5, world=World(rank=1, size=2)).epoch())
    assert (batch.share, batch.size) == (slice(2, 5), 5)


@pytest.mark.parametrize("cached", [True, False])
def test_an_epoch_goes_on_from_any_step(tmp_path, cached):
    split = make_split(tmp_path, [(8, 8)] * 11)
    whole = load(split, cached=cached, order=shuffled, epoch=3)
    loader = make_loader(split, cached=cached, order=shuffled)
    for start in (1, 2, 3):
        rest = [images[:, 0, 0, 0].tolist() for images, *_ in loader.epoch(3, start)]
        assert rest == [indices for indices, _ in whole[start:]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(10, 10)] * 3, (10, 10)),  # all alike and not larger than needed: as they are
        ([(12, 9)] * 3, (9, 12)),
        ([(20, 20)] * 3, (16, 16)),  # larger than the network sees
        ([(10, 10), (12, 12), (14, 9)], (16, 16)),
    ],
)
def test_stored_size(tmp_path, sizes, expected):
    images, *_ = next(make_loader(make_split(tmp_path, sizes), batch_size=3).epoch())
    assert images.shape == (3, 3, *expected) and images.dtype == torch.uint8


def test_pixels_are_the_files(tmp_path):
    split = make_split(tmp_path, [(11, 9)] * 2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    images, *_ = next(make_loader(split).epoch())
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_in_one_line(tmp_path, cached, workers):
    split = make_split(tmp_path, [(8, 8)] * 300)
    (tmp_path / "3.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="3.png") as error:
        load(split, cached=cached, workers=workers)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("cached", [True, False])
def test_cuda_gets_the_same_batches(tmp_path, cached):
    split = make_split(tmp_path, [(8, 8)] * 20)
    world = World(torch.device("cuda"))
    on_cuda = load(split, cached=cached, world=world, order=shuffled)
    assert on_cuda == load(split, order=shuffled)
