"""Runs that went badly are seen to be bad in the page."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from scamac_scale.api import report
from tests.support.atlas import build_tiny_atlas
from tests.support.donors import build_donors
from tests.support.reported import fit

pytestmark = pytest.mark.slow


def worst_of(adata: ad.AnnData, folder: Path, batch_key: str | None = None, **settings: object) -> set[str]:
    """What the page calls most likely wrong."""
    run, result = fit(adata, folder, **settings)  # type: ignore[arg-type]  # one of them is the kind of values
    found = report(run, result, batch_key=batch_key, layout="tsne", out=folder / "report")
    page = (folder / "report" / "report.html").read_text()
    bad = {finding["check"] for finding in found["findings"] if finding["severity"] == "bad"}
    assert bad == {
        check for check in ("values", "number of clusters", "batches") if f"Most likely wrong: {check}." in page
    }
    return bad


def test_too_many_clusters_are_seen(tmp_path: Path) -> None:
    assert worst_of(build_tiny_atlas(), tmp_path, n_clusters=12) == {"number of clusters"}


def test_batches_that_were_merged_without_their_key_are_seen(tmp_path: Path) -> None:
    assert "batches" in worst_of(build_donors(), tmp_path, batch_key="donor", n_clusters=12)


def test_log_values_that_were_taken_as_linear_are_seen(tmp_path: Path) -> None:
    adata = build_tiny_atlas()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.X = adata.X.multiply(1e4 / totals[:, None]).tocsr().log1p().astype(np.float32)
    assert worst_of(adata, tmp_path, kind="linear") == {"values"}


def test_a_run_that_went_well_has_nothing_bad(tmp_path: Path) -> None:
    assert worst_of(build_tiny_atlas(), tmp_path) == set()
