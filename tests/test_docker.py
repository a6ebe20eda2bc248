"""The Dockerfile without docker: its rules, and its install steps and entrypoint run in an empty environment.

`make image-test` builds the image itself, and runs it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VENV, TOOLS, SOURCES = "/opt/venv", "/opt/tools", "/src"
"""Where the Dockerfile puts its environment, what fills it, and the sources."""


def instructions() -> list[tuple[str, str]]:
    """Every instruction with its argument, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of one stage."""
    found: list[tuple[str, str]] = []
    is_inside = False
    for word, rest in instructions():
        if word == "FROM":
            is_inside = rest.endswith(f" AS {name}")
        elif is_inside:
            found.append((word, rest))
    return found


def last(name: str, word: str) -> str:
    return [rest for found, rest in stage(name) if found == word][-1]


def test_the_image_runs_without_root_and_holds_no_build_tools() -> None:
    assert last("run", "USER") == "1000"
    assert [rest for word, rest in stage("run") if word == "COPY"] == [f"--from=build {VENV} {VENV}"]
    installs = [
        rest for word, rest in stage("build") if word == "RUN" and re.search(r"\bpip (install|wheel|--python)", rest)
    ]
    assert installs
    assert all("--no-cache-dir" in rest for rest in installs)
    assert any(f"venv --without-pip {VENV}" in rest for _, rest in stage("build"))


def test_the_image_says_what_it_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in [rest for word, rest in stage("run") if word == "ARG"]
    for name, value in (("title", project["name"]), ("version", "${VERSION}"), ("licenses", project["license"])):
        assert f'org.opencontainers.image.{name}="{value}"' in last("run", "LABEL")


def test_no_setting_of_pip_is_kept_in_the_image() -> None:
    names = {rest.partition("=")[0] for word, rest in instructions() if word in ("ARG", "ENV")}
    assert not [name for name in names if name.startswith("PIP")]
    reaching = [rest for word, rest in stage("build") if word == "RUN" and "install" in rest]
    assert all(rest.startswith("--mount=type=secret,id=pip.conf,target=/etc/pip.conf ") for rest in reaching)


def test_the_image_is_ready_for_cuda() -> None:
    names = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    assert {"PYTHON_IMAGE", "EXTRAS", "TORCH_INDEX"} <= names
    assert "NVIDIA_VISIBLE_DEVICES=all" in last("run", "ENV")


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for word, rest in stage("build") if word == "COPY" for source in rest.split()[:-1]}
    assert copied == allowed


@pytest.mark.long
@pytest.mark.slow  # installs torch and the rest
def test_the_wheel_installs_into_an_empty_environment_and_runs_the_demo(tmp_path: Path) -> None:
    work, venv = tmp_path / "src", tmp_path / "venv"
    places = {VENV: venv, TOOLS: tmp_path / "tools", SOURCES: work}
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    python = Path(sys.executable).resolve().parent  # the interpreter of the base image
    environment["PATH"] = f"{python}:{environment['PATH']}"
    for word, rest in stage("build"):
        text = re.sub(r"^--mount=\S+ ", "", rest)
        for place, folder in places.items():
            text = re.sub(rf"{place}\b", str(folder), text)
        if word == "ARG":
            name, _, value = text.partition("=")
            environment[name] = value
        elif word == "ENV":
            for entry in text.split():
                name, _, value = entry.partition("=")
                environment[name] = value.replace("$PATH", environment["PATH"])
        elif word == "COPY":
            *sources, target = text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, work / target, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, work / target)
        elif word == "RUN":
            run(["bash", "-c", text], work, environment)
    environment["PATH"] = f"{venv / 'bin'}:{environment['PATH']}"
    entrypoint, command = json.loads(last("run", "ENTRYPOINT")), json.loads(last("run", "CMD"))
    data = tmp_path / "data"  # away from the sources
    data.mkdir()
    assert "usage: scamac-scale" in run([*entrypoint, *command], data, environment)
    assert "700" in run([*entrypoint, "inspect", str(work / "demo" / "pbmc.result.zarr")], data, environment)
    assert [*(venv / "kernels").rglob("*.nbc")]
    assert shutil.which("scamac-scale", path=environment["PATH"]) == str(venv / "bin" / "scamac-scale")
    shutil.rmtree(venv)  # two gigabytes, which pytest would keep


def run(argv: list[str], folder: Path, environment: dict[str, str]) -> str:
    program = shutil.which(argv[0], path=environment["PATH"])
    assert program is not None
    done = subprocess.run(
        [program, *argv[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout
