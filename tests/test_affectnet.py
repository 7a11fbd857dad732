"""affectnet.py as a user runs it: both class counts, any class folders, and the mistakes."""

import shutil

import pytest

import affectnet
from tests.conftest import SMALL
from utils import checkpoint
from utils.errors import UserError
from utils.labels import AFFECTNET
from utils.readers import read_affectnet
from utils.trained import read_trained

FLAGS = [*SMALL, "--epochs", "1"]


def test_toy_is_as_imbalanced_as_affectnet(toy_aff):
    counts = read_affectnet(toy_aff).train.counts(8)
    named = dict(zip(AFFECTNET, counts, strict=True))
    assert named["happy"] == max(counts)
    assert {named["contempt"], named["disgust"]} == set(sorted(counts)[:2])
    assert set(read_affectnet(toy_aff).val.counts(8)) == {3}


@pytest.mark.parametrize("num_class", [7, 8])
def test_a_run_of_either_class_count(toy_aff, tmp_path, num_class, capsys):
    flags = ["--aff_path", str(toy_aff), "--output_dir", str(tmp_path), *FLAGS]
    affectnet.main([*flags, "--num_class", str(num_class)])
    trained = read_trained(tmp_path / "best.pth")
    assert trained.class_names == AFFECTNET[:num_class] and trained.dataset == "AffectNet"
    optimizer = checkpoint.load(tmp_path / "last.pth")["optimizer_state_dict"]
    assert "exp_avg" in optimizer["state"][0]  # Adam
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(0.6e-4)  # after one epoch
    assert optimizer["param_groups"][0]["weight_decay"] == 0


def test_any_class_folders(toy_aff, tmp_path, monkeypatch):
    """A data set of other names trains with as many outputs, and its names go everywhere."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "my_data"
    for source, target in (("train", "train"), ("val", "test")):
        for code, name in enumerate(("calm", "glad", "low")):
            shutil.copytree(toy_aff / source / str(code), data / target / name)
    affectnet.main(["--aff_path", str(data), *FLAGS])
    trained = read_trained(tmp_path / "models/my_data/best.pth")
    assert trained.class_names == ("calm", "glad", "low") and trained.dataset == "my_data"
    weights = str(tmp_path / "models/my_data/best.pth")
    affectnet.main(
        ["--aff_path", str(data), "--evaluate", "--checkpoint", weights, "--workers", "0"]
    )
    header = (
        (tmp_path / "models/my_data/best-evaluation/predictions.csv").read_text().splitlines()[0]
    )
    assert header == "path,label,prediction,calm,glad,low"


def test_recipe_defaults_are_the_papers(monkeypatch):
    def stop(root, num_class):
        raise UserError(f"{root} {num_class}")

    monkeypatch.setattr(affectnet, "read_affectnet", stop)
    with pytest.raises(UserError, match="datasets/AffectNet None"):
        affectnet.main([])
