"""Checkpoints: what is written, what is read, what it means, and what is refused."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from networks.dan import DAN
from tests.conftest import TinyDAN, golden_dan
from utils import checkpoint
from utils.checkpoint import read_trained
from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB


class Bomb:
    """A pickle of it would create a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "plain pickle", "array"])
def test_code_in_a_checkpoint_does_not_run_and_is_named(tmp_path, kind):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    bomb = np.array([Bomb(trap)], dtype=object) if kind == "array" else Bomb(trap)
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"model_state_dict": bomb}, protocol=2))
    else:
        torch.save({"model_state_dict": bomb}, path)
    named = r"Python object \(\w*\.?open\), which could run code"
    with pytest.raises(UserError, match="not a checkpoint" if kind == "array" else named):
        checkpoint.load(path)
    assert not trap.exists()


@pytest.mark.parametrize("core", [b"numpy._core.", b"numpy.core."], ids=["NumPy 2", "NumPy 1"])
def test_numbers_and_arrays_of_numpy_are_data(tmp_path, core):
    """`acc: np.float64(0.62)`, which many training scripts save."""
    content = {
        "acc": np.float64(0.62),
        "epoch": np.int64(3),
        "confusion": np.arange(6, dtype=np.int32).reshape(2, 3),
        "done": np.bool_(True),
    }
    path = tmp_path / "best.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", core))
    np.testing.assert_equal(checkpoint.load(path), content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\xef\xbb\xbf\r\n <HTML>Quota exceeded</html>", "web page"),
        (b"", "not a checkpoint"),
        (bytes(range(256)) * 20, "not a checkpoint"),
        (b"PK\x03\x04 but no more", "not a checkpoint"),
    ],
    ids=["web page", "web page with BOM", "empty", "binary", "start of a zip"],
)
def test_files_that_are_not_a_checkpoint(tmp_path, content, message):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
def test_a_torchscript_file_is_one_line_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pth")
    with pytest.raises(UserError, match="TorchScript"):
        checkpoint.load(tmp_path / "model.pth")


# PyTorch's remarks on the way to the error.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_that_is_cut_short_is_one_line(tmp_path, zipped):
    path, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    content = {"model_state_dict": {"weight": torch.arange(1000.0)}, "names": ["a", "b"]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for share in np.linspace(0, 0.99, 40):
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="not a checkpoint|Python object") as error:
            checkpoint.load(cut)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


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


def test_a_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Otherwise a power cut leaves an empty last.pth."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *a: calls.append("replace") or replace(*a))
    checkpoint.save(tmp_path / "last.pth", {"iter": 1})
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("links", [True, False])
def test_best_stays_when_last_is_written_anew(tmp_path, monkeypatch, links):
    """best.pth is a link to last.pth, or a copy on disks without links."""

    def refuse(*args):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    checkpoint.save(last, {"iter": 1})
    for _ in range(2):  # renaming one name of a file onto another of it does nothing
        checkpoint.link(last, best)
    assert sorted(os.listdir(tmp_path)) == ["best.pth", "last.pth"]
    checkpoint.save(last, {"iter": 2})
    assert checkpoint.load(best) == {"iter": 1} and checkpoint.load(last) == {"iter": 2}


# ---- the backbone's weights ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "MS-Celeb", "old"])
def test_a_backbone_takes_resnet18_weights(tmp_path, form):
    torch.manual_seed(0)
    resnet = resnet18(num_classes=11)
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    state = resnet.state_dict()
    if form == "MS-Celeb":
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    if form == "old":  # without batch counters and classifier
        state = {k: v for k, v in state.items() if "num_batches" not in k and "fc" not in k}
    torch.save(state, tmp_path / "resnet.pth")
    model = DAN(num_class=7, num_head=1)
    checkpoint.load_pretrained(model, str(tmp_path / "resnet.pth"))
    resnet.avgpool = resnet.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = resnet.eval()(images).reshape(1, 512, 2, 2)
        assert torch.equal(model.eval().features(images), expected)


# ---- what a trained network's file means ---------------------------------------------------------


@pytest.fixture(scope="module")
def states():
    """State dicts of TinyDANs by class count, whose keys are recognised as DAN's."""
    torch.manual_seed(0)
    return {n: TinyDAN(num_class=n, num_head=2).state_dict() for n in (5, 7, 8)}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Writes a file with this content for TinyDANs; its path."""
    monkeypatch.setattr(checkpoint, "DAN", TinyDAN)

    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "count", "given", "dataset", "classes"),
    [
        ("affecnet8_epoch5_acc0.6209.pth", 8, None, "AffectNet", AFFECTNET),
        ("affecnet7_epoch6_acc0.6569.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("affectnet7_mine.pth", 7, None, "AffectNet", AFFECTNET[:7]),
        ("rafdb_epoch21_acc0.897_bacc0.8275.pth", 7, None, "RAF-DB", RAFDB),
        ("weights.pth", 8, None, "AffectNet", AFFECTNET),
        ("weights.pth", 7, "RAF-DB", "RAF-DB", RAFDB),
    ],
)
def test_released_files(weights, states, name, count, given, dataset, classes):
    content = {"iter": 5, "model_state_dict": states[count], "optimizer_state_dict": {}}
    trained = read_trained(weights(content, name), dataset=given)
    assert (trained.dataset, trained.class_names) == (dataset, classes)
    assert (trained.num_head, trained.image_size, trained.toy, trained.epoch) == (2, 224, False, 5)


@pytest.mark.parametrize(
    ("name", "count", "given", "message"),
    [
        ("weights.pth", 7, None, "order of its 7 classes is unknown"),
        ("rafdb_weights.pth", 8, None, "8 classes, which RAF-DB does not"),
        ("rafdb_epoch21.pth", 7, "AffectNet", "named after RAF-DB, but --dataset AffectNet"),
    ],
)
def test_class_order_is_never_guessed(weights, states, name, count, given, message):
    with pytest.raises(UserError, match=message):
        read_trained(weights({"model_state_dict": states[count]}, name), dataset=given)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (None, ""),
        (None, "module."),
        ("model_state_dict", "model."),
        ("state_dict", "module."),
        ("net", "_orig_mod.module."),
    ],
)
def test_weights_are_found_by_what_they_are(weights, states, key, prefix):
    """Whatever the key that holds them and the prefix that a training framework added."""
    state = {f"{prefix}{name}": value for name, value in states[8].items()}
    content = {key: state, "epoch": 3, "optimizer": {"state": {}}} if key else state
    model = read_trained(weights(content)).network()
    assert torch.equal(model.fc.weight, states[8]["fc.weight"])


def test_two_networks_in_a_file_are_not_guessed(weights, states):
    with pytest.raises(UserError, match=r"several networks \(model, model_ema\)"):
        read_trained(weights({"model": states[8], "model_ema": states[8]}))


def test_half_precision_weights_become_float32(weights, states):
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in states[8].items()}
    weight = read_trained(weights(state)).network().fc.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, states[8]["fc.weight"].bfloat16().float())


def test_ours_know_their_classes(weights, states):
    content = {
        "iter": 3,
        "model_state_dict": states[5],
        "class_names": list("abcde"),
        "dataset": "mine",
        "config": {"image_size": 96, "toy": True},  # as earlier versions marked toy networks
    }
    trained = read_trained(weights(content))
    assert trained.class_names == tuple("abcde") and trained.title == "toy mine"
    assert (trained.image_size, trained.epoch) == (96, 3)
    assert not read_trained(weights({**content, "toy": False})).toy
    with pytest.raises(UserError, match="trained on mine, but --dataset RAF-DB was given"):
        read_trained(weights(content), dataset="RAF-DB")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("bn.weight"), "bn.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"bn.bias": torch.zeros(3)}), "bn.bias"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit_are_named(weights, states, change, named):
    state = dict(states[8])
    change(state)
    with pytest.raises(UserError, match=named) as error:
        read_trained(weights(state)).network()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model_state_dict": {}}])
def test_contents_without_a_network(weights, content):
    with pytest.raises(UserError, match="not a (trained network|dict of weights)"):
        read_trained(weights(content))


# ---- the network that is evaluated is the network that was trained -------------------------------


def no_attention(self, x):
    return x.float()


def largest_branch(self, x):
    y = self.conv1x1(x)
    y = torch.maximum(self.conv_3x3(y), torch.as_tensor(self.conv_1x3(y) + self.conv_3x1(y)))
    return y.relu().float().sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("method", "change", "merged"),
    [("forward", no_attention, True), ("attention_map", largest_branch, False)],
    ids=["without attention", "branches that cannot be merged"],
)
def test_a_changed_network_is_the_one_that_answers(
    checkpoint_file, monkeypatch, capsys, method, change, merged
):
    """Its keys stay, so nothing else would notice."""
    trained = read_trained(checkpoint_file(7, "best.pth", ours=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    with torch.no_grad():
        as_trained = golden_dan(7)(images).logits
        monkeypatch.setattr(f"networks.dan.SpatialAttention.{method}", change)
        expected = golden_dan(7)(images).logits
        logits = trained.inference_network()(images).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (as_trained - expected).abs().max() > 0.1
    assert ("networks/dan.py has changed" in capsys.readouterr().out) == (not merged)
