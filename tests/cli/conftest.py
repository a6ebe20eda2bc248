from pathlib import Path

import pytest

from scamac_scale.cli.main import main
from tests.support.command_line import QUICK


@pytest.fixture(scope="session")
def pipeline(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``store.zarr``, ``run`` and ``out.zarr`` were written by the command line."""
    folder = tmp_path_factory.mktemp("pipeline")
    store, run, out = (str(folder / name) for name in ("store.zarr", "run", "out.zarr"))
    assert main(["ingest", str(tiny_atlas), "--out", store, "--ingest.n_genes", "100", "--quiet"]) == 0
    assert main(["train", "--store", store, "--run", run, *QUICK, "--quiet"]) == 0
    assert main(["predict", "--run", run, "--input", store, "--out", out, "--quiet"]) == 0
    return folder
