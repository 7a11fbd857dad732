"""rafdb.py as a user runs it: what it leaves, what it says, and how it ends on a mistake."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import rafdb
from networks.dan import DAN
from tests.conftest import SMALL
from utils import checkpoint
from utils.errors import UserError
from utils.labels import RAFDB
from utils.trained import read_trained

REPOSITORY = Path(rafdb.__file__).parent


def test_a_run_leaves_its_files(small_run):
    files = {"best.pth", "last.pth", "metrics.csv", "config.json", "curves.png"}
    hidden = {".lock"}  # which filelock leaves there, released
    assert set(os.listdir(small_run)) - hidden == files | {"confusion_matrix.png"}
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(small_run / name) as image:
            assert min(image.size) > 300
    config = json.loads((small_run / "config.json").read_text())
    assert (config["dataset"], config["class_names"]) == ("RAF-DB", list(RAFDB))
    assert (config["num_head"], config["lr"], config["seed"]) == (2, 0.1, 0)
    assert config["torch"] == torch.__version__


def test_metrics_are_one_row_an_epoch(small_run):
    with open(small_run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        total = sum(float(row[term]) for term in ("cross_entropy", "affinity", "partition"))
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
        assert 0 <= float(row["val_accuracy"]) <= 1 and float(row["lr"]) == 0.1
        assert float(row["val_accuracy"]) == pytest.approx(
            float(row["val_balanced_accuracy"]), abs=1e-5
        )


def test_checkpoints_hold_what_a_resume_needs(small_run):
    content = checkpoint.load(small_run / "last.pth")
    assert content["iter"] == 2 and len(content["metrics"]) == 2
    model = DAN(num_class=7, num_head=2)
    model.load_state_dict(content["model_state_dict"])
    assert content["criterion_state_dict"]["affinity.centers"].shape == (7, 512)
    assert {"optimizer_state_dict", "scheduler_state_dict", "rng_state"} <= set(content)
    trained = read_trained(small_run / "best.pth")
    assert (trained.class_names, trained.dataset, trained.image_size) == (RAFDB, "RAF-DB", 32)


def test_toy_presets_and_given_flags(tmp_path, monkeypatch, capsys):
    """Flags that a user gives win over what --toy presets."""
    monkeypatch.chdir(tmp_path)
    seen = {}
    monkeypatch.setattr(rafdb, "write_rafdb", lambda root: seen.update(root=root))

    def stop(root):
        raise UserError("stop here")

    monkeypatch.setattr(rafdb, "read_rafdb", stop)
    with pytest.raises(UserError, match="stop here"):
        rafdb.main(["--toy", "--lr", "0.5"])
    assert seen["root"] == rafdb.TOY["raf_path"]
    with pytest.raises(UserError, match="stop here"):
        rafdb.main(["--toy", "--raf_path", "mine"])
    assert seen["root"] == "mine"


def test_recipe_defaults_are_the_papers():
    out = subprocess.run(
        [sys.executable, "rafdb.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    for flag, default in {
        "--batch_size": "256",
        "--lr": "0.1",
        "--epochs": "40",
        "--num_head": "4",
        "--workers": "4",
        "--raf_path": "datasets/raf-basic",
        "--image_size": "224",
        "--pretrained": "models/resnet18_msceleb.pth",
        "--output_dir": "models/rafdb",
        "--seed": "0",
    }.items():
        entry = " ".join(out[out.index(f"  {flag} ") :].split())
        assert f"(default: {default}" in entry[:250], flag


def test_released_run_with_eight_centres(toy_raf, tmp_path):
    flags = ["--raf_path", str(toy_raf), "--output_dir", str(tmp_path), "--epochs", "1", *SMALL]
    rafdb.main([*flags, "--num_center", "8"])
    content = checkpoint.load(tmp_path / "last.pth")
    assert content["criterion_state_dict"]["affinity.centers"].shape == (8, 512)
