"""Checkpoints: what is written, what is read, and what is refused."""

import io
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import checkpoint
from utils.errors import UserError


class Bomb:
    """A pickle of it would create a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "plain pickle"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, kind):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    if kind == "zip":
        torch.save({"model_state_dict": Bomb(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"model_state_dict": Bomb(trap)}, protocol=2))
    with pytest.raises(UserError, match="could run code"):
        checkpoint.load(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\xef\xbb\xbf\r\n <html>Quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"", "empty"),
        (bytes(range(256)) * 20, "not a checkpoint"),
        (b"PK\x03\x04 but no more", "not a checkpoint.*cut short"),
        (b"# DAN\n", "a text or a picture"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a text or a picture"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


def example(**kwargs) -> bytes:
    """A small checkpoint's file."""
    file = io.BytesIO()
    content = {"iter": 3, "model_state_dict": {"weight": torch.arange(1000.0)}, "names": ["a", "b"]}
    torch.save(content, file, **kwargs)
    return file.getvalue()


ZIPPED, LEGACY = example(), example(_use_new_zipfile_serialization=False)


@pytest.mark.parametrize("whole", [ZIPPED, LEGACY], ids=["zipped", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, share, whole):
    path = tmp_path / "last.pth"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(path)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    """PyTorch compares no checksum: it would hand out another weight."""
    damaged = bytearray(ZIPPED)
    damaged[ZIPPED.index(torch.arange(1000.0).numpy().tobytes()) + 402] ^= 4
    (tmp_path / "last.pth").write_bytes(damaged)
    with pytest.raises(UserError, match="data/0 is damaged"):
        checkpoint.load(tmp_path / "last.pth")


def damaged_files() -> st.SearchStrategy[bytes]:
    """Whole, cut and otherwise damaged checkpoints, most of it where their structure lies."""

    def damage(whole: bytes, cut: int, changes: list[tuple[int, int]]) -> bytes:
        content = bytearray(whole[: len(whole) - cut])
        for place, value in changes:
            if content:
                content[place % len(content)] = value
        return bytes(content)

    places = st.integers(0, 1200) | st.integers(-1500, -1) | st.integers(0, len(LEGACY))
    return st.builds(
        damage,
        st.sampled_from([ZIPPED, LEGACY]),
        st.just(0) | st.integers(0, len(ZIPPED)),
        st.lists(st.tuples(places, st.integers(0, 255)), max_size=4),
    )


# What PyTorch remarks on the way to the error.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@settings(max_examples=400)
@given(st.binary(max_size=300) | damaged_files())
def test_no_file_leads_to_anything_but_a_dict_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    try:
        assert isinstance(checkpoint.load(path), dict)
    except UserError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"is a folder.*best\.pth"):
        checkpoint.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"iter": 1})

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        checkpoint.write_atomically(path, fail)
    assert checkpoint.load(path) == {"iter": 1}
    assert os.listdir(tmp_path) == ["last.pth"]


def test_best_stays_when_last_is_written_anew(tmp_path):
    """best.pth is a link to last.pth, which is replaced and never written into."""
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    checkpoint.save(last, {"iter": 1})
    checkpoint.link(last, best)
    checkpoint.save(last, {"iter": 2})
    assert checkpoint.load(best) == {"iter": 1} and checkpoint.load(last) == {"iter": 2}
    checkpoint.link(last, best)
    assert checkpoint.load(best) == {"iter": 2}


def test_linking_twice_leaves_nothing_behind(tmp_path):
    """Renaming one name of a file onto another of the same file does nothing at all."""
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    checkpoint.save(last, {"iter": 1})
    for _ in range(2):
        checkpoint.link(last, best)
    assert sorted(os.listdir(tmp_path)) == ["best.pth", "last.pth"]
