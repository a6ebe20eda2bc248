"""Clusters cut further, killed with no warning: gone on with, the bytes are those of one that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.levels import model_of_levels, write_levels

pytestmark = pytest.mark.slow


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_one_that_is_killed_at_every_point_ends_in_the_same_bytes(tmp_path: Path) -> None:
    atlas, result = write_levels(tmp_path)
    model_of_levels().save(tmp_path / "model")
    argv = [sys.executable, "-m", "scamac_scale", "refine", "--run", str(tmp_path), "--input", str(atlas)]
    argv += ["--result", str(result), "--key", "cell_type", "--min-cells", "60", "--quiet", "--out"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([*argv, str(tmp_path / "whole.zarr")], env=environment, check=True)
    log = tmp_path / "faults.log"
    points = [
        "refine.sums:1:kill",
        "refine.cells:1:kill",
        *[f"refine.cluster:{nth}:kill" for nth in (1, 1, 1)],
        "refine.rename:1:kill",
    ]
    for point in points:
        log.write_text("")
        done = subprocess.run(
            [*argv, str(tmp_path / "killed.zarr"), "--resume"],
            env={**environment, "SCAMAC_FAULT": point, "SCAMAC_FAULT_LOG": str(log)},
            check=False,
            capture_output=True,
        )
        assert done.returncode == -9, done.stderr
        assert log.read_text().strip() == point
        assert not (tmp_path / "killed.zarr").exists()
    subprocess.run([*argv, str(tmp_path / "killed.zarr"), "--resume"], env=environment, check=True)
    assert bytes_of(tmp_path / "killed.zarr") == bytes_of(tmp_path / "whole.zarr")
    assert (tmp_path / "killed.refine.csv").read_bytes() == (tmp_path / "whole.refine.csv").read_bytes()
