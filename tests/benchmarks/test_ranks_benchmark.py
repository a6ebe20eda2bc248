"""The benchmark of several processes runs on a small store and writes what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ranks.py"


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_are_compared_with_one(tmp_path: Path) -> None:
    sizes = ["--cells", "3000", "--genes", "80", "--rounds", "1", "--batches", "256", "--sums", "blocks"]
    subprocess.run([sys.executable, str(SCRIPT), *sizes, "--json", str(tmp_path / "ranks.json")], check=True)
    found = json.loads((tmp_path / "ranks.json").read_text())["blocks"]["256"]
    for work in ("train", "sweep", "predict"):
        assert found[work]["ratio"] > 0
        assert 0 <= found[work]["share_in_collectives"] < 1
    assert found["checkpoint_bytes"] > 0
