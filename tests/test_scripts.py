"""rafdb.py and affectnet.py: the published recipes, flags, and what a run leaves."""

import csv
import json
import os
import re
from functools import partial

import pytest
import torch
from PIL import Image

import affectnet
import rafdb
from networks.dan import DAN
from tests.conftest import REPOSITORY, train_raf
from utils import checkpoint, cli
from utils.checkpoint import read_trained
from utils.data.loader import balanced, shuffled
from utils.data.transforms import Augmentation
from utils.errors import UserError
from utils.labels import RAFDB
from utils.toy.sets import write_affectnet, write_rafdb
from utils.training import engine

# ---- recipes -------------------------------------------------------------------------------------


@pytest.fixture
def start(monkeypatch, tmp_path, quick):
    """Runs a script until its training would start; returns what that gets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path)  # whatever data and weights the real one holds

    def run(script, *flags):
        calls = []
        monkeypatch.setattr(engine, "fit", lambda *args, order: calls.append((*args, order)))
        script.main([*flags, "--device", "cpu"])
        ((run, _, augment, order),) = calls
        return run, augment, order

    return run


@pytest.mark.parametrize("script", [rafdb, affectnet])
def test_defaults_are_the_papers(start, monkeypatch, script, toy_raf, toy_aff):
    taken = []
    monkeypatch.setattr(checkpoint, "load_pretrained", lambda model, name: taken.append(name))
    data = ["--raf_path", str(toy_raf)] if script is rafdb else ["--aff_path", str(toy_aff)]
    run, augment, order = start(script, *data)
    assert taken == ["models/resnet18_msceleb.pth"]
    flags = {"batch_size": 256, "epochs": 40, "num_head": 4, "image_size": 224, "seed": 0}
    flags |= {"affinity_weight": 1.0, "partition_weight": 1.0, "num_center": None}
    assert vars(run.args).items() >= flags.items()
    shared = {"flip": 0.5, "rotation": 20, "erasing": 0.5}
    if script is rafdb:
        optimizer = {"class": "SGD", "lr": [0.1], "momentum": [0.9], "weight_decay": [1e-4]}
        schedule = {"class": "StepLR", "step_size": 10, "gamma": 0.1}
        expected = {"geometric": 0.2, "crop_padding": 32 / 224, "erasing_scale": (0.02, 0.25)}
        assert order is shuffled and run.args.output_dir == "models/rafdb"
    else:
        optimizer = {"class": "Adam", "lr": [1e-4], "weight_decay": [0], "betas": [[0.9, 0.999]]}
        schedule = {"class": "ExponentialLR", "gamma": 0.6}
        expected = {"geometric": 0.7, "scale": (0.8, 1.0), "translate": 0.2}
        expected["erasing_scale"] = (0.02, 0.33)
        assert order is balanced and run.args.output_dir == "models/affectnet-8"
    assert run.recipe["optimizer_settings"].items() >= optimizer.items()
    assert run.recipe["scheduler_settings"].items() >= schedule.items()
    assert augment == Augmentation(**shared, **expected)
    trained = {id(parameter) for parameter in run.optimizer.param_groups[0]["params"]}
    assert id(run.criterion.affinity.centers) in trained
    assert run.criterion.batch_mean == run.world.mean


@pytest.mark.parametrize(
    ("script", "path", "write"),
    [
        (rafdb, "raf_path", partial(write_rafdb, train=49, test=21)),
        (affectnet, "aff_path", partial(write_affectnet, train=48, val=24)),
    ],
)
def test_toy_presets_and_given_flags(start, monkeypatch, script, path, write):
    """A given flag wins over what --toy presets, and that over the recipe's default."""
    monkeypatch.setattr(script, write.func.__name__, write)
    given = {"lr": 0.5, "geometric": 0.4, "val_fraction": 0.3}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    run, augment, _ = start(script, "--toy", *flags)
    assert vars(run.args).items() >= {**script.TOY, **given}.items()
    assert run.data.toy and run.chosen_on == "val" and augment.geometric == 0.4
    schedule = run.recipe["scheduler_settings"]  # cosine decay is applied step by step
    assert (schedule["class"], schedule["factor"]) == ("ConstantLR", 1)
    run, *_ = start(script, "--toy", f"--{path}", "mine")
    assert str(run.data.root) == "mine"


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        rafdb.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--lr LR initial learning rate (default: 0.1)" in out


@pytest.mark.parametrize(
    ("script", "path"), [(rafdb, "datasets/raf-basic"), (affectnet, "datasets/AffectNet")]
)
def test_defaults_are_found_in_the_repository_from_anywhere(tmp_path, monkeypatch, script, path):
    """Where the working directory does not have them; given paths are the working directory's."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{path}: no such folder.*--toy"):
        script.main(["--device", "cpu"])
    (tmp_path / "repository" / path).mkdir(parents=True)
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path / "repository")
    with pytest.raises(UserError, match=f"^{tmp_path}/repository/{path}"):
        script.main(["--device", "cpu"])
    flag = "--raf_path" if script is rafdb else "--aff_path"
    with pytest.raises(UserError, match=f"^{path}: no such folder"):
        script.main(["--device", "cpu", flag, path])


# ---- what a run leaves ---------------------------------------------------------------------------


def test_a_run_leaves_its_files(toy_raf, tmp_path):
    """Two epochs with the real network and everything that a run writes."""
    train_raf(toy_raf, tmp_path, "--epochs", "2", "--num_center", "8")
    files = {"best.pth", "last.pth", "metrics.csv", "config.json", "curves.png"}
    assert set(os.listdir(tmp_path)) == files | {"confusion_matrix.png"}
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["dataset"], config["class_names"]) == ("RAF-DB", list(RAFDB))
    assert (config["num_head"], config["lr"], config["seed"]) == (2, 0.1, 0)
    assert (config["torch"], config["images"]["train"]) == (torch.__version__, [7] * 7)
    if (REPOSITORY / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", config["git_commit"])
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["lr"]) for row in rows] == [("1", "0.1"), ("2", "0.1")]
    assert all(row["val_accuracy"] == row["val_balanced_accuracy"] for row in rows)
    content = checkpoint.load(tmp_path / "last.pth")
    DAN(num_class=7, num_head=2).load_state_dict(content["model_state_dict"])
    assert content["criterion_state_dict"]["affinity.centers"].shape == (8, 512)
    trained = read_trained(tmp_path / "best.pth")
    assert (trained.class_names, trained.dataset, trained.image_size) == (RAFDB, "RAF-DB", 32)
