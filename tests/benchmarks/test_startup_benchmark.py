"""The benchmark of the start runs once on the demo's cells and writes what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "startup.py"


@pytest.mark.slow
def test_the_parts_of_a_short_fit_are_told_apart(tmp_path: Path) -> None:
    short = ["--train.rounds", "1", "--train.pretrain.steps", "2"]
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--only", "pbmc", "--json", str(tmp_path / "startup.json")]
    subprocess.run([*command, *short], check=True, env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])})
    written = (tmp_path / "startup.json").read_text()
    seconds = json.loads(written)["this"]["pbmc"]["seconds"]
    assert 0 < seconds["process and imports"]["median"] < seconds["first step"]["median"] < seconds["all"]["median"]
    assert {"gene moments", "start", "pretraining", "landmarks", "rounds", "last sweep"} <= set(seconds)
    assert str(tmp_path) not in written
