"""The README's commands work as they stand, and its files and pictures are there."""

import re
import shutil
from glob import glob
from pathlib import Path

import pytest

import rafdb

REPOSITORY = Path(rafdb.__file__).parent
README = (REPOSITORY / "README.md").read_text()

# Commands that cannot run in a test, and why; each stands in the README.
NOT_RUN = {
    "pip install -r requirements.txt": "done before the tests",
    "python -m pytest": "runs this",
    "python rafdb.py": "needs RAF-DB",
    "python rafdb.py --resume": "needs RAF-DB",
    "python affectnet.py --epochs 10": "needs AffectNet",
    "python affectnet.py --epochs 10 --num_class 7": "needs AffectNet",
    "python affectnet.py --aff_path my_data --pretrained imagenet": "needs data and the network",
    "python utils/convert_affectnet.py --aff_path datasets/AffectNet": "needs AffectNet",
    "python utils/check_data.py datasets/raf-basic": "needs RAF-DB",
    "python affectnet.py --evaluate --checkpoint models/affecnet8_epoch5_acc0.6209.pth": (
        "needs AffectNet and the released weights"
    ),
    "torchrun --nproc_per_node=4 rafdb.py": "needs RAF-DB and GPUs; see test_distributed.py",
    "python tests/benchmark.py": "takes a quarter of an hour",
    "python tests/torture.py --kills 50": "has a short form in test_torture.py",
}


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments; continued lines as one."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def test_what_is_not_run_stands_in_the_readme():
    assert set(NOT_RUN) <= set(commands())


def test_first_run_ends_as_the_readme_shows(toy_output):
    """But for figures."""

    def shape(text: str) -> list[str]:
        lines = (" ".join(line.removesuffix("...").split()) for line in text.splitlines())
        return [re.sub(r"[0-9]+(\.[0-9]+)?", "0", line) for line in lines]

    shown = re.search(r"```\n(epoch.*?)```", README, re.DOTALL)[1]
    printed = shape(toy_output)[-len(shape(shown)) :]
    for expected, line in zip(shape(shown), printed, strict=True):
        assert line.startswith(expected)


@pytest.mark.parametrize(
    "command", [c for c in commands() if c not in NOT_RUN and c != "python rafdb.py --toy"]
)
def test_command(command, clone, toy_run, run_in_clone, photo):
    if "photo.jpg" in command:
        shutil.copy(photo, clone / "photo.jpg")
    assert run_in_clone(command)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_linked_files_are_there(path):
    assert (REPOSITORY / path).is_file()


def test_the_map_names_every_module():
    """And no other. A row names a folder once, before the first of its files."""
    section = README.split("## Map")[1].split("\n## ")[0]
    named = set()
    for cell in re.findall(r"^\| (.+?) \|", section, re.MULTILINE):
        folder = ""
        for given, name in re.findall(r"`((?:\w+/)*)(\w+\.py)`", cell):
            folder = given or folder
            named.add(folder + name)
    patterns = ("*.py", "utils/*.py", "networks/*.py")
    modules = [path for pattern in patterns for path in glob(pattern, root_dir=REPOSITORY)]
    assert named == {path for path in modules if not path.endswith("__init__.py")}
