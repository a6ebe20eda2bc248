"""The benchmark of ingest: that all methods do the same work, and that a run becomes one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scamac_scale import simulate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.filterwarnings("ignore")  # of anndata and dask, about formats and chunks
@pytest.mark.slow
def test_all_methods_choose_the_same_genes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "ingest", raising=False)
    import ingest as benchmark

    monkeypatch.setattr(benchmark, "N_GENES", 50)
    atlas = simulate(tmp_path / "a.zarr", 600, n_genes=200)
    chosen = {
        name: set(run([atlas], tmp_path / f"{number}.zarr"))
        for number, (name, run) in enumerate(benchmark.METHODS.items())
    }
    assert chosen["ours"] == chosen["scanpy"] == chosen["scanpy on dask"]
    assert len(benchmark.values_sha256(tmp_path / "0.zarr")) == 64


def test_a_run_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ingest as benchmark

    runs = [
        {"seconds": s, "cpu_seconds": s, "peak_bytes": 1, "genes": ["a", "b"], "values_sha256": "x"}
        for s in (3.0, 1.0, 2.0)
    ]
    row = benchmark.summary(runs, ["b", "c"])
    assert (row["seconds"], row["same_genes"], row["values_sha256"]) == (2.0, 1, "x")
    assert benchmark.summary([*runs, {"error": "ended with 2"}], None) == {"error": "ended with 2"}
