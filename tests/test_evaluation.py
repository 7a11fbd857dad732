"""Evaluating checkpoints: ours and released ones, the files written, and what does not fit."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import affectnet
import rafdb
from networks.dan import DAN
from tests.conftest import SMALL
from utils import checkpoint
from utils.errors import UserError
from utils.images import read_rgb
from utils.labels import RAFDB
from utils.readers import read_rafdb
from utils.toy_faces import write_rafdb
from utils.transforms import preprocess

HOST = ["--workers", "0", "--device", "cpu"]


@pytest.fixture
def released(tmp_path):
    """Writes a file of the released form, with as many classes and under the name asked."""

    def write(name, num_class):
        torch.manual_seed(0)
        model = DAN(num_class=num_class)
        content = {"iter": 5, "model_state_dict": model.state_dict(), "optimizer_state_dict": {}}
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def evaluate(toy_raf, path, *more):
    rafdb.main(["--raf_path", str(toy_raf), "--evaluate", "--checkpoint", str(path), *HOST, *more])


def test_files_and_table(toy_raf, small_run, tmp_path, capsys):
    shutil.copy(small_run / "best.pth", tmp_path)
    evaluate(toy_raf, tmp_path / "best.pth", "--tsne")
    folder = tmp_path / "best-evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == 21 and set(metrics["per_class"]) == set(RAFDB)
    with open(folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "prediction", *RAFDB]
    hits = np.mean([row["label"] == row["prediction"] for row in rows])
    assert metrics["accuracy"] == pytest.approx(hits)
    for row in rows:
        probabilities = {name: float(row[name]) for name in RAFDB}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(probabilities, key=probabilities.get) == row["prediction"]
    for name in ("confusion_matrix.png", "tsne.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
    printed = capsys.readouterr().out
    assert "balanced accuracy" in printed and "precision" in printed and "surprise" in printed
    (folder / "bad_images.csv").touch()
    evaluate(toy_raf, tmp_path / "best.pth")
    for name in ("tsne.png", "bad_images.csv"):
        assert not (folder / name).exists()  # they would be those of other images


def test_an_overwritten_run_takes_its_evaluations_along(toy_raf, small_run, tmp_path):
    """They would pass for those of the new one; what somebody else put there stays."""
    for name in ("best", "last"):
        shutil.copy(small_run / f"{name}.pth", tmp_path)
        evaluate(toy_raf, tmp_path / f"{name}.pth", "--tsne")
        said = json.loads((tmp_path / f"{name}-evaluation" / "metrics.json").read_text())
        assert said["epoch"] == checkpoint.load(tmp_path / f"{name}.pth")["iter"]
    mine = tmp_path / "last-evaluation" / "mine.txt"
    mine.touch()
    flags = ["--raf_path", str(toy_raf), "--output_dir", str(tmp_path), *SMALL]
    rafdb.main([*flags, "--overwrite", "--epochs", "1"])
    assert not (tmp_path / "best-evaluation").exists()
    assert list(mine.parent.iterdir()) == [mine]


def test_probabilities_are_the_models(toy_raf, released, tmp_path):
    """Each face by itself, through the network as it was trained."""
    path = released("rafdb_epoch21_acc0.897_bacc0.8275.pth", 7)
    evaluate(toy_raf, path, "--output_dir", str(tmp_path / "out"))
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    split = read_rafdb(toy_raf).val
    torch.manual_seed(0)
    model = DAN(num_class=7).eval()
    for index in (0, 9, 20):
        image = torch.tensor(read_rgb(split.path(index))).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = model(preprocess(image, 224)).logits.softmax(1)[0]
        assert rows[index]["path"] == str(split.path(index))
        assert rows[index]["label"] == RAFDB[split.labels[index]]
        ours = [float(rows[index][name]) for name in RAFDB]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_dataset_flag_settles_a_released_file(toy_raf, released, tmp_path):
    path = released("weights.pth", 7)
    evaluate(toy_raf, path, "--dataset", "RAF-DB")
    assert (tmp_path / "weights-evaluation" / "metrics.json").is_file()


def test_affectnet_checkpoint_of_seven_classes(toy_raf, released, tmp_path):
    for split in ("train", "val"):
        for code in range(8):
            (tmp_path / split / str(code)).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / str(code) / "0.png")
    flags = ["--aff_path", str(tmp_path), "--evaluate", *HOST]
    path = released("affecnet7_epoch6_acc0.6569.pth", 7)
    affectnet.main([*flags, "--checkpoint", str(path)])


def test_data_are_those_of_the_training(toy_raf, small_run, tmp_path, capsys):
    """Unless other ones are named."""
    path = shutil.copy(small_run / "best.pth", tmp_path)
    rafdb.main(["--evaluate", "--checkpoint", str(path), *HOST])
    assert "21 images of RAF-DB" in capsys.readouterr().out
    other = tmp_path / "other"
    write_rafdb(other, train=7, test=14)
    evaluate(other, path)
    assert "14 images of RAF-DB" in capsys.readouterr().out


def test_toy_faces_of_the_training_are_drawn_again(small_run, tmp_path, monkeypatch, capsys):
    content = checkpoint.load(small_run / "best.pth")
    content["config"] |= {"toy": True, "raf_path": "faces"}
    checkpoint.save(tmp_path / "best.pth", content)
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(
        rafdb, "write_rafdb", lambda root: drawn.append(write_rafdb(root, train=7, test=7))
    )
    rafdb.main(["--evaluate", "--checkpoint", "best.pth", *HOST])
    assert len(drawn) == 1 and "7 images of toy RAF-DB" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--toy"], ["--aff_path", "faces"]])
def test_a_network_of_another_recipe_is_refused_before_anything_is_drawn(
    flags, small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = str(small_run / "best.pth")
    with pytest.raises(UserError, match=f"python rafdb.py --evaluate --checkpoint {path}"):
        affectnet.main([*flags, "--evaluate", "--checkpoint", path, *HOST])
    assert not list(tmp_path.iterdir())
