"""Who may import whom, and how long a module may be: the drawing of CONTRIBUTING.md as a table; what tests may share."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "scamac_scale"
MAX_LINES = 450
MAX_BODY_LINES = 60
MAX_PARAMETERS = 7

PLAIN = {
    "errors",
    "world",
    "config",
    "arrays",
    "durable",
    "signals",
    "genes",
    "progress",
    "randomness",
    "csr",
    "values",
    "buffer",
}
"""Plain data, names and files: everybody may import them, but the mathematics, which sees the errors only."""

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "arrays": set(),
    "progress": set(),
    "signals": set(),
    "durable": {"errors", "arrays", "world", "signals", "reduce"},
    "randomness": {"errors", "arrays"},
    "world": {"errors"},
    "ranks": {"errors", "world"},
    "config": {"errors"},
    "genes": {"errors", "arrays"},
    "csr": {"errors", "arrays"},
    "values": {"errors", "arrays"},
    "buffer": {"errors", "arrays", "csr", "values"},
    # mathematics: tensors and arrays, nothing else
    "ops": {"errors"},
    "losses": {"errors", "ops"},
    "metrics": {"errors"},
    # model
    "nn": PLAIN | {"ops"},
    "checkpoint": PLAIN | {"nn", "ops"},
    # data
    "store": PLAIN,
    "ingestion": PLAIN | {"store"},
    "simulation": PLAIN,
    "loader": PLAIN,
    "sources": PLAIN | {"store", "ingestion", "loader"},
    # where the two sides meet
    "links": {"errors", "world", "ranks", "signals"},
    "reduce": {"errors", "world", "links"},
    "sweep": PLAIN | {"loader", "ops", "nn", "links", "reduce"},
    "train": PLAIN | {"links", "loader", "sources", "ops", "nn", "checkpoint", "sweep", "reduce", "losses", "metrics"},
    "infer": PLAIN | {"links", "loader", "sources", "ops", "nn", "checkpoint", "sweep", "reduce", "store"},
    # what users call
    "inspection": PLAIN | {"store", "ingestion", "checkpoint", "train", "infer"},
    "api": PLAIN
    | {
        "ranks",
        "links",
        "reduce",
        "ingestion",
        "simulation",
        "sources",
        "checkpoint",
        "train",
        "infer",
        "metrics",
        "inspection",
        "store",
    },
    "tl": PLAIN | {"api", "infer"},
    "demonstration": PLAIN | {"api", "simulation", "train"},
    "launcher": {"errors", "signals"},
    "cli": PLAIN | {"api", "launcher", "ranks", "demonstration", "__init__"},
    "__init__": {"api", "tl", "config"},
    "__main__": {"cli"},
}
"""``A: {B, ...}``: A may import B. A new arrow is a decision, made here."""

HOMES = {
    "lightning": {"train"},
    "jsonargparse": {"cli"},
    "igraph": {"train"},
    "safetensors": {"checkpoint"},
    "torch": set(ARROWS) - {"store", "ingestion", "simulation", "sources", "inspection", "demonstration", "cli", *PLAIN}
    | {"randomness"},
}
"""The only parts that may import these packages."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every import with its line: at the top, inside functions, under TYPE_CHECKING, and by import_module."""
    for node in ast.walk(ast.parse(path.read_text())):
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
    return {"support", "contracts"} | ({"parity"} if path.parent == TESTS / "parity" else set())


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
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        n_parameters = len([name for name in names if name.arg not in ("self", "cls")])
        is_kernel = any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)  # takes arrays only
        body = node.body[1:] if ast.get_docstring(node) else node.body
        n_lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert n_parameters <= MAX_PARAMETERS or is_kernel, f"{node.name} has {n_parameters} parameters"
        assert n_lines <= MAX_BODY_LINES, f"{node.name} has {n_lines} lines below its docstring"
