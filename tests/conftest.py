"""Toy faces, short runs, a photo and checkpoints that several test files share."""

import argparse
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

import rafdb
from networks.dan import DAN
from tests import golden
from utils import labels
from utils.convert_affectnet import convert
from utils.toy_faces import write_affectnet, write_rafdb

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
def toy_aff(tmp_path_factory):
    """A few toy faces as AffectNet's npy release, converted to class folders."""
    folder = tmp_path_factory.mktemp("data") / "aff"
    write_affectnet(folder, train=48, val=24)
    convert(folder)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, toy_raf):
    """The folder of a run of two epochs, in which nothing is learned."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    flags = ["--raf_path", str(toy_raf), "--output_dir", str(folder), "--epochs", "2", *SMALL]
    rafdb.main(flags)
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """The repository as it is after a clone, without data, weights and results."""
    folder = tmp_path_factory.mktemp("clone") / "DAN"
    shutil.copytree(
        Path(rafdb.__file__).parent,
        folder,
        ignore=shutil.ignore_patterns(".*", "__pycache__", "datasets", "models", "cam_result"),
    )
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
    """What `python rafdb.py --toy` prints: two minutes on two cores."""
    return run_in_clone("python rafdb.py --toy")


@pytest.fixture(scope="session")
def toy_run(clone, toy_output):
    """The folder of that run, which has learned."""
    return clone / "models/toy-rafdb"


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
