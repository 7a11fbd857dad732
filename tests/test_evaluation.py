"""Evaluating checkpoints: ours and released ones, the files written, and what does not fit."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import affectnet
import rafdb
from tests.conftest import TinyDAN, golden_dan
from utils import checkpoint
from utils.data.datasets import read_rafdb
from utils.data.images import read_rgb
from utils.data.transforms import preprocess
from utils.errors import UserError
from utils.labels import AFFECTNET, RAFDB
from utils.toy.sets import write_rafdb
from utils.training.metrics import classification_metrics

FLAGS = ["--workers", "0", "--device", "cpu", "--evaluate", "--checkpoint"]


def evaluate(toy_raf, path, *more):
    rafdb.main([*FLAGS, str(path), "--raf_path", str(toy_raf), *more])


def read_results(folder):
    """metrics.json and the rows of predictions.csv."""
    with open(folder / "predictions.csv") as file:
        return json.loads((folder / "metrics.json").read_text()), list(csv.DictReader(file))


def test_files_and_table(toy_raf, small_run, tmp_path, quick, capsys):
    """The accuracy is the one that training logged for that epoch."""
    path = shutil.copy(small_run / "best.pth", tmp_path)
    evaluate(toy_raf, path, "--tsne")
    printed = capsys.readouterr().out
    (folder,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    (metrics, rows), content = read_results(folder), checkpoint.load(path)
    assert metrics["images"] == 21 and metrics["epoch"] == content["iter"]
    assert metrics["accuracy"] == content["metrics"][content["iter"] - 1]["val_accuracy"]
    assert list(rows[0]) == ["path", "label", "prediction", *RAFDB]
    hits = np.mean([row["label"] == row["prediction"] for row in rows])
    assert metrics["accuracy"] == pytest.approx(hits)
    for row in rows:
        probabilities = {name: float(row[name]) for name in RAFDB}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(probabilities, key=probabilities.get) == row["prediction"]
    assert f"balanced accuracy {100 * metrics['balanced_accuracy']:.2f} %" in printed
    table = [line.split() for line in printed.splitlines()]
    for name in RAFDB:  # a class that is never predicted has no precision
        row = metrics["per_class"][name]
        predicted = any(row["prediction"] == name for row in rows)
        assert row["images"] == 3 and (row["precision"] is not None) == predicted
        shown = ["-" if row[key] is None else f"{100 * row[key]:.2f}" for key in list(row)[1:]]
        assert [name, "3", *shown] in table
    assert "confusion_matrix.png tsne.png" in printed
    (folder / "tsne.png").touch()
    evaluate(toy_raf, path)
    assert not (folder / "tsne.png").exists()  # it may have been of other weights


@pytest.mark.parametrize(
    ("name", "order", "own"),
    [
        ("rafdb_epoch21_acc0.897_bacc0.8275.pth", RAFDB, RAFDB),
        ("affecnet7_epoch6_acc0.6569.pth", AFFECTNET[:7],
         ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral")),
    ],
)  # fmt: skip
def test_probabilities_are_the_networks(
    name, order, own, toy_raf, checkpoint_file, tmp_path, capsys
):
    """Each face alone, through the network as it was trained. Across data sets classes are matched
    by synonyms: AffectNet's happy is RAF-DB's happiness."""
    evaluate(toy_raf, checkpoint_file(7, name), "--output_dir", str(tmp_path))
    metrics, rows = read_results(tmp_path)
    assert metrics["class_mapping"] == dict(zip(RAFDB, own, strict=True))
    assert metrics["dataset"] == "toy RAF-DB"
    assert ("happiness = happy, sadness = sad" in capsys.readouterr().out) == (own != RAFDB)
    split, model = read_rafdb(toy_raf).val, golden_dan(7)
    for index in (0, 9, 20):
        image = torch.tensor(read_rgb(split.path(index))).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = model(preprocess(image, 224)).logits.softmax(1)[0]
        assert rows[index]["path"] == str(split.path(index))
        assert rows[index]["label"] == RAFDB[split.labels[index]]
        ours = [float(rows[index][name]) for name in RAFDB]
        theirs = expected[[order.index(name) for name in own]]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_affectnet_checkpoint_of_seven_classes(toy_aff, tmp_path, quick):
    """Without --num_class; and a network of eight leaves contempt out."""
    seven, eight = (tmp_path / f"affecnet{n}_epoch6_acc0.6569.pth" for n in (7, 8))
    for path, n in ((seven, 7), (eight, 8)):
        torch.save({"model_state_dict": TinyDAN(num_class=n).state_dict()}, path)
    data = ["--aff_path", str(toy_aff)]
    affectnet.main([*FLAGS, str(seven), *data])
    with pytest.raises(UserError, match="AffectNet also has contempt"):
        affectnet.main([*FLAGS, str(seven), *data, "--num_class", "8"])
    affectnet.main([*FLAGS, str(eight), *data, "--num_class", "7", "--output_dir", str(tmp_path)])
    _, rows = read_results(tmp_path)
    assert "contempt" not in rows[0] and len(rows) == 21
    assert sum(float(rows[0][name]) for name in AFFECTNET[:7]) == pytest.approx(1, abs=1e-4)


def test_data_are_those_of_the_training_unless_others_are_named(
    toy_raf, small_run, tmp_path, quick, capsys
):
    """And each evaluation keeps its own folder."""
    path = shutil.copy(small_run / "best.pth", tmp_path)
    rafdb.main([*FLAGS, str(path)])
    assert "21 images of toy RAF-DB" in capsys.readouterr().out
    write_rafdb(tmp_path / "other", train=7, test=14)
    evaluate(tmp_path / "other", path)
    assert "14 images of toy RAF-DB" in capsys.readouterr().out
    folders = tmp_path.glob("best-evaluation*")
    assert {read_results(folder)[0]["images"] for folder in folders} == {14, 21}


def test_toy_faces_of_the_training_are_drawn_again(small_run, tmp_path, monkeypatch, quick, capsys):
    content = checkpoint.load(small_run / "best.pth")
    content["config"] |= {"toy": True, "raf_path": "faces"}
    checkpoint.save(tmp_path / "best.pth", content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rafdb, "write_rafdb", lambda root: write_rafdb(root, train=7, test=7))
    rafdb.main([*FLAGS, "best.pth"])
    assert "7 images of toy RAF-DB" in capsys.readouterr().out
    write_rafdb("other", train=7, test=14)  # which is no place to draw
    evaluate("other", "best.pth")
    assert "14 images of toy RAF-DB" in capsys.readouterr().out


def test_a_network_of_another_recipe_is_refused_before_anything_is_drawn(
    small_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--toy"]):
        with pytest.raises(UserError, match="trained on --raf_path"):
            affectnet.main([*FLAGS, str(small_run / "best.pth"), *flags])
    assert not list(tmp_path.iterdir())


def test_a_class_without_images_counts_for_nothing():
    ours = classification_metrics(np.array([0, 0, 0, 2]), np.array([0, 1, 0, 2]), num_class=4)
    assert ours[:3] == pytest.approx((3 / 4, (2 / 3 + 1) / 2, (4 / 5 + 1) / 2))
    assert ours.per_class.loc[[1, 3], ["recall", "f1"]].isna().all(axis=None)
    assert ours.per_class["precision"][1] == 0 and np.isnan(ours.per_class["precision"][3])
    assert ours.confusion[0].tolist() == [2, 1, 0, 0]  # rows are labels
    wrong = classification_metrics(np.array([0]), np.array([1]), num_class=3)
    assert wrong.per_class["images"].dtype == int  # scikit-learn's are floats if nothing is right
