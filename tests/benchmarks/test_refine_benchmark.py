"""benchmarks/refine.py on small cells: what is simulated, and how sub-clusters are scored."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("refine")


def test_two_groups_differ_and_one_population_has_none(benchmark: ModuleType) -> None:
    cells, is_second = benchmark.simulate("nb", "two", 200, 0, 0.25, 40)
    assert is_second.sum() == 50
    assert cells.values.shape == (200, 500)
    assert not benchmark.simulate("poisson", "even", 100, 0)[1].any()


def test_sub_clusters_are_scored_within_each_cluster(benchmark: ModuleType) -> None:
    fine = np.repeat(["x", "y", "z"], 20)
    obs = pd.DataFrame({"type": np.repeat(["a", "b"], [40, 20]), "fine": fine})
    found = SimpleNamespace(obs=obs.assign(scamac_subcluster=np.repeat(["a.1", "a.2", "b"], 20)))
    scores = benchmark.score(found, "type", "fine", 10)
    assert (scores["with_finer"], scores["found"], scores["mean_ari_within"]) == (1, 1, 1.0)
    assert (scores["without_finer"], scores["cut"]) == (1, 0)
    assert scores["ari_before"] < scores["ari_after"] == 1.0
