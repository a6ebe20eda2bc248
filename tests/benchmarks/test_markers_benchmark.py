"""benchmarks/markers.py: the comparison of two tables, and a small run of both methods."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def markers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("markers")


def test_tables_are_compared_gene_by_gene(markers: ModuleType) -> None:
    one = {f"{column}/0": np.array([3.0, 2.0, 1.0]) for column in markers.COLUMNS}
    other = {name: values[[1, 0, 2]] for name, values in one.items()}
    one["names/0"], other["names/0"] = np.array(["a", "b", "c"]), np.array(["b", "a", "c"])
    assert markers.compare(one, other) == {"difference": dict.fromkeys(markers.COLUMNS, 0.0), "same_top": 1 / 3}
    other["scores/0"] = np.array([2.0, 3.4, 1.0])
    assert markers.compare(one, other)["difference"]["scores"] == pytest.approx(0.4 / 4.4)


@pytest.mark.slow
def test_both_methods_agree_on_a_small_atlas(markers: ModuleType, tiny_atlas: Path, tmp_path: Path) -> None:
    out = tmp_path / "markers.json"
    markers.main(["--source", str(tiny_atlas), "--cells", "2000", "--out", str(out)])
    runs = json.loads(out.read_text())["runs"]
    assert {run["method"] for run in runs} == {"ours", "scanpy"}
    ours = next(run for run in runs if run["method"] == "ours")
    assert max(ours["difference"].values()) < 1e-5
    assert ours["same_top"] > 0.99
