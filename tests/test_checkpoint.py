"""Checkpoints: what is written, what is read, and what is refused."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from networks.dan import DAN
from utils import checkpoint
from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB


@pytest.fixture(scope="module")
def states():
    """State dicts of untrained DANs by class count."""
    torch.manual_seed(0)
    return {n: DAN(num_class=n, num_head=2).state_dict() for n in (5, 7, 8)}


def released(path: Path, state: dict) -> Path:
    """A file of the released form."""
    torch.save({"iter": 5, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    return path


@pytest.mark.parametrize(
    ("name", "count", "asked", "dataset", "classes"),
    [
        ("affecnet8_epoch5_acc0.6209.pth", 8, None, "AffectNet", AFFECTNET),
        ("affecnet7_epoch6_acc0.6569.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("affectnet7_mine.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("rafdb_epoch21_acc0.897_bacc0.8275.pth", 7, None, "RAF-DB", RAFDB),
        ("weights.pth", 8, None, "AffectNet", AFFECTNET),
        ("weights.pth", 7, "RAF-DB", "RAF-DB", RAFDB),
        ("weights.pth", 7, "AffectNet", "AffectNet", AFFECTNET[:7]),
    ],
)
def test_released_files(tmp_path, states, name, count, asked, dataset, classes):
    path = released(tmp_path / name, states[count])
    trained = checkpoint.read_trained(path, dataset=asked)
    assert (trained.dataset, trained.class_names) == (dataset, classes)
    assert (trained.num_head, trained.image_size, trained.toy, trained.epoch) == (2, 224, False, 5)
    model = DAN(num_class=count, num_head=2)
    trained.load_into(model)
    assert torch.equal(model.fc.weight, states[count]["fc.weight"])


@pytest.mark.parametrize(
    ("name", "count", "asked", "message"),
    [
        ("weights.pth", 7, None, "unknown order"),
        ("rafdb_weights.pth", 8, None, "8 classes, which RAF-DB does not"),
        ("rafdb_weights.pth", 5, None, "5 classes, which RAF-DB does not"),
        ("weights.pth", 8, "RAF-DB", "8 classes, which RAF-DB does not"),
    ],
)
def test_class_order_is_never_guessed(tmp_path, states, name, count, asked, message):
    path = released(tmp_path / name, states[count])
    with pytest.raises(UserError, match=message):
        checkpoint.read_trained(path, dataset=asked)


def test_name_and_flag_that_contradict(tmp_path, states):
    path = released(tmp_path / "rafdb_epoch21.pth", states[7])
    with pytest.raises(UserError, match="RAF-DB.*AffectNet"):
        checkpoint.read_trained(path, dataset="AffectNet")


@pytest.mark.parametrize("form", ["bare", "module.", "float16"])
def test_forms_whose_meaning_is_clear(tmp_path, states, form):
    state = states[8]
    if form == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    if form == "float16":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    trained = checkpoint.read_trained(path)
    model = DAN(num_class=8, num_head=2)
    trained.load_into(model)
    assert trained.state_dict["fc.weight"].dtype == torch.float32
    torch.testing.assert_close(model.fc.weight, states[8]["fc.weight"], rtol=1e-3, atol=1e-4)


def test_ours_know_their_classes(tmp_path, states):
    path = tmp_path / "best.pth"
    content = {
        "iter": 3,
        "model_state_dict": states[5],
        "class_names": list("abcde"),
        "dataset": "mine",
        "config": {"image_size": 96, "toy": True},
    }
    checkpoint.save(path, content)
    trained = checkpoint.read_trained(path)
    assert trained.class_names == tuple("abcde") and trained.dataset == "mine"
    assert (trained.image_size, trained.toy, trained.epoch) == (96, True, 3)
    with pytest.raises(UserError, match="trained on mine, but RAF-DB was asked for"):
        checkpoint.read_trained(path, dataset="RAF-DB")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("bn.weight"), "bn.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"bn.bias": torch.zeros(3)}), "bn.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, states, change, named):
    state = dict(states[8])
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    trained = checkpoint.read_trained(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=named) as error:
        trained.load_into(DAN(num_class=8, num_head=2))
    assert "\n" not in str(error.value)


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
        (b"", "not a checkpoint"),
        (bytes(range(256)) * 20, "not a checkpoint"),
        (b"PK\x03\x04 but no more", "not a checkpoint"),
        (b"version https://git-lfs", "not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.read_trained(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, states, share):
    path = released(tmp_path / "rafdb.pth", states[7])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.read_trained(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model_state_dict": 3}, torch.zeros(3)])
def test_other_contents(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError):
        checkpoint.read_trained(tmp_path / "weights.pth")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(UserError, match="no such checkpoint"):
            checkpoint.load(path)


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
