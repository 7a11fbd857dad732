"""Tables and curves of runs, from the folders that they leave."""

import csv
import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image

from utils import compare_runs
from utils.errors import UserError

CONFIG = {
    "dataset": "RAF-DB",
    "class_names": ["happiness", "anger"],
    "toy": False,
    "epochs": 3,
    "num_head": 4,
    "seed": 0,
    "workers": 4,
    "device": "cuda",
    "raf_path": "datasets/raf-basic",
    "optimizer": {"class": "SGD", "lr": [0.1]},
    "parameters": 1000,
}


def write_run(folder: Path, *accuracies: float, test: float | None = None, **config) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    rows = [[i, value, value - 0.1] for i, value in enumerate(accuracies, start=1)]
    with open(folder / "metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["epoch", "val_accuracy", "val_balanced_accuracy"], *rows])
    if test is not None:
        figures = {"accuracy": test, "balanced_accuracy": test - 0.1, "macro_f1": test - 0.2}
        content = json.dumps({"best": figures, "last": figures})
        (folder / "test_metrics.json").write_text(content)
    return str(folder)


def test_runs_that_differ_in_the_seed_are_a_row(tmp_path, capsys):
    """And flags that change no number, and paths, tell no groups apart."""
    folders = [
        write_run(tmp_path / "a0", 0.1, 0.6, 0.5, seed=0),
        write_run(tmp_path / "a1", 0.1, 0.7, 0.7, seed=1, workers=0, device="cpu", raf_path="x"),
        write_run(tmp_path / "a2", 0.1, 0.2, 0.9, seed=2, output_dir="y"),
        write_run(tmp_path / "b0", 0.1, 0.6, 0.5, seed=0, num_head=2, parameters=900),
    ]
    compare_runs.main([*folders, "--output", str(tmp_path / "out")])
    with open(tmp_path / "out/comparison.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["num_head"], first["n"], first["seeds"]) == ("4", "3", "0 1 2")
    assert "parameters" not in first and "workers" not in first  # which follow, or do not matter
    for name, values in (("best", (0.6, 0.7, 0.9)), ("last", (0.5, 0.7, 0.9))):
        expected = statistics.mean(values), statistics.stdev(values), statistics.mean(values) - 0.1
        columns = (
            f"val accuracy {name} mean",
            f"val accuracy {name} std",
            f"val balanced {name} mean",
        )
        assert [float(first[column]) for column in columns] == pytest.approx(expected, rel=1e-5)
    assert (second["num_head"], second["val accuracy best mean"]) == ("2", "0.6")
    assert second["val accuracy best std"] == ""  # of one run there is none
    assert "4  3  73.33 ± 15.28  70.00 ± 20.00" in capsys.readouterr().out
    markdown = (tmp_path / "out/comparison.md").read_text("utf-8")
    assert "| 4 | 3 | 73.33 ± 15.28 | 70.00 ± 20.00 |" in markdown
    latex = (tmp_path / "out/comparison.tex").read_text("utf-8")
    assert r"num\_head & n" in latex and r"4 & 3 & 73.33 $\pm$ 15.28 &" in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrr}")
    assert Image.open(tmp_path / "out/curves.png").width > 500


def test_test_figures_and_other_formats(tmp_path):
    folders = [
        write_run(tmp_path / str(s), 0.5, 0.5, 0.5, test=0.4 + s / 10, seed=s) for s in (0, 2)
    ]
    folders.append(write_run(tmp_path / "none", 0.5, 0.5, 0.5, lr=1))
    with_test, without = compare_runs.compare(folders, tmp_path / "out", "svg")
    assert with_test.figure("test accuracy best") == pytest.approx((0.5, 0.2 / 2**0.5))
    assert with_test.figure("test macro-F1 last") == pytest.approx((0.3, 0.2 / 2**0.5))
    assert math.isnan(without.figure("test accuracy best")[0])
    assert (tmp_path / "out/curves.svg").read_text().startswith("<?xml")


def test_unfinished_runs_and_other_folders_are_told_apart(tmp_path, capsys):
    whole = write_run(tmp_path / "whole", 0.1, 0.2, 0.3)
    part = write_run(tmp_path / "part", 0.1, 0.2, seed=1)
    (tmp_path / "other").mkdir()
    (group,) = compare_runs.compare([whole, part, tmp_path / "other"], tmp_path / "out")
    assert [run.folder.name for run in group.runs] == ["whole"]
    out = capsys.readouterr().out
    assert "part: unfinished, 2 of 3 epochs" in out and "other: has no config.json" in out
    with pytest.raises(UserError, match="finished run"):
        compare_runs.compare([part], tmp_path / "out")


@pytest.mark.parametrize(
    "change", [{"dataset": "AffectNet"}, {"toy": True}, {"class_names": ["a", "b", "c"]}]
)
def test_other_data_are_another_row(tmp_path, capsys, change):
    folders = [write_run(tmp_path / "a", 0.1, 0.2, 0.3)]
    folders.append(write_run(tmp_path / "b", 0.1, 0.2, 0.3, seed=1, **change))
    groups = compare_runs.compare(folders, tmp_path / "out")
    assert [[*group.settings] for group in groups] == [["data"], ["data"]]
    assert "different data" in capsys.readouterr().out


def test_changed_scripts_are_not_taken_for_seeds(tmp_path):
    """Where no flag differs, the optimizer's settings or the number of parameters tell."""
    folders = [write_run(tmp_path / "a", 0.1, 0.2, 0.3)]
    folders.append(write_run(tmp_path / "b", 0.1, 0.2, 0.3, seed=1, parameters=1001))
    optimizer = {"class": "SGD", "lr": [0.2]}
    folders.append(write_run(tmp_path / "c", 0.1, 0.2, 0.3, seed=2, optimizer=optimizer))
    groups = compare_runs.compare(folders, tmp_path / "out")
    assert [len(group.runs) for group in groups] == [1, 1, 1]


def test_a_repeated_seed_is_named(tmp_path, capsys):
    folders = [write_run(tmp_path / name, 0.1, 0.2, 0.3) for name in "ab"]
    compare_runs.compare(folders, tmp_path / "out")
    assert "2 runs of seed 0" in capsys.readouterr().out


def test_a_real_run(tmp_path, small_run):
    shutil.copytree(small_run, tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    (tmp_path / "again/config.json").write_text(json.dumps({**config, "seed": 7}))
    (group,) = compare_runs.compare([small_run, tmp_path / "again"], tmp_path / "out")
    assert len(group.runs) == 2 and group.figure("val accuracy best")[1] == 0


@pytest.mark.parametrize("damage", ["{", "{}", "[]"])
def test_a_damaged_run_is_named_and_the_others_are_compared(damage, tmp_path, capsys):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder in (whole, damaged):
        write_run(folder, 0.5, 0.6, 0.7)
    (damaged / "config.json").write_text(damage)
    (tmp_path / "file").touch()
    folders = [str(path) for path in (whole, damaged, tmp_path / "file")]
    groups = compare_runs.compare(folders, tmp_path / "out")
    assert [len(group.runs) for group in groups] == [1]
    out = capsys.readouterr().out
    assert f"left out: {damaged}" in out and f"left out: {tmp_path / 'file'}" in out
