"""Compare training runs: a row for each setting, with mean and standard deviation over its seeds.

    python utils/compare_runs.py models/*/

groups the runs that differ only in the seed, prints the table, and writes it to comparison.csv,
comparison.md and comparison.tex, with the curves in curves.png, in a folder. Accuracies are of the
validation images: of the best epoch, which was chosen on them, and of the last one. Test accuracies
are shown where a run has test images of its own. Unfinished runs are named and left out.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import labels
from utils.cli import MAY_CHANGE, Parser
from utils.errors import UserError, exit_on_user_error, writing
from utils.training.plots import plot_comparison

# Entries of config.json that say on which data a run was trained.
DATA = ("dataset", "class_names", "toy", "data_fingerprint")
# Entries that do not change its figures, or follow from others; those of paths do neither.
IGNORED = {*DATA, "seed", *MAY_CHANGE} - {"epochs"}
IGNORED |= {"processes", "device_name", "python", "torch", "torchvision", "images", "command"}
IGNORED |= {"git_commit", "started"}
# Name of a figure, and its key in metrics.csv (after val_) and in test_metrics.json.
FIGURES = {"accuracy": "accuracy", "balanced": "balanced_accuracy", "macro-F1": "macro_f1"}


@dataclass(frozen=True)
class Run:
    folder: Path
    seed: int | None
    settings: Mapping[str, Any]  # all that changes its figures but the seed; "data" comes first
    curve: Sequence[float]  # validation accuracy of each epoch
    figures: Mapping[str, float]  # "val accuracy best" -> a fraction


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only."""

    settings: Mapping[str, Any]  # those that tell it from other groups
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.settings.items()) or "all runs"

    def figure(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation; NaN if a run lacks it, and the deviation of a single run."""
        values = [run.figures.get(name, math.nan) for run in self.runs]
        return np.mean(values), np.std(values, ddof=1) if len(values) > 1 else math.nan


# ---- reading -------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is not one, or the run is unfinished.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        history = pd.read_csv(folder / "metrics.csv")
        return _read_run(folder, config, history)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: has no {Path(error.filename).name}, so no run with a finished epoch"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder}: config.json, metrics.csv or test_metrics.json cannot be read ({error})"
        ) from None


def _read_run(folder: Path, config: Mapping[str, Any], history: pd.DataFrame) -> Run:
    if len(history) < config["epochs"]:
        raise UserError(f"{folder}: unfinished, {len(history)} of {config['epochs']} epochs")
    history = history.rename(columns=lambda name: name.removeprefix("val_"))
    best = history["accuracy"].fillna(-1).idxmax()
    epochs = {"val": {"best": history.loc[best], "last": history.iloc[-1]}}
    test = folder / "test_metrics.json"
    if test.exists():
        epochs["test"] = json.loads(test.read_text())
    figures = {
        f"{split} {name} {which}": row[key]
        for split, rows in epochs.items()
        for name, key in FIGURES.items()
        for which, row in rows.items()
        if key in row
    }
    return Run(folder, config.get("seed"), _settings(config), list(history["accuracy"]), figures)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a configuration: optimizer and schedule become entries such as `optimizer.lr`, which
    follow from the flags unless a script was changed."""
    data = labels.title(config["dataset"], toy=config.get("toy", False))
    data += f", {len(config['class_names'])} classes"
    if mark := config.get("data_fingerprint"):
        data += f" ({mark})"
    settings = {"data": data}
    for name, value in config.items():
        if name in IGNORED or name.endswith("_path"):
            continue
        if isinstance(value, dict):
            settings |= {f"{name}.{key}": value[key] for key in value}
        else:
            settings[name] = value
    return settings


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by data and settings, in the order of their first runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    settings = [members[0].settings for members in groups.values()]

    def count(*names: str) -> int:
        """How many groups these settings tell apart."""
        return len({json.dumps([each.get(name) for name in names]) for each in settings})

    shown = [name for name in {n: None for each in settings for n in each} if count(name) > 1]
    flags = [name for name in shown if "." not in name and name != "parameters"]
    if count(*flags) == len(settings):
        shown = flags  # from which the others follow
    return [
        Group({name: each.get(name, "-") for name in shown}, members)
        for each, members in zip(settings, groups.values(), strict=True)
    ]


# ---- writing -------------------------------------------------------------------------------------


def table(groups: Sequence[Group]) -> list[list[str]]:
    """Header and rows: settings, n, and figures in percent."""
    names = _figure_names(groups)
    rows = [[*groups[0].settings, "n", *names]]
    for group in groups:
        cells = [_percent(*group.figure(name)) for name in names]
        rows.append([*map(str, group.settings.values()), str(len(group.runs)), *cells])
    return rows


def _figure_names(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(name for g in groups for run in g.runs for name in run.figures))


def _percent(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "-"
    text = f"{100 * mean:.2f}"
    return text if math.isnan(deviation) else f"{text} ± {100 * deviation:.2f}"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns; the words of a header stand below each other."""
    words = [name.split(" ") for name in rows[0]]
    depth = max(map(len, words))
    header = zip(*([""] * (depth - len(each)) + each for each in words), strict=True)
    rows = [*header, *rows[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pairs = ([*zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cell.rjust(width) for cell, width in row) for row in pairs)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], ""])


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_escape, row)) + r" \\" for row in rows]
    columns = "l" * rows[0].index("n") + "r" * (len(rows[0]) - rows[0].index("n"))
    body = [lines[0], r"\hline", *lines[1:]]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", ""])


def _escape(text: str) -> str:
    text = "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)
    return text.replace("±", r"$\pm$")


def write_csv(groups: Sequence[Group], path: Path) -> None:
    """Write figures as fractions, as in metrics.csv: mean and standard deviation in columns of
    their own; and which runs they are of."""
    rows = []
    for group in groups:
        seeds = " ".join(str(run.seed) for run in group.runs)
        folders = " ".join(str(run.folder) for run in group.runs)
        row = {**group.settings, "n": len(group.runs), "seeds": seeds, "runs": folders}
        for name in _figure_names(groups):
            row[f"{name} mean"], row[f"{name} std"] = group.figure(name)
        rows.append(row)
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def compare(folders: Iterable[str], output: Path, figures: str = "png") -> list[Group]:
    """Print and write the comparison of runs.

    Args:
        figures: png, pdf or svg.

    Raises:
        UserError: no folder holds a finished run, or `output` cannot be written.
    """
    runs = []
    for folder in dict.fromkeys(map(Path, folders)):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            print(f"left out: {error}")
    if not runs:
        raise UserError(
            "none of these folders holds a finished run; give folders such as models/*/"
        )
    groups = group_runs(runs)
    for group in groups:
        for seed, count in Counter(run.seed for run in group.runs).items():
            if count > 1:
                print(f"{group.label}: {count} runs of seed {seed}, which is no new sample")
    rows = table(groups)
    print(as_text(rows))
    if "data" in groups[0].settings:
        print("These runs are on different data: compare only rows of the same data.")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_csv(groups, output / "comparison.csv")
        (output / "comparison.md").write_text(as_markdown(rows), encoding="utf-8")
        (output / "comparison.tex").write_text(as_latex(rows), encoding="utf-8")
        curves = [(group.label, [run.curve for run in group.runs]) for group in groups]
        plot_comparison(curves, output / f"curves.{figures}")
    print(f"files in {output}/: comparison.csv comparison.md comparison.tex curves.{figures}")
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("%(prog)s FOLDER ... [flags]", description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="folders of runs, such as models/*/")
    add("--output", type=Path, default="comparison", metavar="DIR", help="folder of the results")
    add("--figures", choices=("png", "pdf", "svg"), default="png", help="format of the figure")
    args = parser.parse_args(argv)
    compare(args.folders, args.output, args.figures)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
