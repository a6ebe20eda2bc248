"""What builds images and runs containers: docker, podman or buildah, by the same few calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

IMAGE = "scamac-scale:test"
USER = 1000
ROOT = Path(__file__).parents[2]
DEBIAN = "bookworm"
"""Has Python 3.11."""


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    text: str


class Running:
    """A command in a container that runs."""

    def __init__(self, argv: list[str], kill: list[str], after: list[str]) -> None:
        self._kill, self._after = kill, after
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kill what runs in the container by SIGKILL."""
        if self._kill:
            subprocess.run(self._kill, check=True, capture_output=True)
        else:
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> Done:
        text, _ = self._process.communicate()
        if self._after:
            said(self._after)
        return Done(self._process.returncode, text)


@dataclass
class Engine:
    """One program, with the options that this machine needs.

    Attributes
    ----------
    program
        docker, podman or buildah, and options that go before the command.
    build_options, run_options
        More options of these commands.
    """

    program: list[str]
    build_options: list[str] = field(default_factory=list)
    run_options: list[str] = field(default_factory=list)

    @property
    def is_buildah(self) -> bool:
        return Path(self.program[0]).name == "buildah"

    @property
    def root(self) -> str:
        """What keeps the user from writing outside of the mounted folder."""
        return "that belongs to another user" if self.is_buildah else "that is read-only"

    def build(self, folder: Path, *options: str) -> Done:
        return said([*self.program, "build", *self.build_options, *options, str(folder)])

    def start(
        self, command: list[str], data: Path, environ: dict[str, str], entrypoint: str = "scamac-scale"
    ) -> Running:
        """Run a command of the image as user 1000, on a root that it cannot write, with a folder at /data."""
        variables = [f"--env={name}={value}" for name, value in environ.items()]
        mount = f"--volume={data}:/data"
        if self.is_buildah:
            made = said([*self.program, "from", IMAGE])
            assert made.code == 0, made.text
            name = made.text.split()[-1]
            options = [*self.run_options, mount, f"--user={USER}", *variables, name, "--", entrypoint]
            return Running([*self.program, "run", *options, *command], [], [*self.program, "rm", name])
        name = f"scamac-test-{os.getpid()}-{next(_NUMBERS)}"
        options = ["--rm", f"--name={name}", "--read-only", "--tmpfs=/tmp", "--network=host", f"--user={USER}:{USER}"]
        options += [*self.run_options, mount, *variables, f"--entrypoint={entrypoint}", IMAGE]
        kill = [*self.program, "kill", "--signal=KILL", name]
        return Running([*self.program, "run", *options, *command], kill, [])

    def size_bytes(self) -> int:
        """Of the image, unpacked."""
        if self.is_buildah:
            found = said([*self.program, "images", "--json", IMAGE]).text
            return _bytes_of(str(json.loads(found)[0]["size"]))
        return int(said([*self.program, "image", "inspect", "--format={{.Size}}", IMAGE]).text)

    def description(self) -> str:
        """All that the image says of itself: labels, variables, history."""
        word = ["inspect", "--type=image"] if self.is_buildah else ["image", "inspect"]
        return said([*self.program, *word, IMAGE]).text


_NUMBERS = count()


def _bytes_of(text: str) -> int:
    number, unit = text.split()
    return int(float(number) * {"MB": 10**6, "GB": 10**9}[unit])


def said(argv: list[str]) -> Done:
    """Run a program of this machine."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return Done(done.returncode, done.stdout)


def found() -> list[str]:
    """The first of docker, podman and buildah that answers."""
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name) and said([name, "info"]).code == 0:
            return [name]
    raise SystemExit(
        "error: none of docker, podman and buildah is here and answers; install one (Debian: apt-get install podman)"
    )


def debian(engine: Engine) -> str:
    """Make an image with nothing but Debian and its Python, for machines that reach no registry of images; gives its name."""
    name = "localhost/scamac-scale-base:test"
    with tempfile.TemporaryDirectory() as folder:
        packages = "--include=ca-certificates,python3,python3-venv"
        made = said(["debootstrap", "--variant=minbase", packages, DEBIAN, f"{folder}/root"])
        assert made.code == 0, made.text
        left_out = [
            f"--exclude=./{path}"
            for path in (
                "var/cache/apt/*",
                "var/lib/apt/lists/*",
                "usr/share/doc/*",
                "usr/share/man/*",
                "usr/share/locale/*",
                "dev/*",
            )
        ]
        packed = said(["tar", "-C", f"{folder}/root", *left_out, "-cf", f"{folder}/root.tar", "."])
        assert packed.code == 0, packed.text
        shutil.rmtree(f"{folder}/root")
        Path(folder, "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        built = engine.build(Path(folder), "-t", name)
        assert built.code == 0, built.text
    return name
