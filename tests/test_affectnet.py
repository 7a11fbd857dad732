"""affectnet.py as a user runs it: both class counts, any class folders, and the mistakes."""

import shutil

import pytest

import affectnet
from tests.conftest import SMALL
from utils import checkpoint
from utils.convert_affectnet import convert
from utils.errors import UserError, exit_on_user_error
from utils.labels import AFFECTNET
from utils.readers import read_affectnet
from utils.toy_faces import write_affectnet
from utils.trained import read_trained

FLAGS = [*SMALL, "--epochs", "1"]


@pytest.fixture(scope="module")
def toy_aff(tmp_path_factory):
    """A few toy faces as the npy release, converted to class folders."""
    folder = tmp_path_factory.mktemp("data") / "aff"
    write_affectnet(folder, train=80, val=24)
    convert(folder)
    return folder


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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--aff_path", "nowhere"], "--toy"),
        (["--num_class", "6"], "--num_class"),
        (["--lr", "-1"], "--lr"),
        (["--batch_size", "x"], "--batch_size: 'x' is not a whole number"),
        (["--pretrained", "nothing.pth"], "nothing.pth: no such weights"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(toy_aff, tmp_path, flags, expected, capsys):
    usual = ["--aff_path", str(toy_aff), "--output_dir", str(tmp_path / "run"), *FLAGS]
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        affectnet.main([*usual, *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error


def test_raw_release_without_class_folders_names_the_command(tmp_path, capsys):
    write_affectnet(tmp_path / "aff", train=8, val=8)
    with pytest.raises(SystemExit), exit_on_user_error():
        affectnet.main(["--aff_path", str(tmp_path / "aff"), *FLAGS])
    error = capsys.readouterr().err
    assert f"python utils/convert_affectnet.py --aff_path {tmp_path / 'aff'}" in error
