"""rafdb.py and affectnet.py with the real network: what a run leaves, and the recipes' defaults."""

import csv
import json
import os

import pytest
import torch
from PIL import Image

import affectnet
import rafdb
from networks.dan import DAN
from tests.conftest import SMALL, train_raf
from utils import checkpoint, cli
from utils.checkpoint import read_trained
from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB


@pytest.fixture(scope="module")
def raf_run(tmp_path_factory, toy_raf):
    """Two epochs with the real network and everything that a run writes."""
    folder = tmp_path_factory.mktemp("run")
    train_raf(toy_raf, folder, "--epochs", "2", "--num_center", "8")
    return folder


def test_a_run_leaves_its_files(raf_run):
    files = {"best.pth", "last.pth", "metrics.csv", "config.json", "curves.png"}
    assert set(os.listdir(raf_run)) == files | {"confusion_matrix.png"}
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(raf_run / name) as image:
            assert min(image.size) > 300
    config = json.loads((raf_run / "config.json").read_text())
    assert (config["dataset"], config["class_names"]) == ("RAF-DB", list(RAFDB))
    assert (config["num_head"], config["lr"], config["seed"]) == (2, 0.1, 0)
    assert config["torch"] == torch.__version__


def test_metrics_are_one_row_per_epoch(raf_run):
    with open(raf_run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        total = sum(float(row[term]) for term in ("cross_entropy", "affinity", "partition"))
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
        assert 0 <= float(row["val_accuracy"]) <= 1 and float(row["lr"]) == 0.1
        assert float(row["val_accuracy"]) == pytest.approx(
            float(row["val_balanced_accuracy"]), abs=1e-5
        )


def test_checkpoints_load_in_the_released_network(raf_run):
    content = checkpoint.load(raf_run / "last.pth")
    assert content["iter"] == 2 and len(content["metrics"]) == 2
    DAN(num_class=7, num_head=2).load_state_dict(content["model_state_dict"])
    assert content["criterion_state_dict"]["affinity.centers"].shape == (8, 512)
    trained = read_trained(raf_run / "best.pth")
    assert (trained.class_names, trained.dataset, trained.image_size) == (RAFDB, "RAF-DB", 32)


@pytest.mark.parametrize("num_class", [7, 8])
def test_an_affectnet_run(toy_aff, tmp_path, num_class, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--aff_path", str(toy_aff), *SMALL, "--epochs", "1"]
    affectnet.main([*flags, "--num_class", str(num_class), "--num_head", "1"])
    folder = tmp_path / f"models/affectnet-{num_class}"
    trained = read_trained(folder / "best.pth")
    assert trained.class_names == AFFECTNET[:num_class] and trained.dataset == "AffectNet"
    optimizer = checkpoint.load(folder / "last.pth")["optimizer_state_dict"]
    assert "exp_avg" in optimizer["state"][0]  # Adam
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.6e-4)  # after one epoch
    assert optimizer["param_groups"][0]["weight_decay"] == 0


def test_toy_presets_and_given_flags(monkeypatch, tmp_path):
    """A given flag wins over what --toy presets, and that over the recipe's default."""
    seen = {}

    def stop(root):
        raise UserError("stop here")

    monkeypatch.setattr(rafdb, "write_rafdb", lambda root: seen.update(root=root))
    monkeypatch.setattr(rafdb, "read_rafdb", stop)
    for flags, root in (([], rafdb.TOY["raf_path"]), (["--raf_path", "mine"], "mine")):
        with pytest.raises(UserError, match="stop here"):
            rafdb.main(["--toy", *flags, "--output_dir", str(tmp_path)])
        assert seen["root"] == root


@pytest.mark.parametrize(
    ("script", "defaults"),
    [
        (rafdb, {"batch_size": 256, "lr": 0.1, "epochs": 40, "raf_path": "datasets/raf-basic"}),
        (
            affectnet,
            {"batch_size": 256, "lr": 1e-4, "epochs": 40, "aff_path": "datasets/AffectNet"},
        ),
    ],
)
def test_recipe_defaults_are_the_papers(script, defaults, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parsed, parse = [], cli.parse
    monkeypatch.setattr(cli, "parse", lambda *args: parsed.append(parse(*args)) or parsed[-1])
    with pytest.raises(UserError, match=r"no such folder.*--toy"):
        script.main(["--device", "cpu"])
    args, saved = parsed[0]
    defaults |= {
        "batch_size": 256,
        "epochs": 40,
        "num_head": 4,
        "image_size": 224,
        "seed": 0,
        "num_center": None,
    }
    defaults |= {"affinity_weight": 1.0, "partition_weight": 1.0}
    defaults |= {"pretrained": "models/resnet18_msceleb.pth"}
    assert saved is None and {name: getattr(args, name) for name in defaults} == defaults
    assert args.output_dir == ("models/rafdb" if script is rafdb else "models/affectnet-8")
    augment = script.AUGMENT
    assert (augment.flip, augment.rotation, augment.erasing) == (0.5, 20, 0.5)
    assert augment.geometric == (0.2 if script is rafdb else 0.7)


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        rafdb.main(["--help"])
    out = capsys.readouterr().out
    for flag, default in {
        "--lr": "0.1",
        "--num_head": "4",
        "--raf_path": "datasets/raf-ba",
    }.items():
        assert f"(default: {default}" in " ".join(out[out.index(f"  {flag} ") :].split())[:250]


def test_defaults_are_found_in_the_repository_from_anywhere(tmp_path, monkeypatch):
    """Where the working directory does not have them; given paths are the working directory's."""
    (tmp_path / "repository/datasets/raf-basic").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(cli, "REPOSITORY", tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{tmp_path}/repository/datasets/raf-basic/EmoLabel"):
        rafdb.main(["--device", "cpu"])
    with pytest.raises(UserError, match="^datasets/raf-basic: no such folder"):
        rafdb.main(["--device", "cpu", "--raf_path", "datasets/raf-basic"])
