"""Tables and curves of runs, from the folders that they leave."""

import csv
import json
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


def compare(tmp_path: Path, *folders: str | Path, figures: str = "png") -> list[dict[str, str]]:
    """The rows of comparison.csv."""
    out = tmp_path / "out"
    compare_runs.main([*map(str, folders), "--output", str(out), "--figures", figures])
    with open(out / "comparison.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_runs_that_differ_in_the_seed_are_a_row(tmp_path, capsys):
    """And flags that change no number, and paths, tell no groups apart."""
    folders = [
        write_run(tmp_path / "a0", 0.1, 0.6, 0.5, seed=0),
        write_run(tmp_path / "a1", 0.1, 0.7, 0.7, seed=1, workers=0, device="cpu", raf_path="x"),
        write_run(tmp_path / "a2", 0.1, 0.2, 0.9, seed=2, output_dir="y"),
        write_run(tmp_path / "b0", 0.1, 0.6, 0.5, seed=0, num_head=2, parameters=900),
    ]
    first, second = compare(tmp_path, *folders)
    settings = {"num_head": "4", "n": "3", "seeds": "0 1 2", "runs": " ".join(folders[:3])}
    assert dict([*first.items()][:4]) == settings  # others follow, or do not matter
    for name, values in (("best", (0.6, 0.7, 0.9)), ("last", (0.5, 0.7, 0.9))):
        mean = statistics.mean(values)
        assert float(first[f"val accuracy {name} mean"]) == pytest.approx(mean)
        assert float(first[f"val balanced {name} mean"]) == pytest.approx(mean - 0.1)
        deviation = statistics.stdev(values)
        assert float(first[f"val accuracy {name} std"]) == pytest.approx(deviation, rel=1e-5)
    assert (second["num_head"], second["val accuracy best mean"]) == ("2", "0.6")
    assert second["val accuracy best std"] == ""  # of one run there is none
    assert "4 3 73.33 ± 15.28 70.00 ± 20.00" in capsys.readouterr().out
    markdown = (tmp_path / "out/comparison.md").read_text("utf-8")
    assert "| 4 | 3 | 73.33 ± 15.28 | 70.00 ± 20.00 |" in markdown
    latex = (tmp_path / "out/comparison.tex").read_text("utf-8")
    assert r"num\_head & n" in latex and r"4 & 3 & 73.33 $\pm$ 15.28 &" in latex
    assert Image.open(tmp_path / "out/curves.png").width > 500


def test_a_score_that_a_run_lacks_is_left_out(tmp_path):
    """Test scores, and the mean of an epoch that is NaN: over fewer runs than n it is too good."""
    folders = [
        write_run(tmp_path / str(s), 0.5, 0.5, 0.5, test=0.4 + s / 10, seed=s) for s in (0, 2)
    ]
    folders.append(write_run(tmp_path / "a", 0.5, 0.5, 0.6, lr=1))
    folders.append(write_run(tmp_path / "b", 0.5, 0.5, float("nan"), lr=1, seed=2))
    with_test, without = compare(tmp_path, *folders, figures="svg")
    for name, expected in (("test accuracy best", 0.5), ("test macro-F1 last", 0.3)):
        numbers = [float(with_test[f"{name} {what}"]) for what in ("mean", "std")]
        assert numbers == pytest.approx((expected, 0.2 / 2**0.5), rel=1e-5)
        assert without[f"{name} mean"] == ""
    assert without["val accuracy best mean"] == "0.55" and without["val accuracy last mean"] == ""
    assert (tmp_path / "out/curves.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    "change",
    [{"dataset": "AffectNet"}, {"toy": True}, {"data_fingerprint": "1a"}, {"class_names": ["a"]}],
)
def test_other_data_are_another_row(tmp_path, capsys, change):
    folders = [write_run(tmp_path / "a", 0.1, 0.2, 0.3)]
    folders.append(write_run(tmp_path / "b", 0.1, 0.2, 0.3, seed=1, **change))
    rows = compare(tmp_path, *folders)
    assert [list(row)[:2] for row in rows] == [[*change, "n"]] * 2
    assert "different data" in capsys.readouterr().out


def test_changed_scripts_are_not_taken_for_seeds(tmp_path):
    """Where no flag differs, the optimizer's settings or the number of parameters tell."""
    folders = [write_run(tmp_path / "a", 0.1, 0.2, 0.3)]
    folders.append(write_run(tmp_path / "b", 0.1, 0.2, 0.3, seed=1, parameters=1001))
    optimizer = {"class": "SGD", "lr": [0.2]}
    folders.append(write_run(tmp_path / "c", 0.1, 0.2, 0.3, seed=2, optimizer=optimizer))
    rows = compare(tmp_path, *folders)
    assert [row["optimizer.lr"] for row in rows] == ["[0.1]", "[0.1]", "[0.2]"]
    assert [row["parameters"] for row in rows] == ["1000", "1001", "1000"]


def test_a_real_run_and_its_repetition(tmp_path, small_run, capsys):
    shutil.copytree(small_run, tmp_path / "again")
    (row,) = compare(tmp_path, small_run, tmp_path / "again")
    assert row["n"] == "2" and row["val accuracy best std"] == "0"
    assert "seeds 0 0; a repeated seed" in capsys.readouterr().out


def test_unfinished_and_damaged_runs_are_named_and_the_others_are_compared(tmp_path, capsys):
    whole = write_run(tmp_path / "whole", 0.1, 0.2, 0.3)
    part = write_run(tmp_path / "part", 0.1, 0.2, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    folders = [Path(part), tmp_path / "other", tmp_path / "file", tmp_path / "missing"]
    damages = [("config.json", text) for text in ("{", "{}", "[]")]
    damages += [("metrics.csv", ""), ("metrics.csv", "epoch,val_accuracy\n1,x\n2,1\n3,1")]
    for name, text in [*damages, ("test_metrics.json", "[1]")]:
        folders.append(Path(write_run(tmp_path / f"damaged{len(folders)}", 0.5, 0.6, 0.7)))
        (folders[-1] / name).write_text(text)
    (row,) = compare(tmp_path, *folders, whole)
    assert row["runs"] == whole
    out = capsys.readouterr().out
    assert all(f"left out: {folder}: " in out for folder in folders)
    assert "part: holds no finished run (unfinished, 2 of 3 epochs)" in out
    with pytest.raises(UserError, match="finished run"):
        compare(tmp_path, part)
