"""Toy faces, short runs, a photo and checkpoints that several test files share."""

import argparse
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings

import rafdb
from networks.dan import DAN
from tests import golden
from utils import labels
from utils.toy_faces import write_rafdb

# Drawn inputs are the same in every run, and a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# The smallest settings that still run everything there is.
SMALL = ["--pretrained", "none", "--image_size", "32", "--workers", "0", "--batch_size", "16"]
SMALL += ["--num_head", "2", "--device", "cpu"]


def training_args(**flags) -> argparse.Namespace:
    """The flags of a training run that other code than the scripts' looks at."""
    usual = {"epochs": 1, "batch_size": 16, "image_size": 32, "workers": 0, "seed": 5}
    usual |= {"toy": False, "compile": False, "skip_bad_images": False, "command": ["rafdb.py"]}
    return argparse.Namespace(**(usual | flags))


@pytest.fixture(scope="session")
def toy_raf(tmp_path_factory):
    """A few toy faces in RAF-DB's layout."""
    folder = tmp_path_factory.mktemp("data") / "raf"
    write_rafdb(folder, train=49, test=21)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, toy_raf):
    """The folder of a run of two epochs, in which nothing is learned."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    flags = ["--raf_path", str(toy_raf), "--output_dir", str(folder), "--epochs", "2", *SMALL]
    rafdb.main(flags)
    return folder


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """The folder of `rafdb.py --toy`, which has learned: two minutes on two cores."""
    folder = tmp_path_factory.mktemp("learned")
    flags = ["--toy", "--device", "cpu", "--workers", "2"]
    rafdb.main([*flags, "--raf_path", str(folder / "raf"), "--output_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="session")
def photo() -> Path:
    """A photo of one face (Grace Hopper, US Navy), which matplotlib brings along: 512x600."""
    return Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory) -> Callable[..., Path]:
    """Writes checkpoints of a DAN whose weights follow the golden rule; each file once.

    In the released form: `checkpoint_file(8, "affecnet8_epoch5_acc0.6209.pth")`. As our runs
    write it: `checkpoint_file(7, "best.pth", ours=True, toy=True)`; 7 classes are RAF-DB's there.
    """

    @lru_cache
    def write(num_class: int, name: str, *, ours: bool = False, toy: bool = False) -> Path:
        state = golden.state_dict(DAN(num_class=num_class))
        content = {
            "iter": 3,
            "model_state_dict": {
                key: value.float() if value.is_floating_point() else value
                for key, value in state.items()
            },
            "optimizer_state_dict": {},
        }
        if ours:
            content["class_names"] = list(labels.RAFDB if num_class == 7 else labels.AFFECTNET)
            content["dataset"] = "RAF-DB" if num_class == 7 else "AffectNet"
            content["config"] = {"image_size": 224, "toy": toy}
        path = tmp_path_factory.mktemp("checkpoint") / name
        torch.save(content, path)
        return path

    return write
