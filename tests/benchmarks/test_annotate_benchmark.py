"""benchmarks/annotate.py on a small simulated set, and its measure of calibration."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.support.donors import DONORS, build_donors

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def annotate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("annotate")
    monkeypatch.setattr(module, "SETS", {"small": "donor"})
    monkeypatch.setattr(module, "COMPONENTS", 10)
    return module


def test_the_calibration_error_is_that_of_a_loop(annotate: ModuleType) -> None:
    p = np.random.default_rng(0).uniform(0.2, 1, 500)
    is_right = np.random.default_rng(1).uniform(size=500) < p**2
    slow = 0.0
    for low in range(10):
        own = (p > low / 10) & (p <= (low + 1) / 10)
        if own.any():
            slow += own.mean() * abs(p[own].mean() - is_right[own].mean())
    assert annotate.calibration_error(p, is_right) == pytest.approx(slow)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the peers stop early
def test_every_method_carries_labels_over(annotate: ModuleType, tmp_path: Path) -> None:
    build_donors().write_h5ad(tmp_path / "small.h5ad")
    level = DONORS[0]
    out = tmp_path / "out.json"
    annotate.main(
        [
            "--data",
            str(tmp_path),
            "--sets",
            "small",
            "--levels",
            level,
            "--removed",
            level,
            "--out",
            str(out),
            "--models",
            str(tmp_path),
        ]
    )
    runs = json.loads(out.read_text())["runs"]
    assert {run["method"] for run in runs if not run["removed"]} == set(annotate.METHODS)
    assert all(run["accuracy"] > 0.7 and run["ece"] < 0.5 for run in runs if not run["removed"])
    assert all(0 <= run["unknown_of_removed"] <= 1 for run in runs if run["removed"])
    annotate.main(["--report", "--out", str(out)])
