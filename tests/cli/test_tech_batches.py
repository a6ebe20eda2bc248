"""Technical batches from the command line: named at train, and other columns or new batches at predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scamac_scale.cli.main import main
from tests.support.command_line import QUICK
from tests.support.donors import build_donors

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]
SMALL = ["--correction.components", "8", "--correction.clusters", "5", "--correction.rounds", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``store.zarr``, ``run``, corrected by donor and chip, and ``cells.h5ad``, which names them otherwise."""
    folder = tmp_path_factory.mktemp("batches")
    cells = build_donors()
    cells.write_h5ad(folder / "atlas.h5ad")
    cells.obs = cells.obs.rename(columns={"donor": "patient", "chip": "lane"})
    cells.write_h5ad(folder / "cells.h5ad")
    store, run = str(folder / "store.zarr"), str(folder / "run")
    assert main(["ingest", str(folder / "atlas.h5ad"), "--out", store, "--ingest.n_genes", "100", "--quiet"]) == 0
    argv = ["--store", store, "--run", run, "--batch-key", "donor,chip", *QUICK, *SMALL, "--quiet"]
    assert main(["train", *argv]) == 0
    return folder


def predict(folder: Path, cells: str, out: Path, *more: str) -> int:
    return main(
        ["predict", "--run", str(folder / "run"), "--input", str(folder / cells), "--out", str(out), *more, "--quiet"]
    )


@pytest.mark.slow
def test_other_columns_give_the_latents_of_the_store(folder: Path, tmp_path: Path) -> None:
    assert predict(folder, "store.zarr", tmp_path / "store.zarr") == 0
    key = ("--batch-key", "patient,lane", "--denoised", "--denoised-batch", "ann,10")
    assert predict(folder, "cells.h5ad", tmp_path / "cells.zarr", *key) == 0
    expected, found = ad.read_zarr(tmp_path / "store.zarr"), ad.read_zarr(tmp_path / "cells.zarr")
    for name in ("X_scAMAC", "X_scAMAC_uncorrected"):
        np.testing.assert_array_equal(found.obsm[name], expected.obsm[name])
    assert "scamac_denoised" in found.layers


@pytest.mark.slow
def test_cells_without_the_columns_are_one_new_batch_and_it_is_said(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert predict(folder, "cells.h5ad", tmp_path / "cells.zarr") == 0
    assert "the cells have no column donor or chip" in capsys.readouterr().err
    assert np.isfinite(ad.read_zarr(tmp_path / "cells.zarr").obsm["X_scAMAC"]).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--batch-key", "patient"), "names 1 columns; the model was fitted with 2 (donor, chip)"),
        (("--denoised", "--denoised-batch", "dan,10"), "the model knows no technical batch 'dan,10'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: Capture, more: tuple[str, ...], words: str
) -> None:
    assert predict(folder, "cells.h5ad", tmp_path / "out.zarr", *more) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_is_not_there_is_refused_before_the_fit(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = ["--store", str(folder / "store.zarr"), "--run", str(tmp_path / "run"), "--batch-key", "lab", "--quiet"]
    assert main(["train", *argv]) == 2
    assert "has no column 'lab' (batch key)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
