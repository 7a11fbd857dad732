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
from utils.errors import UserError, exit_on_user_error
from utils.labels import RAFDB
from utils.trained import read_trained

REPOSITORY = Path(rafdb.__file__).parent


def test_a_run_leaves_its_files(small_run):
    files = {"best.pth", "last.pth", "metrics.csv", "config.json", "curves.png"}
    assert set(os.listdir(small_run)) == files | {"confusion_matrix.png"}
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


def not_weights(tmp_path, toy_raf):
    (tmp_path / "weights.pth").write_bytes(b"<html>")
    return ["--pretrained", str(tmp_path / "weights.pth")]


def not_a_resnet(tmp_path, toy_raf):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "weights.pth")
    return ["--pretrained", str(tmp_path / "weights.pth")]


def file_as_output(tmp_path, toy_raf):
    (tmp_path / "file").touch()
    return ["--output_dir", str(tmp_path / "file")]


def broken_image(tmp_path, toy_raf):
    import shutil

    shutil.copytree(toy_raf, tmp_path / "raf")
    (tmp_path / "raf/Image/aligned/train_00005_aligned.jpg").write_bytes(b"\xff\xd8broken")
    return ["--raf_path", str(tmp_path / "raf")]


MISTAKES = {
    "no data": (["--raf_path", "nowhere"], "--toy"),
    "no MS-Celeb weights": (["--pretrained", "models/resnet18_msceleb.pth"], "drive.google.com"),
    "no weights": (["--pretrained", "nothing.pth"], "--pretrained none"),
    "weights that are none": (not_weights, "web page"),
    "weights of something else": (not_a_resnet, "bn1.weight is missing"),
    "output that is a file": (file_as_output, "cannot be written"),
    "an unreadable image": (broken_image, "train_00005_aligned.jpg"),
    "cuda without a GPU": (["--device", "cuda:7"], "--device cuda:7"),
    "unknown device": (["--device", "tpu"], "--device tpu"),
    "device without its number": (["--device", "cuda:"], "--device cuda:"),
    "batch_size 0": (["--batch_size", "0"], "--batch_size: must be at least 1"),
    "batch_size 1": (["--batch_size", "1"], "BatchNorm cannot train on one image"),
    "num_head 0": (["--num_head", "0"], "--num_head: must be at least 1"),
    "epochs -1": (["--epochs", "-1"], "--epochs: must be at least 1"),
    "epochs 1.5": (["--epochs", "1.5"], "not a whole number"),
    "lr nan": (["--lr", "nan"], "--lr"),
    "lr 0": (["--lr", "0"], "--lr: must be more than 0"),
    "seed -1": (["--seed", "-1"], "--seed"),
    "image_size 16": (["--image_size", "16"], "--image_size: must be from 32"),
    "workers -1": (["--workers", "-1"], "--workers: must be at least 0"),
    "negative weight": (["--affinity_weight", "-1"], "--affinity_weight"),
    "too few centres": (["--num_center", "6"], "there are 7 classes"),
    "unknown precision": (["--precision", "fp8"], "--precision"),
    "unknown flag": (["--batchsize", "3"], "--batchsize"),
    "evaluate without a checkpoint": (["--evaluate"], "--checkpoint FILE"),
    "a checkpoint without evaluate": (["--checkpoint", "x.pth"], "--evaluate"),
    "evaluate nothing": (["--evaluate", "--checkpoint", "x.pth"], "x.pth: no such checkpoint"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    mistake, tmp_path, toy_raf, monkeypatch, capsys
):
    if mistake == "cuda without a GPU" and torch.cuda.device_count() > 7:
        pytest.skip("there are that many GPUs")
    flags, expected = MISTAKES[mistake]
    flags = flags(tmp_path, toy_raf) if callable(flags) else flags
    monkeypatch.chdir(tmp_path)
    usual = ["--raf_path", str(toy_raf), "--output_dir", str(tmp_path / "run"), *SMALL]
    usual += ["--epochs", "1"]
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        rafdb.main([*usual, *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "run" / "last.pth").exists()


def test_script_exit_code():
    """The same through the shell: nothing but the one line on stderr."""
    command = [sys.executable, "rafdb.py", "--raf_path", "nowhere"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere: no such folder") and done.stderr.count("\n") == 1
