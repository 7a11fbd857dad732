"""The loader: decoding, the order of samples, what happens to the last batch."""

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import loader as loader_module
from utils.data.datasets import Split
from utils.data.loader import FaceLoader, balanced, in_order, shuffled
from utils.distributed import World
from utils.errors import UserError


@pytest.fixture(params=[True, False], ids=["kept", "streamed"])
def cached(request):
    """Whether images are decoded once and kept, or decoded in each epoch."""
    return request.param


@pytest.fixture
def make_split(tmp_path):
    """Writes PNGs whose grey level is their index, so that a batch tells what is in it."""

    def write(count: int) -> Split:
        for index in range(count):
            Image.new("L", (10, 8), index % 256).save(tmp_path / f"{index}.png")
        names = np.array([f"{index}.png" for index in range(count)], dtype="S")
        return Split(tmp_path, names, np.arange(count) % 3)

    return write


def make_loader(split, *, cached=True, **kwargs) -> FaceLoader:
    with pytest.MonkeyPatch.context() as patch:
        if not cached:
            patch.setattr(loader_module, "CACHE_SHARE", 0)
        loader = FaceLoader(split, **{"batch_size": 4, "image_size": 16, **kwargs})
    assert loader.cached is cached
    return loader


def read(loader, *epoch):
    """An epoch's batches as lists of (indices, labels)."""
    batches = loader.epoch(*epoch)
    return [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels, *_ in batches]


def load(split, *, epoch=0, **kwargs):
    """The same with a loader of its own."""
    with closing(make_loader(split, **kwargs)) as loader:
        batches = read(loader, epoch)
    assert len(batches) == len(loader)
    return batches


def test_batches_and_their_labels(make_split, cached):
    batches = load(make_split(5), cached=cached, order=in_order)
    assert batches == [([0, 1, 2, 3], [0, 1, 2, 0]), ([4], [1])]  # also a last batch of one


@pytest.mark.parametrize("order", [shuffled, balanced])
def test_order_depends_on_seed_and_epoch_alone(make_split, order):
    split = make_split(20)
    reference = load(split, order=order, seed=3, epoch=2)
    for variant in ({"cached": False}, {"cached": False, "workers": 2}, {"workers": 1}):
        assert load(split, order=order, seed=3, epoch=2, **variant) == reference
    assert load(split, order=order, seed=3, epoch=1) != reference
    assert load(split, order=order, seed=4, epoch=2) != reference


def test_workers_that_stay_follow_the_epoch(make_split):
    split = make_split(20)
    with closing(make_loader(split, cached=False, order=shuffled, workers=1)) as loader:
        for epoch in (0, 1, 0):
            assert read(loader, epoch) == load(split, order=shuffled, epoch=epoch)


def test_an_epoch_goes_on_from_any_step(make_split, cached):
    loader = make_loader(make_split(11), cached=cached, order=shuffled)
    whole = read(loader, 3)
    for start in (1, 2, 3):
        assert read(loader, 3, start) == whole[start:]


def test_balanced_draws_each_class_equally():
    """Within three standard deviations of an equal share, whatever the imbalance."""
    labels = np.repeat(np.arange(4), [5000, 900, 90, 10])
    drawn = np.bincount(labels[balanced(labels, 0, 1).numpy()], minlength=4)
    share = len(labels) / 4
    assert np.abs(drawn - share).max() < 3 * np.sqrt(share * 3 / 4)
    assert drawn.sum() == len(labels)


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (8, [4, 4])])
def test_last_training_batch_of_one_joins_the_one_before(make_split, cached, count, sizes):
    """A batch of one image crashed the released code in BatchNorm."""
    batches = load(make_split(count), cached=cached, order=shuffled, min_images=2)
    assert [len(labels) for _, labels in batches] == sizes
    assert sorted(index for indices, _ in batches for index in indices) == list(range(count))


@pytest.mark.parametrize("count", [20, 21, 23])
def test_processes_share_each_batch(make_split, cached, count):
    """Together they see what one process sees, batch by batch, and each image once."""
    options = {"cached": cached, "order": shuffled, "batch_size": 6}
    split = make_split(count)
    alone = load(split, min_images=4, **options)
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    shares = [load(split, min_images=2, world=world, **options) for world in worlds]
    for whole, first, second in zip(alone, *shares, strict=True):
        assert (first[0] + second[0], first[1] + second[1]) == whole
        assert len(first[0]) >= 2 and abs(len(first[0]) - len(second[0])) <= 1


def test_shares_of_a_batch_say_where_they_stand(make_split):
    batch = next(make_loader(make_split(5), batch_size=5, world=World(rank=1, size=2)).epoch())
    assert (batch.share, batch.size) == (slice(2, 5), 5)


@pytest.mark.parametrize(
    ("sizes", "stored"),
    [
        ([(10, 10)] * 3, (10, 10)),  # all alike and not larger than needed: as they are
        ([(12, 9)] * 3, (12, 9)),
        ([(20, 20)] * 3, (16, 16)),  # larger than the network sees
        ([(10, 10), (12, 12), (14, 9)], (16, 16)),
    ],
)
def test_images_are_kept_at_their_common_size_or_the_networks(make_split, sizes, stored):
    """Resized as torchvision resizes a Pillow image."""
    split, expected = make_split(3), []
    for index, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(split.path(index))
        expected.append(Image.fromarray(pixels).resize(stored, Image.Resampling.BILINEAR))
    images, *_ = next(make_loader(split).epoch())
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), np.stack(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_without_a_workers_traceback(make_split, cached, workers):
    split = make_split(300)
    split.path(3).write_bytes(b"not an image")
    with pytest.raises(UserError, match="3.png.*check_data.py --exclude") as error:
        load(split, cached=cached, workers=workers)
    assert "Traceback" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gets_the_same_batches(make_split, cached):
    split, world = make_split(20), World(torch.device("cuda"))
    on_cuda = load(split, cached=cached, world=world, order=shuffled)
    assert on_cuda == load(split, order=shuffled)
