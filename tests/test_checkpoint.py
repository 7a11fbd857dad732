"""Checkpoints: what is written, what is read, what it means, and what is refused."""

import collections
import io
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


@pytest.mark.parametrize("kind", ["zip", "plain pickle"])
def test_code_in_a_checkpoint_does_not_run_and_is_named(tmp_path, kind):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    if kind == "zip":
        torch.save({"model_state_dict": Bomb(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"model_state_dict": Bomb(trap)}, protocol=2))
    with pytest.raises(UserError, match=r"Python object \(\w*\.?open\), which could run code"):
        checkpoint.load(path)
    assert not trap.exists()


def test_numbers_and_arrays_of_numpy_are_data(tmp_path):
    """`acc: np.float64(0.62)`, which many training scripts save."""
    content = {
        "acc": np.float64(0.62),
        "epoch": np.int64(3),
        "confusion": np.arange(6, dtype=np.int32).reshape(2, 3),
        "done": np.bool_(True),
        "weights": np.float32([0.5]),
        "history": collections.OrderedDict(loss=[np.float32(1)]),
    }
    torch.save(content, tmp_path / "best.pth")
    loaded = checkpoint.load(tmp_path / "best.pth")
    assert loaded["acc"] == 0.62 and loaded["epoch"] == 3 and loaded["done"]
    np.testing.assert_array_equal(loaded["confusion"], content["confusion"])
    # NumPy 1 pickled the same under another name, numpy.core.
    raw = pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core." in raw
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core.", b"numpy.core.")
    (tmp_path / "old.pth").write_bytes(old)
    assert checkpoint.load(tmp_path / "old.pth")["acc"] == 0.62
    torch.save({"acc": np.array([Bomb(tmp_path / "trap")], dtype=object)}, tmp_path / "evil.pth")
    with pytest.raises(UserError):
        checkpoint.load(tmp_path / "evil.pth")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\xef\xbb\xbf\r\n <HTML>Quota exceeded</html>", "web page"),
        (b"", "not a checkpoint"),
        (bytes(range(256)) * 20, "not a checkpoint"),
        (b"PK\x03\x04 but no more", "not a checkpoint"),
    ],
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


def example(**kwargs) -> bytes:
    file = io.BytesIO()
    content = {"iter": 3, "model_state_dict": {"weight": torch.arange(1000.0)}, "names": ["a", "b"]}
    torch.save(content, file, **kwargs)
    return file.getvalue()


WHOLE = {"zipped": example(), "legacy": example(_use_new_zipfile_serialization=False)}


# PyTorch's remarks on the way to the error.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:TypedStorage is deprecated")
@settings(max_examples=60)
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 0.99))
def test_a_checkpoint_that_is_cut_short_is_one_line(tmp_path_factory, form, share):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(WHOLE[form][: int(share * len(WHOLE[form]))])
    with pytest.raises(UserError, match="not a checkpoint|Python object") as error:
        checkpoint.load(path)
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


def test_best_stays_when_last_is_written_anew(tmp_path):
    """best.pth is a link to last.pth, which is replaced and never written into."""
    last, best = tmp_path / "last.pth", tmp_path / "best.pth"
    checkpoint.save(last, {"iter": 1})
    for _ in range(2):  # renaming one name of a file onto another of it does nothing
        checkpoint.link(last, best)
    assert sorted(os.listdir(tmp_path)) == ["best.pth", "last.pth"]
    checkpoint.save(last, {"iter": 2})
    assert checkpoint.load(best) == {"iter": 1} and checkpoint.load(last) == {"iter": 2}
    checkpoint.link(last, best)
    assert checkpoint.load(best) == {"iter": 2}


# ---- the backbone's weights ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet_state():
    torch.manual_seed(0)
    resnet = resnet18(num_classes=11)
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return resnet.state_dict()


@pytest.mark.parametrize("form", ["plain", "MS-Celeb", "old", "half"])
def test_a_backbone_takes_resnet18_weights(tmp_path, resnet_state, form):
    state = resnet_state
    if form == "MS-Celeb":
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    if form == "old":  # without batch counters and classifier
        state = {k: v for k, v in state.items() if "num_batches" not in k and "fc" not in k}
    if form == "half":
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "resnet.pth")
    model = DAN(num_class=7, num_head=1)
    checkpoint.load_pretrained(model, str(tmp_path / "resnet.pth"))
    resnet = resnet18(num_classes=11)
    resnet.load_state_dict(resnet_state)
    resnet.avgpool = resnet.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = resnet.eval()(images).reshape(1, 512, 2, 2)
        tolerance = 2e-2 if form == "half" else 0
        torch.testing.assert_close(
            model.eval().features(images), expected, rtol=tolerance, atol=tolerance
        )


# ---- what a trained network's file means ---------------------------------------------------------


@pytest.fixture(scope="module")
def states():
    """State dicts of TinyDANs by class count, whose keys are recognised as DAN's."""
    torch.manual_seed(0)
    return {n: TinyDAN(num_class=n, num_head=2).state_dict() for n in (5, 7, 8)}


def released(path, state):
    torch.save({"iter": 5, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    return path


@pytest.mark.parametrize(
    ("name", "count", "given", "dataset", "classes"),
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
def test_released_files(tmp_path, states, name, count, given, dataset, classes):
    trained = read_trained(released(tmp_path / name, states[count]), dataset=given)
    assert (trained.dataset, trained.class_names) == (dataset, classes)
    assert (trained.num_head, trained.image_size, trained.toy, trained.epoch) == (2, 224, False, 5)


@pytest.mark.parametrize(
    ("name", "count", "given", "message"),
    [
        ("weights.pth", 7, None, "order of its 7 classes is unknown"),
        ("rafdb_weights.pth", 8, None, "8 classes, which RAF-DB does not"),
        ("weights.pth", 8, "RAF-DB", "8 classes, which RAF-DB does not"),
        ("rafdb_epoch21.pth", 7, "AffectNet", "named after RAF-DB, but --dataset AffectNet"),
    ],
)
def test_class_order_is_never_guessed(tmp_path, states, name, count, given, message):
    with pytest.raises(UserError, match=message):
        read_trained(released(tmp_path / name, states[count]), dataset=given)


@pytest.mark.parametrize("key", [None, "model_state_dict", "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_weights_are_found_by_what_they_are(tmp_path, states, monkeypatch, key, prefix):
    """Whatever the key that holds them and the prefix that a training framework added."""
    monkeypatch.setattr(checkpoint, "DAN", TinyDAN)
    state = {f"{prefix}{name}": value for name, value in states[8].items()}
    content = {key: state, "epoch": 3, "optimizer": {"state": {}}} if key else state
    torch.save(content, tmp_path / "weights.pth")
    model = read_trained(tmp_path / "weights.pth").network()
    assert torch.equal(model.fc.weight, states[8]["fc.weight"])


def test_two_networks_in_a_file_are_not_guessed(tmp_path, states):
    torch.save({"model": states[8], "model_ema": states[8]}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"several networks \(model, model_ema\)"):
        read_trained(tmp_path / "weights.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path, states, monkeypatch, dtype):
    monkeypatch.setattr(checkpoint, "DAN", TinyDAN)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in states[8].items()}
    torch.save(state, tmp_path / "weights.pth")
    weight = read_trained(tmp_path / "weights.pth").network().fc.weight
    assert torch.equal(weight, states[8]["fc.weight"].to(dtype).float())


def test_ours_know_their_classes(tmp_path, states):
    content = {
        "iter": 3,
        "model_state_dict": states[5],
        "class_names": list("abcde"),
        "dataset": "mine",
        "config": {"image_size": 96, "toy": True},  # as earlier versions marked toy networks
    }
    checkpoint.save(tmp_path / "best.pth", content)
    trained = read_trained(tmp_path / "best.pth")
    assert trained.class_names == tuple("abcde") and trained.title == "toy mine"
    assert (trained.image_size, trained.epoch) == (96, 3)
    checkpoint.save(tmp_path / "best.pth", {**content, "toy": False})
    assert not read_trained(tmp_path / "best.pth").toy
    with pytest.raises(UserError, match="trained on mine, but --dataset RAF-DB was given"):
        read_trained(tmp_path / "best.pth", dataset="RAF-DB")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("bn.weight"), "bn.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"bn.bias": torch.zeros(3)}), "bn.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, states, monkeypatch, change, named):
    monkeypatch.setattr(checkpoint, "DAN", TinyDAN)
    state = dict(states[8])
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=named) as error:
        read_trained(tmp_path / "weights.pth").network()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model_state_dict": {}}, torch.zeros(3)])
def test_contents_without_a_network(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError):
        read_trained(tmp_path / "weights.pth")


# ---- the network that is evaluated is the network that was trained -------------------------------


def identity_attention(self, x):
    return x.float()


def test_a_changed_network_is_the_one_that_answers(checkpoint_file, monkeypatch):
    """Spatial attention as the identity: the keys stay, so nothing else would notice."""
    monkeypatch.setattr("networks.dan.SpatialAttention.forward", identity_attention)
    trained = read_trained(checkpoint_file(7, "best.pth", ours=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    model = golden_dan(7)
    with torch.no_grad():
        expected = model(images).logits
        answers = trained.inference_network()(images).logits
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    with torch.no_grad():
        assert (golden_dan(7)(images).logits - expected).abs().max() > 0.1


def test_a_network_that_cannot_be_merged_is_used_as_it_is(checkpoint_file, monkeypatch, capsys):
    """The larger branch in place of the sum: merging the kernels would be wrong."""

    def largest(self, x):
        y = self.conv1x1(x)
        y = torch.maximum(self.conv_3x3(y), torch.as_tensor(self.conv_1x3(y) + self.conv_3x1(y)))
        return y.relu().float().sum(dim=1, keepdim=True)

    monkeypatch.setattr("networks.dan.SpatialAttention.attention_map", largest)
    trained = read_trained(checkpoint_file(7, "best.pth", ours=True))
    images = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected = golden_dan(7)(images).logits
        torch.testing.assert_close(
            trained.inference_network()(images).logits, expected, rtol=1e-4, atol=1e-4
        )
    assert "networks/dan.py has changed" in capsys.readouterr().out
