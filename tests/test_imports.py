"""Imports point one way, and nobody pays for torch who does not need it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import avel

PACKAGE = Path(avel.__file__).parent

BASE = {"devices", "errors", "files", "reading", "text", "types"}
USE = {
    "losses",
    "metrics",
    "baselines",
    "models",
    "data",
    "worlds",
    "features",
    "checkpoint",
    "cml",
    "inference",
    "localization",
    "plots",
    "timeline",
}
USE |= BASE | {"config", "runs"}
COMMAND_LINE = {"cli_data", "console", "summaries", "verbs"}

#: What each room may import, besides itself and ``avel`` for its version.
MAY_IMPORT: dict[str, set[str]] = {
    "text": set(),
    "errors": {"text"},
    "devices": {"errors"},
    "files": {"errors", "text"},
    "reading": {"errors", "text", "types"},
    "memory": set(),
    "types": {"errors", "files"},
    "timeline": BASE,
    "config": BASE,
    "losses": BASE,
    "metrics": BASE,
    "baselines": BASE | {"data", "metrics"},
    "plots": BASE | {"timeline"},
    "models.layers": BASE | {"losses"},
    "models": BASE | {"losses", "models.layers"},
    "data": BASE | {"workers"},
    "worlds": BASE | {"data", "metrics", "workers"},
    "workers": BASE | {"memory"},
    "features": BASE | {"data", "memory", "workers"},
    "runs": BASE | {"config", "data"},
    "checkpoint": BASE | {"config", "data", "models", "runs"},
    "inference": BASE | {"data"},
    "cml": BASE | {"baselines", "data", "inference", "metrics"},
    "localization": USE,
    "zero_shot": BASE | {"features", "localization", "timeline"},
    "curves": BASE,
    "training": USE | {"curves", "memory"},
    "evaluation": USE,
    "comparison": USE | {"evaluation"},
    "web": BASE | {"plots", "timeline"},
    "present": BASE | {"features", "plots", "timeline", "web"},
    "demo": USE | {"workers", "training", "evaluation", "present", "web"},
    "console": BASE,
    "verbs": BASE | {"console"},
    "summaries": USE | {"comparison", "console", "evaluation", "present", "web"},
    "cli_data": BASE | COMMAND_LINE | {"data", "plots", "worlds"},
    "cli": USE | {"zero_shot", "training", "evaluation", "comparison", "present", "web", "demo"} | COMMAND_LINE,
    "__main__": {"cli"},
}

#: What a method imports when it is called, though it lies above: `Timeline.plot` needs pictures and video, for which
#: nobody pays who only reads timelines.
LATE: dict[str, set[str]] = {"timeline": {"present", "web"}}

LIGHT = ["avel.timeline"]
LIGHT += ["avel", "avel.types", "avel.errors", "avel.files", "avel.metrics", "avel.devices", "avel.config", "avel.cli"]
LIGHT += ["avel.data.table", "avel.data.store", "avel.worlds.rendered.render", "avel.features", "avel.features.extract"]
LIGHT += ["avel.zero_shot", "avel.baselines", "avel.features.recipe", "avel.features.estimate", "avel.features.sources"]


def room(module: str) -> str:
    """``avel.models.ccln`` -> ``models``; the package itself is the empty room."""
    inner = module.removeprefix("avel").removeprefix(".")
    return inner if inner == "models.layers" else inner.split(".")[0]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules of avel that a file imports, for types too, each with whether that is in a function."""
    known = modules()
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names if alias.name.split(".")[0] == "avel")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module and node.module.split(".")[0] == "avel":
                for alias in node.names:  # `from avel.models import layers` imports avel.models.layers
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in known else node.module, id(node) in late


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    inside = room(module)
    found = {(room(name), late) for name, late in imported(modules()[module])}
    targets = {name for name, _ in found} - {"", inside}
    if not inside:
        assert not targets, "the package itself imports nothing"
        return
    assert inside in MAY_IMPORT, f"say in {Path(__file__).name} what the new room {inside!r} may import"
    for name in LATE.get(inside, set()):
        assert (name, True) in found and (name, False) not in found, f"{module} imports {name}, and not in functions"
        targets.remove(name)
    assert targets <= MAY_IMPORT[inside], f"{module} imports {sorted(targets - MAY_IMPORT[inside])}"


def test_the_table_itself_has_no_circle() -> None:
    """Every room can be placed above all that it may import."""
    placed: set[str] = set()
    while placed != set(MAY_IMPORT):
        ready = {name for name, below in MAY_IMPORT.items() if below - {name} <= placed} - placed
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - placed)}"
        placed |= ready


def test_no_module_imports_itself_through_others() -> None:
    """The table speaks of rooms; inside a room, too, every module can be placed above all that it imports."""
    below = {
        module: {name for name, late in imported(path) if not late and name != "avel"}
        for module, path in modules().items()
    }
    TopologicalSorter(below).prepare()  # graphlib.CycleError names the circle


def test_the_light_modules_do_not_import_torch() -> None:
    code = f"import importlib, sys\nfor name in {LIGHT}:\n    importlib.import_module(name)\n"
    code += "    assert 'torch' not in sys.modules, name"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", avel.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(avel, name) is not None and name in dir(avel)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = avel.colour
