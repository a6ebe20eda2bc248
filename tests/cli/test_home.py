"""A path with ~, which no shell has expanded, is in the home of the user: inputs and outputs, from the command line and Python."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import scamac_scale as sms
from scamac_scale.cli.main import main
from scamac_scale.errors import InputError
from tests.support.mixing import result

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_every_path_of_a_command_may_begin_with_it(home: Path, tiny_atlas: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_atlas, home / "a.h5ad")
    result().write_h5ad(home / "r.h5ad")
    (home / "ingest.yaml").write_text("ingest:\n  n_genes: 50\n")
    assert main(["ingest", "~/a.h5ad", "--config=~/ingest.yaml", "--out", "~/s.zarr", "--quiet"]) == 0
    assert main(["inspect", "~/s.zarr", "--verify", "--quiet"]) == 0
    assert main(["inspect", "~/a.h5ad", "--quiet"]) == 0
    assert main(["simulate", "--cells", "20", "--genes", "10", "--types", "2", "--out=~/sim.zarr", "--quiet"]) == 0
    assert main(["evaluate", "~/r.h5ad", "--label", "cell_type", "--json", "~/scores.json", "--quiet"]) == 0
    assert json.loads((home / "scores.json").read_text())["ari"] == 1.0
    for argv in (["predict", "--run", "~/none", "--input", "~/a.h5ad", "--out", "~/p.zarr"], ["inspect", "~/none"]):
        assert main([*argv, "--quiet"]) == 2
    assert {path.name for path in home.iterdir()} >= {"s.zarr", "sim.zarr", "scores.json"}
    assert list((tmp_path / "elsewhere").iterdir()) == []  # no folder called ~


def test_every_path_of_python_may_begin_with_it(home: Path, tiny_atlas: Path, tmp_path: Path) -> None:
    from scamac_scale.ingestion.open import open_obsm, open_raw, read_obs
    from scamac_scale.sources import open_source

    shutil.copy(tiny_atlas, home / "a.h5ad")
    result().write_h5ad(home / "r.h5ad")
    assert sms.ingest("~/a.h5ad", "~/s.zarr") == home / "s.zarr"
    for data in ("~/a.h5ad", "~/s.zarr"):
        with open_source(data) as source:
            assert source.n_cells == 300
    with open_raw("~/a.h5ad") as raw, open_obsm("~/r.h5ad", "X_scAMAC") as latent:
        assert (raw.n_cells, latent.shape[0], len(read_obs("~/r.h5ad"))) == (300, 600, 600)
    assert sms.simulate("~/sim.zarr", 20, n_genes=10, n_types=2) == home / "sim.zarr"
    assert np.isfinite(sms.evaluate("~/r.h5ad", "cell_type")["ari"])
    assert sms.inspect("~/s.zarr")["kind"] == "training store"
    with pytest.raises(InputError, match=str(home)):
        sms.ScAMAC.load("~/none")
    assert list((tmp_path / "elsewhere").iterdir()) == []
