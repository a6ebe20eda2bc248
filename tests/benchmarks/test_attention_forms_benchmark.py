from __future__ import annotations

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_both_forms_are_compared_on_every_set(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import attention_forms

    out = tmp_path / "results" / "found.json"
    attention_forms.main(["--data", str(tiny_atlas.parent), "--out", str(out)])
    (run,) = json.loads(out.read_text())["runs"]
    assert (run["set"], run["cells"]) == ("tiny", 300)
    assert run["ari_trained"] > 0.95
    assert 0.9 < run["agreement"] <= 1.0
    assert 0.0 < run["latent_distance"] < 0.5
