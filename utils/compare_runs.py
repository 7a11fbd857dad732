"""Compare training runs: a row for each setting, with mean and standard deviation over its seeds.

    python utils/compare_runs.py models/*/

groups the runs that differ only in the seed, prints the table, and writes it to comparison.csv,
comparison.md and comparison.tex (for LaTeX's booktabs), with the curves in curves.png, in a folder.
Accuracies are of the validation images: of the best epoch, which was chosen on them, and of the
last one. Test accuracies are shown where a run has test images of its own. Unfinished runs are
named and left out.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

if __name__ == "__main__":  # run as a file, from anywhere: `utils` lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import MAY_CHANGE, Parser
from utils.errors import UserError, exit_on_user_error, writing
from utils.training.plots import plot_comparison

# Entries of config.json, besides paths, that do not change a run's scores.
IGNORED = {"seed", "images", "processes", "device_name", "python", "torch", "torchvision"}
IGNORED |= {"command", "git_commit", "started", *MAY_CHANGE} - {"epochs"}
# Those that usually follow from others, as do the settings of optimizer and schedule.
FOLLOWING = ("parameters", "class_names")
# Those that say which data a run was trained on.
DATA = ("dataset", "toy", "data_fingerprint", "class_names")
# Name of a score, and its key in metrics.csv (after val_) and in test_metrics.json.
SCORES = {"accuracy": "accuracy", "balanced": "balanced_accuracy", "macro-F1": "macro_f1"}


class Run(NamedTuple):
    folder: Path
    seed: int | None
    settings: dict[str, str]  # all that changes its scores, but the seed
    accuracies: pd.Series  # on the validation images, by epoch
    scores: dict[str, float]  # "val accuracy best" -> a fraction


def read_run(folder: Path) -> Run:
    """Read a run's folder; a UserError where it holds no finished run."""
    try:
        config = json.loads((folder / "config.json").read_text())
        history = pd.read_csv(folder / "metrics.csv", index_col="epoch")
        if len(history) < config["epochs"]:
            raise ValueError(f"unfinished, {len(history)} of {config['epochs']} epochs")
        (entries,) = pd.json_normalize(config).to_dict("records")  # such as optimizer_settings.lr
        settings = {
            name: "-" if value is None else str(value)
            for name, value in entries.items()
            if name.split(".")[0] not in IGNORED and not name.endswith("_path")
        }
        history = history.filter(regex="^val_").astype(float)
        history.columns = history.columns.str.removeprefix("val_")
        best = history["accuracy"].fillna(-1).idxmax()
        splits = {"val": {"best": history.loc[best], "last": history.iloc[-1]}}
        test = folder / "test_metrics.json"
        if test.exists():
            splits["test"] = json.loads(test.read_text())
        scores = {
            f"{split} {name} {epoch}": float(row[key])
            for split, epochs in splits.items()
            for name, key in SCORES.items()
            for epoch, row in epochs.items()
            if key in row
        }
        return Run(folder, config.get("seed"), settings, history["accuracy"], scores)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: holds no finished run ({error})") from None


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that tell the runs apart, without those that follow from others, such
    as the number of parameters from `num_head`."""

    def count(names: Iterable[str]) -> int:
        return len({tuple(run.settings.get(name, "-") for name in names) for run in runs})

    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if count([name]) > 1]
    following = [name for name in differing if "." in name or name in FOLLOWING]
    shown = [name for name in differing if name not in following]
    for name in following:
        if count([*shown, name]) > count(shown):  # it does not follow from those before it
            shown.append(name)
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    # ---- flags ----
    parser = Parser(usage="%(prog)s FOLDER ... [flags]", description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="of runs, such as models/*/")
    add("--output", type=Path, default="comparison", metavar="DIR", help="folder of the results")
    add("--figures", choices=("png", "pdf", "svg"), default="png", help="format of the figure")
    args = parser.parse_args(argv)

    # ---- runs, grouped ----
    runs = []
    for folder in dict.fromkeys(args.folders):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            print(f"left out: {error}")
    if not runs:
        raise UserError(
            "none of these folders holds a finished run; give folders such as models/*/"
        )
    names = differing_settings(runs)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(name, "-") for name in names), []).append(run)

    # ---- means and deviations ----
    rows, numbers, curves = [], [], []
    for values, members in groups.items():
        settings = dict(zip(names, values, strict=True))
        label = ", ".join(f"{name} {value}" for name, value in settings.items()) or "all runs"
        seeds = [str(run.seed) for run in members]
        if len(set(seeds)) < len(seeds):
            print(f"{label}: seeds {' '.join(seeds)}; a repeated seed is no new sample")
        scores = pd.DataFrame([run.scores for run in members])
        # NaN where a run lacks the score; a single run has no deviation.
        mean, deviation = scores.mean(skipna=False), scores.std(skipna=False)
        row = {**settings, "n": len(members)}
        folders = " ".join(str(run.folder) for run in members)
        exact = {**row, "seeds": " ".join(seeds), "runs": folders}
        for name in scores:
            row[name] = _percent(mean[name], deviation[name])
            exact[f"{name} mean"], exact[f"{name} std"] = mean[name], deviation[name]
        rows.append(row)
        numbers.append(exact)
        curves.append((label, pd.DataFrame([run.accuracies for run in members]).T))
    table = pd.DataFrame(rows).fillna("-")

    # ---- output ----
    # The three words of a score's name stand below each other.
    header = pd.MultiIndex.from_tuples([(["", ""] + name.split(" "))[-3:] for name in table])
    print(table.set_axis(header, axis=1).to_string(index=False))
    if any(name in names for name in DATA):
        print("These runs are on different data: compare only rows of the same data.")
    lines = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    markdown = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    latex = table.to_latex(index=False, escape=True, column_format="r" * table.shape[1])
    output, figure = args.output, f"curves.{args.figures}"
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        options = {"index": False, "float_format": "%.6g", "lineterminator": "\n"}
        pd.DataFrame(numbers).to_csv(output / "comparison.csv", **options)
        (output / "comparison.md").write_text(markdown, encoding="utf-8")
        (output / "comparison.tex").write_text(latex.replace("±", r"$\pm$"), encoding="utf-8")
    plot_comparison(curves, output / figure)
    print(f"files in {output}/: comparison.csv comparison.md comparison.tex {figure}")


def _percent(mean: float, deviation: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{100 * mean:.2f}" + ("" if pd.isna(deviation) else f" ± {100 * deviation:.2f}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
