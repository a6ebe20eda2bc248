"""Runs a script of benchmarks/peers in the environment of the peers, as a child process."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import Cost

if TYPE_CHECKING:
    from collections.abc import Collection

SCRIPTS = Path(__file__).resolve().parents[1] / "peers"
PACKAGES = {
    "harmonypy": "2.1.0",
    "scvi-tools": "1.4.2",
    "magic-impute": "3.0.0",
    "bbknn": "1.6.0",
    "scib-metrics": "0.5.10",
    "scanpy": "1.11.5",
    "igraph": "1.0.0",
}
"""What was run; other versions are run, too, and recorded."""


class PeerError(RuntimeError):
    """A peer is missing or has failed."""


def install_line(packages: Collection[str]) -> str:
    """How to make the environment."""
    return "pip install " + " ".join(f"'{name}=={PACKAGES[name]}'" for name in packages)


@dataclass(frozen=True)
class Peers:
    """The environment of the peers.

    Attributes
    ----------
    python
        Its interpreter, or None where there is none.
    threads
        Of every library; None leaves that to them.
    """

    python: Path | None
    threads: int | None = None

    def check(self, packages: Collection[str]) -> None:
        """Raise a PeerError that says what to do, unless all packages are there."""
        if not packages:
            return
        needed = f"make an environment of its own ({install_line(packages)}), and name its interpreter by --peer-python"
        if self.python is None:
            raise PeerError(f"These methods need {', '.join(packages)}, which this program does not bring: {needed}.")
        code = (
            "import sys; from importlib.metadata import distributions; "
            "found = {d.metadata['Name'].lower().replace('_', '-') for d in distributions()}; "
            "print(*[name for name in sys.argv[1:] if name not in found])"
        )
        try:
            done = subprocess.run(
                [self.python, "-c", code, *packages], capture_output=True, text=True, check=True, timeout=120
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PeerError(f"--peer-python {self.python} does not run ({error}); {needed}.") from None
        if missing := done.stdout.split():
            raise PeerError(f"--peer-python {self.python} lacks {', '.join(missing)}; {needed}.")

    def call(
        self, script: str, arrays: dict[str, Any], settings: dict[str, Any]
    ) -> tuple[dict[str, Any], Cost, dict[str, Any]]:
        """Run one script.

        Parameters
        ----------
        script
            Its name in benchmarks/peers, without .py.
        arrays, settings
            What it takes.

        Returns
        -------
        tuple
            Its arrays, what its work took in the child (imports left out of the times, not of the peak), and what
            else it tells.
        """
        if self.python is None:
            raise PeerError(f"{script} needs --peer-python.")
        return call_script(self.python, SCRIPTS / f"{script}.py", arrays, {"threads": self.threads, **settings})


def call_script(
    python: Path, script: Path, arrays: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], Cost, dict[str, Any]]:
    """Run a script that uses ``exchange.serve`` by an interpreter; see `Peers.call`."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)
        done = subprocess.run(
            [python, script, source, target, json.dumps(settings)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not target.exists():
            said = done.stderr.strip().splitlines()
            raise PeerError(f"{script.stem} ended with {done.returncode}: {said[-1] if said else 'no message'}")
        with np.load(target, allow_pickle=False) as loaded:
            found = dict(loaded)
    about = json.loads(str(found.pop("about")))
    cost = Cost(about.pop("seconds"), about.pop("cpu_seconds"), about.pop("peak_bytes"))
    return found, cost, about
