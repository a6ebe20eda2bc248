"""benchmarks/genes.py on a small simulated set: both parts end to end, and their sums."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pytest

from scamac_scale.ingestion.flavors.choose import FLAVORS
from tests.support.atlas import build_tiny_atlas

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def genes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("genes")
    monkeypatch.setattr(module, "N_GENES", (50,))
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    build_tiny_atlas().write_h5ad(tmp_path / "data" / "deng_counts.h5ad")  # a name of the 14 sets
    return tmp_path / "data"


def test_every_flavor_is_compared_with_scanpy(genes: ModuleType, folder: Path, tmp_path: Path) -> None:
    assert set(genes.RANKED_BY) == set(FLAVORS)
    assert set(genes.COUNTS_ONLY) == {name for name, flavor in FLAVORS.items() if flavor.needs_counts}
    out = tmp_path / "genes.json"
    assert genes.main(["parity", "--data", str(folder), "--out", str(out)]) == 0
    held = json.loads(out.read_text())
    assert {run["flavor"] for run in held["runs"]} == set(FLAVORS)
    assert all(run["same"] == run["scanpy"] == run["ours"] == 50 for run in held["runs"])
    assert all(run["is_same_in_blocks"] for run in held["runs"])
    assert sum(row["all_same"] for row in held["summary"]) == len(FLAVORS)
    assert str(tmp_path) not in out.read_text()


def test_flavors_of_counts_are_left_out_elsewhere(genes: ModuleType) -> None:
    assert {flavor for flavor, *_ in genes.plan(100, None, is_whole=False)} == {"seurat", "cell_ranger"}
    assert list(genes.plan(50, "donor", is_whole=True)) == []
    assert len(list(genes.plan(51, "donor", is_whole=True))) == 2 * len(FLAVORS)


def test_filters_are_compared_by_pairs(genes: ModuleType) -> None:
    def run(name: str, which: str, ari: float, rare: list[float]) -> dict[str, object]:
        return {"set": name, "filter": which, "seed": 0, "ari": ari, "neighbor_accuracy": 0.5, "rare_f1": rare}

    runs = [
        run("a", "share 0.05", 0.5, [0.2, 0.4]),
        run("b", "share 0.05", 0.7, []),
        run("a", "cells 3", 0.6, [0.5]),
        run("b", "cells 3", 0.6, []),
        run("c", "cells 3", 0.9, []),
    ]
    _, (base, found) = genes.report_filters({"runs": runs})
    assert (base["ari_difference"], base["ari"]) == (0, pytest.approx(0.6))
    assert (found["sets"], found["ari_difference"]) == (3, pytest.approx(0))
    assert found["ari_standard_error"] == pytest.approx(0.1)
    assert (found["won"], found["lost"]) == (1, 1)
    assert found["rare_f1_difference"] == pytest.approx(0.2)


def test_only_types_of_few_cells_are_rare(genes: ModuleType) -> None:
    truth, labels = np.array(["common"] * 96 + ["rare"] * 4), np.array([0] * 98 + [1] * 2)
    assert genes.rare_f1(truth, labels) == [pytest.approx(2 / 3, abs=1e-3)]


def test_a_fit_after_each_filter_is_scored(
    genes: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = importlib.import_module("methods")

    def label(data: "object", seed: int) -> object:
        cells = ad.read_h5ad(folder / "deng_counts.h5ad")
        return methods.Fit(
            cells.obs["cell_type"].astype("category").cat.codes.to_numpy(), methods.Cost(), np.zeros((300, 2))
        )

    monkeypatch.setattr(methods, "warm_up", lambda *_: None)
    monkeypatch.setattr(genes, "filter_method", lambda name: methods.Method(name, label, {}))
    out = tmp_path / "min_cells.json"
    assert genes.main(["min_cells", "--data", str(folder), "--out", str(out)]) == 0
    held = json.loads(out.read_text())
    assert [run["filter"] for run in held["runs"]] == sorted(genes.FILTERS)
    assert all(run["ari"] == 1 for run in held["runs"])
    passing = {run["filter"]: run["n_passing"] for run in held["runs"]}
    assert passing["share 0.05"] <= passing["cells 10"] <= passing["cells 3"]
