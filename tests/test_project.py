"""The files around the package agree with each other."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scamac_scale import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;@/]+)", line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if match is None] == []
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]]


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pinned = pins()
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_everything_that_is_installed_for_us_is_pinned() -> None:
    pinned, found, waiting = pins(), set(), ["scamac-scale"]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # an extra that this environment is without
        wanted = [Requirement(text) for text in needed]
        extras = {"extra": "cpu"}
        waiting += [canonicalize_name(item.name) for item in wanted if not item.marker or item.marker.evaluate(extras)]
    # the packages of CUDA are pinned by torch itself
    missing = {name for name in found - set(pinned) if not re.match(r"nvidia|cuda|triton", name)}
    assert missing == {"scamac-scale"}


def test_torch_is_pinned_to_the_version_that_was_tried() -> None:
    assert pins()["torch"] == "2.13.0"


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == __version__


def test_the_two_commands_of_the_readme_are_targets_of_make() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("make demo") < text.index("make test")
    for target in ("demo", "test", "lint", "slow", "coverage"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_make_without_a_python_says_what_to_do(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    done = subprocess.run(["make", "PYTHON=", "test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no Python 3.11 or later" in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("name", [".ci/run"])
def test_scripts_are_executable_and_parse(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/walk.md", "docs/method.md"])
def test_every_module_that_a_page_names_is_there(page: str) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / page).read_text()))
    places = [
        ROOT,
        ROOT / "tests",
        ROOT / "scamac_scale",
        *(path for path in (ROOT / "scamac_scale").rglob("*") if path.is_dir()),
    ]
    assert named
    assert [name for name in sorted(named) if not any((place / name).is_file() for place in places)] == []
