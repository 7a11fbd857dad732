"""Toy faces, short runs, a photo and checkpoints that several test files share."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings
from torch import nn

import rafdb
from networks.dan import DAN, DANOutput, at_least_float32
from tests import golden
from utils import labels
from utils.convert_affectnet import convert
from utils.toy.sets import write_affectnet, write_rafdb
from utils.training import plots

# Generated inputs are the same in every run, and a slow machine is not a failure.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # tests gain nothing from more, and their numbers depend on it

REPOSITORY = Path(rafdb.__file__).parent
CPU = torch.device("cpu")
# The smallest settings that still run everything.
SMALL = ["--pretrained", "none", "--image_size", "32", "--workers", "0", "--batch_size", "16"]
SMALL += ["--num_head", "2", "--device", "cpu", "--precision", "fp32"]


class TinyDAN(nn.Module):
    """Stands in for DAN in tests that are not about the network: the same outputs and the keys
    that checkpoints are recognised by, a thousandth of the arithmetic."""

    def __init__(self, *, num_class: int, num_head: int = 4):
        super().__init__()
        self.heads = num_head
        convolution = nn.Conv2d(3, 512, 1)
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(2), convolution, nn.BatchNorm2d(512))
        for i in range(num_head):
            setattr(self, f"cat_head{i}", nn.BatchNorm1d(512))
            nn.init.normal_(getattr(self, f"cat_head{i}").weight)
        self.fc = nn.Linear(512, num_class)
        self.bn = nn.BatchNorm1d(num_class)

    load_backbone = DAN.load_backbone

    def forward(self, images: torch.Tensor) -> DANOutput:
        features = self.features(images)
        pooled = at_least_float32(features).mean(dim=(2, 3))
        heads = [getattr(self, f"cat_head{i}")(pooled) for i in range(self.heads)]
        heads = torch.stack(heads, dim=1).log_softmax(dim=1)
        return DANOutput(self.bn(self.fc(heads.sum(dim=1))), features, heads)


@pytest.fixture
def quick(monkeypatch):
    """Runs train TinyDAN, draw no figures and do not wait for the disk."""
    make_quick(monkeypatch)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    for module in ("rafdb", "affectnet", "utils.checkpoint"):
        patch.setattr(f"{module}.DAN", TinyDAN)
    for name in ("plot_curves", "plot_confusion", "plot_tsne"):
        patch.setattr(plots, name, lambda *args, **kwargs: None)
    patch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def toy_raf(tmp_path_factory):
    """A few toy faces in RAF-DB's layout."""
    folder = tmp_path_factory.mktemp("data") / "raf"
    write_rafdb(folder, train=49, test=21)
    return folder


@pytest.fixture(scope="session")
def toy_aff(tmp_path_factory):
    """A few toy faces as AffectNet's npy release, converted to class folders."""
    folder = tmp_path_factory.mktemp("data") / "aff"
    write_affectnet(folder, train=48, val=24)
    convert(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, toy_raf):
    """The folder of a run of two epochs of TinyDAN."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        train_raf(toy_raf, folder, "--epochs", "2")
    return folder


def train_raf(raf: Path, folder: Path, *flags: str) -> None:
    """rafdb.py with the small flags."""
    rafdb.main(["--raf_path", str(raf), *SMALL, "--output_dir", str(folder), *flags])


@pytest.fixture(scope="session")
def photo() -> Path:
    """A photo of one face (Grace Hopper, US Navy), which matplotlib contains: 512x600."""
    return Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")


def golden_dan(num_class: int = 7, num_head: int = 4) -> DAN:
    """A DAN whose weights follow the golden rule, all far from their initial values; float32."""
    model = DAN(num_class=num_class, num_head=num_head)
    model.load_state_dict(golden.state_dict(model))
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory) -> Callable[..., Path]:
    """Writes checkpoints of a golden DAN; each file once.

    In the released form: `checkpoint_file(8, "affecnet8_epoch5_acc0.6209.pth")`. As our runs
    write it: `checkpoint_file(7, "best.pth", ours=True, toy=True)`; 7 classes are RAF-DB's there.
    """

    @lru_cache
    def write(num_class: int, name: str, *, ours: bool = False, toy: bool = False) -> Path:
        state = golden_dan(num_class).state_dict()
        content = {"iter": 3, "model_state_dict": state, "optimizer_state_dict": {}}
        if ours:
            content["class_names"] = list(labels.RAFDB if num_class == 7 else labels.AFFECTNET)
            content["dataset"] = "RAF-DB" if num_class == 7 else "AffectNet"
            content["config"] = {"image_size": 224, "toy": toy}
        path = tmp_path_factory.mktemp("checkpoint") / name
        torch.save(content, path)
        return path

    return write


# ---- for slow tests ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """The repository as after a clone, without data, weights and results."""
    folder = tmp_path_factory.mktemp("clone") / "DAN"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "datasets", "models", "cam_result")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)
    for name in ("datasets", "models"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="session")
def run_in_clone(clone):
    """Runs a command line there, on the CPU, with this Python; returns what it printed."""

    def run(command: str) -> str:
        done = subprocess.run(
            command.replace("python ", f"{shlex.quote(sys.executable)} ", 1),
            shell=True,
            cwd=clone,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def toy_output(run_in_clone):
    """What `python rafdb.py --toy` prints."""
    return run_in_clone("python rafdb.py --toy")


@pytest.fixture(scope="session")
def toy_run(clone, toy_output):
    """The folder of that run, which has learned."""
    return clone / "models/toy-rafdb"
