"""One run of one case, in a process of its own: the parent calls it, and reads the last line of its output, JSON.

python -m feeds.run_case --case scipy --data FOLDER --batch-cells 4096 --layout dense --check
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeds import measure, ours

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = ("annbatch", "anndata", "h5py", "numpy", "scdataset", "scipy", "torch", "zarr", "zarrs")


def find_cases() -> dict[str, type[measure.Feed]]:
    """All cases by name, the peers first."""
    return {**importlib.import_module("feeds.peers").CASES, **ours.CASES}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-cells", type=int, default=4096)
    parser.add_argument("--layout", choices=["dense", "csr"], default="dense")
    parser.add_argument("--settings", type=json.loads, help="JSON; default: the first candidate of the case")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true", help="drop the case's files from the page cache first")
    parser.add_argument("--check", action="store_true", help="check two epochs afterwards")
    parser.add_argument("--check-seconds", type=float, default=60.0)
    parser.add_argument("--prepare", action="store_true", help="only write what this case needs")
    return parser.parse_args(arguments)


def drop_cache(paths: list[Path]) -> None:
    """Ask the kernel to forget the pages of files."""
    os.sync()
    for file in walk(paths):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def walk(paths: list[Path]) -> list[Path]:
    """All files below some files and folders."""
    return [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


def run(options: argparse.Namespace, case: type[measure.Feed]) -> dict[str, Any]:
    """Time one case, and check it."""
    settings = case.candidates[0] if options.settings is None else options.settings
    paths = case.files(options.data)
    if options.cold:
        drop_cache(paths)
    feed = case(options.data, options.batch_cells, options.layout, settings)
    stream, outcome = measure.first_batch(feed, options.seed)
    outcome |= measure.timed(stream, options.seconds, options.step_ms / 1e3)
    outcome["disk_bytes"] = sum(file.stat().st_size for file in walk(paths))
    outcome["disk_bytes_per_cell"] = outcome["disk_bytes"] / feed.n_cells
    outcome["settings"] = settings
    outcome["versions"] = versions()
    stream.close()
    if options.check:
        truth = measure.Truth(options.data / "truth.npz")
        outcome["check"] = measure.check(feed, truth, options.seed + 1, options.check_seconds)
        outcome["check"]["is_exact"] = case.is_exact
    feed.close()
    return outcome


def versions() -> dict[str, str]:
    """Of this interpreter, for it may be a peer's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print one line of JSON."""
    options = parse(arguments)
    case = find_cases()[options.case]
    if options.prepare:
        case.prepare(options.data)
        return 0
    print(json.dumps(run(options, case)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
