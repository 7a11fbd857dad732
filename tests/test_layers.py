"""The rule of dependencies: scripts -> areas -> data -> core -> networks."""

import ast

from tests.conftest import REPOSITORY

AREAS = ("training", "demo", "heatmaps", "toy")  # of utils/; and the scripts that lie in it


def layer(module: str) -> tuple[int, str]:
    """A module's floor, and its room there, in which modules may import each other."""
    parts = module.split(".")
    if parts[0] == "networks":
        return 0, "networks"
    if parts[0] != "utils":
        return 4, module
    if parts[1] == "data":
        return 2, "data"
    if parts[1] in AREAS:
        return 3, parts[1]
    path = REPOSITORY / "utils" / f"{parts[1]}.py"
    if '__name__ == "__main__"' in path.read_text():
        return 3.5, module  # may use the areas, as recipes do, and be used by recipes
    return 1, "core"


def imports(path) -> set[str]:
    """All modules of the project that a file imports, `from utils import cli` as utils.cli."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_module = (REPOSITORY / f"{below.replace('.', '/')}.py").exists()
                found.add(below if is_module else node.module)
    return {name for name in found if name.split(".")[0] in ("networks", "utils")}


def test_a_folder_imports_only_what_stands_below_it():
    files = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("networks/*.py")]
    files += REPOSITORY.glob("utils/**/*.py")
    wrong = []
    for path in files:
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        if path.name == "__init__.py":
            continue
        floor, room = layer(module)
        for name in imports(path):
            other_floor, other_room = layer(name)
            if other_floor > floor or (other_floor == floor and other_room != room):
                wrong.append(f"{module} imports {name}")
    assert not wrong
    assert len(files) > 30
