"""Who may import whom, and how long a module may be: the drawing of CONTRIBUTING.md as a table; what tests may share."""

import ast
from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "scamac_scale"
MAX_LINES = 450
MAX_BODY_LINES = 60
MAX_PARAMETERS = 7
MAX_OPTIONS = 15
"""Of a function that users call, which must be given by name: one word each, as help() shows them; elsewhere they become a dataclass."""
FOR_USERS = {
    "api/clustering.py",
    "api/files.py",
    "api/marker_genes.py",
    "api/model.py",
    "api/refining.py",
    "api/reporting.py",
    "simulation/resampled.py",
    "tl.py",
}
MAX_METHODS = 15
MAX_FLAT = 15

BOTH_SIDES = {
    "cells",
    "config",
    "durable",
    "errors",
    "fitted",
    "loader",
    "nn",
    "ops",
    "progress",
    "ranks",
    "sources",
    "sweep",
}
"""Data and model, which meet in training and inference."""

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "host": {"errors"},
    "progress": {"host"},
    # plain data, files and processes
    "config": {"errors"},
    "cells": {"errors", "host"},
    "ranks": {"errors"},
    "randomness": set(),
    "durable": {"cells", "errors", "ranks"},
    "remote": {"durable", "errors", "host"},
    # mathematics: tensors and arrays, nothing else; of the host, the way to compile
    "ops": {"errors", "host"},
    "losses": {"errors", "ops"},
    "metrics": {"errors"},
    # model
    "nn": {"config", "errors", "ops"},
    "fitted": {"cells", "config", "durable", "errors", "nn", "ops", "remote"},
    # data
    "workers": {"__init__", "durable", "errors"},
    "store": {"cells", "config", "durable", "errors", "progress", "randomness", "remote"},
    "ingestion": {"cells", "config", "durable", "errors", "host", "progress", "remote", "store", "workers"},
    "simulation": {"durable", "errors", "host", "ingestion", "progress", "randomness"},
    "loader": {"cells", "config", "errors", "randomness", "ranks"},
    "sources": {"cells", "config", "durable", "errors", "ingestion", "loader", "progress", "remote", "store"},
    # where the two sides meet
    "sweep": {"durable", "loader", "progress", "ranks"},
    "train": BOTH_SIDES | {"host", "losses", "randomness", "remote"},
    "infer": BOTH_SIDES | {"host", "randomness", "remote", "store", "workers"},
    # after a fit
    "subclusters": {
        "cells",
        "config",
        "durable",
        "errors",
        "fitted",
        "host",
        "infer",
        "ingestion",
        "progress",
        "randomness",
        "store",
    },
    # what users call
    "inspection": {
        "cells",
        "durable",
        "errors",
        "fitted",
        "host",
        "infer",
        "ingestion",
        "progress",
        "remote",
        "store",
        "train",
    },
    "evaluation": {"cells", "errors", "host", "ingestion", "metrics", "progress", "randomness"},
    "report_page": {
        "cells",
        "config",
        "durable",
        "errors",
        "evaluation",
        "fitted",
        "host",
        "infer",
        "ingestion",
        "metrics",
        "ops",
        "progress",
        "randomness",
        "remote",
        "train",
    },
    "marker_genes": {
        "cells",
        "config",
        "durable",
        "errors",
        "fitted",
        "host",
        "infer",
        "ingestion",
        "randomness",
        "remote",
        "workers",
    },
    "api": {
        "config",
        "durable",
        "errors",
        "evaluation",
        "fitted",
        "infer",
        "ingestion",
        "inspection",
        "marker_genes",
        "progress",
        "ranks",
        "remote",
    }
    | {"cells", "report_page", "simulation", "sources", "subclusters", "train"},
    "tl": {"api", "config", "infer", "marker_genes"},
    "demonstration": {"api", "config", "durable", "errors", "host", "simulation"},
    "cli": {"__init__", "api", "config", "demonstration", "durable", "errors", "host", "progress", "ranks", "remote"},
    "__init__": {"api", "config", "progress", "tl"},
    "__main__": {"cli"},
}
"""``A: {B, ...}``: A imports B. A new arrow is a decision, made here."""

HOMES = {
    "dask": {"workers"},
    "distributed": {"workers"},
    "lightning": {"train"},
    "jsonargparse": {"cli"},
    "igraph": {"train"},
    "safetensors": {"fitted"},
    "obstore": {"remote"},
    "matplotlib": {"report_page"},
    "umap": {"report_page"},
    "torch": {"fitted", "infer", "loader", "losses", "metrics", "nn", "ops", "randomness", "ranks", "sweep", "train"}
    | {"api", "durable"},
}
"""The only parts that may import these packages."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def imported(path: Path) -> list[tuple[int, str]]:
    """Every import with its line: at the top, inside functions, under TYPE_CHECKING, and by import_module."""
    return list(_imported(path))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def target_of(name: str) -> str | None:
    """The part of the package that an import names, if any."""
    package, _, rest = name.partition(".")
    if package != PACKAGE.name:
        return None
    first = rest.partition(".")[0]
    is_part = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return first if first and is_part else "__init__"


def test_every_part_stands_in_the_table() -> None:
    assert {part_of(path) for path in modules()} == set(ARROWS)


@pytest.mark.parametrize("part", sorted(ARROWS))
def test_a_part_imports_only_what_the_table_allows(part: str) -> None:
    foreign = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}"
        for path in modules()
        if part_of(path) == part
        for line, name in imported(path)
        if (target := target_of(name)) not in {None, part, *ARROWS[part]}
    ]
    assert foreign == []


@pytest.mark.parametrize("package", sorted(HOMES))
def test_a_package_is_imported_only_in_its_homes(package: str) -> None:
    foreign = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in modules()
        if part_of(path) not in HOMES[package]
        for line, name in imported(path)
        if name.partition(".")[0] == package
    ]
    assert foreign == []


def test_lightning_has_one_module() -> None:
    homes = {path.stem for path in modules() if any(name.startswith("lightning") for _, name in imported(path))}
    assert homes == {"placement"}


def test_every_arrow_of_the_table_is_used() -> None:
    used = {
        (part_of(path), target)
        for path in modules()
        for _, name in imported(path)
        if (target := target_of(name)) not in {None, part_of(path)}
    }
    assert used == {(part, target) for part, targets in ARROWS.items() for target in targets}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Those that import for types only, or in a function, too."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules()}
    left = {
        name: {home for _, found in imported(path) if (home := _module_of(found, names)) != name}
        for name, path in names.items()
    }
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def _module_of(name: str, names: Container[str]) -> str:
    """The module of the package that an import names; empty for others."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


def test_few_modules_lie_flat_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FLAT


def _is_method(item: ast.stmt) -> bool:
    """Neither a property nor one that Python calls."""
    if not isinstance(item, ast.FunctionDef) or (item.name.startswith("__") and item.name.endswith("__")):
        return False
    return not any("property" in ast.unparse(decorator) for decorator in item.decorator_list)


def test_a_class_has_few_methods() -> None:
    crowded = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and sum(map(_is_method, node.body)) > MAX_METHODS
    ]
    assert crowded == []


def test_no_call_hides_its_arguments_in_a_dict_of_any() -> None:
    """A call of ours with ``**name``, where the name was made as a dict of anything, is not seen by mypy."""
    hidden = []
    for path in modules():
        tree = parsed(path)
        loose = {
            ast.unparse(node.target)
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "dict[str, Any]"
        }
        hidden += [
            f"{path.relative_to(PACKAGE)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg is None and ast.unparse(keyword.value) in loose
        ]
    assert [place for place in hidden if not place.startswith("cli/")] == []  # argparse takes anything


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    while remaining := {part: needs - done for part, needs in ARROWS.items() if part not in done}:
        free = {part for part, needs in remaining.items() if needs <= {"__init__"}}
        assert free, f"a circle among {sorted(remaining)}"
        done |= free


def test_an_arrow_that_is_not_in_the_table_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import importlib\n"
        "def f():\n"
        "    from scamac_scale.train.fit import fit\n"
        "    from scamac_scale import losses\n"
        "    importlib.import_module('scamac_scale.nn')\n"
    )
    assert [target_of(name) for _, name in imported(module)] == [None, "train", "losses", "nn"]


def shared_home(path: Path) -> set[str]:
    """Folders of ``tests`` whose modules a module of the tests may import."""
    return {"support", "contracts"} | (
        {path.parent.name} if path.parent in (TESTS / "parity", TESTS / "fuzz", TESTS / "image") else set()
    )


def test_tests_share_through_the_support_package_only() -> None:
    foreign = []
    for path in sorted(TESTS.rglob("*.py")):
        for line, name in imported(path):
            root, folder, *rest = [*name.split("."), ""]
            is_shared = folder in shared_home(path) and not rest[0].startswith(("test_", "conftest"))
            if root == "tests" and not is_shared:
                foreign.append(f"{path.relative_to(TESTS)}:{line} imports {name}")
    assert foreign == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_to_the_limits(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MAX_LINES
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        n_parameters = len([name for name in names if name.arg not in ("self", "cls")])
        n_unnamed = n_parameters - len(arguments.kwonlyargs)
        is_for_users = str(path.relative_to(PACKAGE)) in FOR_USERS and not node.name.startswith("_") and n_unnamed <= 2
        is_kernel = any("compiled" in ast.unparse(decorator) for decorator in node.decorator_list)  # takes arrays only
        body = node.body[1:] if ast.get_docstring(node) else node.body
        n_lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        most = MAX_OPTIONS if is_for_users else MAX_PARAMETERS
        assert n_parameters <= most or is_kernel, f"{node.name} has {n_parameters} parameters"
        assert n_lines <= MAX_BODY_LINES, f"{node.name} has {n_lines} lines below its docstring"
