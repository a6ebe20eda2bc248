"""Installed read-only, as a user without a name and a home: every command works, with a place for compiled code and without."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import scamac_scale
from tests.support.command_line import QUICK

USER = 65534
COMMANDS = f"""
set -e
run="{sys.executable} -m scamac_scale"
cd work
$run ingest atlas.h5ad --out store --ingest.n_genes 100
$run train --store store --run run {shlex.join(QUICK)} --quiet
$run predict --run run --input store --out out.h5ad --quiet
$run evaluate out.h5ad --label cell_type
$run simulate --cells 200 --genes 60 --out atlas.zarr --quiet
"""
WITHOUT = """
set -e
mount --bind {folder} /mnt
for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=755 none $place; done
cd /mnt
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user"
)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@needs_root
@pytest.mark.slow  # five starts of the whole program, which compile
@pytest.mark.parametrize("has_place", [True, False])
def test_a_user_without_a_home_can_do_all_with_a_read_only_package(
    has_place: bool, tiny_atlas: Path, open_folder: Path
) -> None:
    package = open_folder / "package"
    shutil.copytree(
        Path(scamac_scale.__file__).parent, package / "scamac_scale", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(package)], check=True)
    work = open_folder / "work"
    work.mkdir()
    shutil.copy(tiny_atlas, work / "atlas.h5ad")
    (work / "atlas.h5ad").chmod(0o644)
    os.chown(work, USER, USER)
    done = as_nobody(open_folder, has_place=has_place)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("set NUMBA_CACHE_DIR") == (0 if has_place else 2)  # those that are not quiet
    assert "ARI" in done.stdout
    assert "atplotlib" not in done.stderr


def as_nobody(folder: Path, *, has_place: bool) -> "subprocess.CompletedProcess[str]":
    """Run the commands without a name, a home, and the right to write anything but the work folder."""
    package, cache = folder / "package", folder / "work" / "cache"
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1", "PYTHONPATH": "../package"}
    if has_place:
        environ["NUMBA_CACHE_DIR"] = str(cache)
    assert package.is_dir()
    # the interpreter may lie in the home of root: reading, and nothing else, is as if it lay elsewhere
    drop = f"setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    if has_place:
        argv = ["bash", "-c", f'cd {folder} && exec {drop} bash -c "$0"', COMMANDS]
    else:
        argv = ["unshare", "-m", "bash", "-c", f'{WITHOUT.format(folder=folder)}\nexec {drop} bash -c "$0"', COMMANDS]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
