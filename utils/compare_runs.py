"""Compare training runs: a row for each setting, with mean and standard deviation over its seeds.

    python utils/compare_runs.py models/*/

groups the runs that differ only in the seed, prints the table, and writes it to comparison.csv,
comparison.md and comparison.tex, with the curves in curves.png, in a folder. Accuracies are of the
validation images: of the best epoch, which was chosen on them, and of the last one. Test accuracies
are shown where a run has test images of its own. Unfinished runs are named and left out.
"""

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import labels
from utils.cli import MAY_CHANGE, Parser
from utils.errors import UserError, exit_on_user_error, one_line, writing
from utils.training.plots import plot_comparison

# Entries of config.json that say on which data a run was trained.
DATA = ("dataset", "class_names", "toy", "data_fingerprint")
# Entries that do not change its figures, or follow from others; those of paths do neither.
IGNORED = {*DATA, "seed", *MAY_CHANGE} - {"epochs"}
IGNORED |= {"processes", "device_name", "python", "torch", "torchvision", "images", "command"}
IGNORED |= {"git_commit", "started"}
# Name of a figure, and its key in metrics.csv (after val_) and test_metrics.json.
FIGURES = {"accuracy": "accuracy", "balanced": "balanced_accuracy", "macro-F1": "macro_f1"}


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Mapping[str, Any]
    curve: list[float]  # validation accuracy of each epoch
    figures: Mapping[str, float]  # "val accuracy best" -> a fraction

    @property
    def data(self) -> str:
        """What it was trained on, equal for equal data."""
        title = labels.title(str(self.config["dataset"]), toy=bool(self.config.get("toy")))
        mark = self.config.get("data_fingerprint")
        return f"{title}, {len(self.config['class_names'])} classes" + (
            f" ({mark})" if mark else ""
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes its figures, besides data and seed. Nested entries (optimizer, schedule)
        are named `optimizer.lr`; they follow from the flags unless a script was changed."""
        flat = {}
        for name, value in self.config.items():
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": value[key] for key in value}
            else:
                flat[name] = value
        return {
            name: value
            for name, value in flat.items()
            if name.partition(".")[0] not in IGNORED and not name.endswith("_path")
        }


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only."""

    settings: Mapping[str, Any]  # those that tell it from other groups
    runs: Sequence[Run]

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.settings.items()) or "all runs"

    def figure(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation (NaN of a single run); None if a run lacks it."""
        values = [run.figures.get(name) for run in self.runs]
        if None in values:
            return None
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(
            values
        ) > 1 else math.nan


# ---- reading -------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is not one, or the run is unfinished.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        with open(folder / "metrics.csv", newline="") as file:
            rows = [
                {name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)
            ]
        epochs = config["epochs"], config["class_names"], config["dataset"]
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: has no {Path(error.filename).name}, so no run with a finished epoch"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: config.json or metrics.csv cannot be read ({error})") from None
    if len(rows) < epochs[0]:
        raise UserError(f"{folder}: unfinished, {len(rows)} of {epochs[0]} epochs")
    best = max(rows, key=lambda row: np.nan_to_num(row["val_accuracy"], nan=-1))
    sources = {("val", "best"): best, ("val", "last"): rows[-1]}
    test = folder / "test_metrics.json"
    if test.exists():
        sources |= {("test", which): row for which, row in json.loads(test.read_text()).items()}
    figures = {}
    for name, key in FIGURES.items():
        for (split, which), row in sources.items():
            value = row.get(f"val_{key}" if split == "val" else key)
            if value is not None:
                figures[f"{split} {name} {which}"] = value
    return Run(folder, config, [row["val_accuracy"] for row in rows], figures)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by data and settings, in the order of their first runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.data, run.settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    firsts = [members[0] for members in groups.values()]
    settings = [{"data": run.data, **run.settings} for run in firsts]
    names = list(dict.fromkeys(name for each in settings for name in each))
    # What follows from flags comes last, and only where these do not tell two groups apart.
    follows = {name: "." in name or name == "parameters" for name in names}
    shown = []
    for name in sorted(names, key=follows.get):
        told_apart = {json.dumps([each.get(n) for n in shown]) for each in settings}
        if follows[name] and len(told_apart) == len(settings):
            break
        if len({json.dumps(each.get(name)) for each in settings}) > 1:
            shown.append(name)
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
        cells = [_percent(group.figure(name)) for name in names]
        rows.append([*map(str, group.settings.values()), str(len(group.runs)), *cells])
    return rows


def _figure_names(groups: Sequence[Group]) -> list[str]:
    every = {name for group in groups for run in group.runs for name in run.figures}
    order = [
        f"{s} {name} {w}" for s in ("val", "test") for name in FIGURES for w in ("best", "last")
    ]
    return [name for name in order if name in every]


def _percent(figure: tuple[float, float] | None) -> str:
    if figure is None:
        return "-"
    mean, deviation = (100 * value for value in figure)
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


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
    names = _figure_names(groups)
    header = [*groups[0].settings, "n", "seeds", "runs"]
    header += [f"{name} {part}" for name in names for part in ("mean", "std")]
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        for group in groups:
            pairs = [group.figure(name) or (math.nan, math.nan) for name in names]
            cells = [
                "" if math.isnan(value) else f"{value:.6g}" for pair in pairs for value in pair
            ]
            seeds = " ".join(str(run.config.get("seed")) for run in group.runs)
            folders = " ".join(str(run.folder) for run in group.runs)
            rows.writerow([*group.settings.values(), len(group.runs), seeds, folders, *cells])


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
        seeds = Counter(run.config.get("seed") for run in group.runs)
        for seed, count in seeds.items():
            if count > 1:
                print(
                    one_line(f"{group.label}: {count} runs of seed {seed}, which is no new sample")
                )
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
