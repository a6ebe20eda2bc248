import json
from pathlib import Path
from typing import Any

import pytest

from scamac_scale.cli.main import main

QUICK = [
    *("--n-clusters", "4", "--model.encoder_width", "32", "--model.latent_width", "8", "--model.bank_cells", "32"),
    *("--start.landmark_cells", "200", "--start.components", "[5,10]", "--train.batch_cells", "64"),
    *("--train.pretrain.epochs", "2", "--train.pretrain.min_steps", "0", "--train.rounds", "1"),
    *("--train.phases", "[{terms: [reconstruction, layers, similarity, clustering], epochs: 1}]"),
    *("--train.accelerator", "cpu"),
]
"""Settings of a fit that takes a second or two on the tiny atlas."""


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Run a command that must succeed, and read what it prints as JSON."""
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


@pytest.fixture(scope="session")
def pipeline(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``store.zarr``, ``run`` and ``out.zarr`` were written by the command line."""
    folder = tmp_path_factory.mktemp("pipeline")
    store, run, out = (str(folder / name) for name in ("store.zarr", "run", "out.zarr"))
    assert main(["ingest", str(tiny_atlas), "--out", store, "--ingest.n_genes", "100", "--quiet"]) == 0
    assert main(["train", "--store", store, "--run", run, *QUICK, "--quiet"]) == 0
    assert main(["predict", "--run", run, "--input", store, "--out", out, "--quiet"]) == 0
    return folder
