"""The benchmark of object storage runs, and writes what it says."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("moto")
pytest.importorskip("obstore")


@pytest.mark.slow
def test_the_benchmark_of_object_storage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL", "SCAMAC_CACHE_DIR"):
        monkeypatch.setenv(name, "x")  # put back at the end
    sys.modules.pop("objects", None)
    import objects

    objects.main(["--cells", "600", "--genes", "300", "--rounds", "1", "--out", str(tmp_path / "x.json")])
    found = json.loads((tmp_path / "x.json").read_text())
    assert set(found["epoch"]) == {"disk", "bucket, cached", "bucket, opened and not cached"}
    assert all(case["ratio"] > 0 for part in ("epoch", "pass over an h5ad") for case in found[part].values())
