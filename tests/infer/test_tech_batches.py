"""Cells take their place among the technical batches of the fit: known ones by the layers, new ones by sums over them."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from scamac_scale import IngestConfig, ScAMAC, ingest, tl
from scamac_scale.errors import InputError, ResumeError
from scamac_scale.infer.output.table import DENOISED_KEY, UNCORRECTED_KEY
from scamac_scale.infer.tech_batches import match_tech_batches
from scamac_scale.metrics.clustering import clustering_scores
from tests.support.donors import CORRECTED, build_donors
from tests.support.fitted import fitted_model, with_correction

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

LATENT = "X_scAMAC"


class Place(NamedTuple):
    """Cells, their store, and models of them by one column and by two."""

    cells: ad.AnnData
    store: Path
    by_donor: ScAMAC
    by_both: ScAMAC


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    cells = build_donors()
    store = ingest(cells, tmp_path_factory.mktemp("store") / "store.zarr", IngestConfig(n_genes=100))
    by_donor = ScAMAC(config=CORRECTED).fit(store)
    return Place(cells, store, by_donor, ScAMAC(batch_key=["donor", "chip"], config=CORRECTED).fit(store))


def distance(found: np.ndarray, batch: np.ndarray, kind: np.ndarray) -> float:
    """How far the means of batches lie apart within types, in widths of a type."""
    apart = []
    for one in np.unique(kind):
        cells, own = found[kind == one], batch[kind == one]
        means = np.stack([cells[own == level].mean(axis=0) for level in np.unique(own)])
        apart.append(((means - cells.mean(axis=0)) ** 2).sum(axis=1).mean() / cells.var(axis=0).sum())
    return float(np.mean(apart))


@pytest.mark.slow
def test_batches_come_together_and_types_stay_apart(place: Place) -> None:
    found = place.by_donor.predict(place.store)
    donor, kind = found.obs["donor"].to_numpy(), found.obs["cell_type"].to_numpy()
    raw = ScAMAC(config=replace(CORRECTED, batch_key=None)).fit(place.store).predict(place.store)
    assert distance(found.obsm[LATENT], donor, kind) < 0.3 * distance(raw.obsm[LATENT], donor, kind)
    labels = [found.obs[name].cat.codes.to_numpy().astype(np.int64) for name in ("cell_type", "scamac_cluster")]
    assert clustering_scores(*labels)["ari"] > 0.9


def test_latents_that_are_not_corrected_stand_beside(place: Place) -> None:
    found = place.by_donor.predict(place.store)
    assert found.obsm[UNCORRECTED_KEY].shape == found.obsm[LATENT].shape
    assert not np.allclose(found.obsm[UNCORRECTED_KEY], found.obsm[LATENT], atol=1e-3)


@pytest.mark.parametrize("model", ["by_donor", "by_both"])
def test_known_cells_have_the_same_bits_in_any_order_and_subset(place: Place, tmp_path: Path, model: str) -> None:
    fitted: ScAMAC = getattr(place, model)
    named = {"by_donor": "cat", "by_both": "cat, 10"}[model]
    batches = ("own", "mean", named)
    whole = {batch: fitted.predict(place.store, denoised=True, denoised_batch=batch) for batch in batches}
    order = np.random.default_rng(0).permutation(place.cells.n_obs)
    for number, rows in enumerate((order, order[:37], np.flatnonzero(place.cells.obs["donor"] == "bob"))):
        path = tmp_path / f"cells{number}.h5ad"
        part = place.cells[rows].copy()
        part.obs["donor"] = part.obs["donor"].astype(str)  # as another program may write it
        part.write_h5ad(path)
        for batch in batches:
            found = fitted.predict(path, denoised=True, denoised_batch=batch)
            for key in (LATENT, UNCORRECTED_KEY, "scamac_membership"):
                np.testing.assert_array_equal(found.obsm[key], whole[batch].obsm[key][rows])
            np.testing.assert_array_equal(found.layers[DENOISED_KEY], whole[batch].layers[DENOISED_KEY][rows])


def renamed(place: Place, **levels: dict[Any, Any]) -> ad.AnnData:
    """The cells, of other levels."""
    cells = place.cells.copy()
    for column, names in levels.items():
        cells.obs[column] = cells.obs[column].astype(str).replace(names)
    return cells


def test_cells_of_a_new_batch_are_placed_beside_the_known_ones(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scamac_scale")
    found = place.by_donor.predict(renamed(place, donor={"bob": "dan"}))
    assert "technical batches that the fit has not seen: dan" in caplog.text
    known = place.by_donor.predict(place.store)
    is_new = (place.cells.obs["donor"] == "bob").to_numpy()
    np.testing.assert_array_equal(found.obsm[LATENT][~is_new], known.obsm[LATENT][~is_new])
    donor, kind = place.cells.obs["donor"].to_numpy(), place.cells.obs["cell_type"].to_numpy()
    assert distance(found.obsm[LATENT], donor, kind) < 0.5 * distance(found.obsm[UNCORRECTED_KEY], donor, kind)


def test_new_cells_leave_no_trace_in_the_model(place: Place) -> None:
    before = place.by_donor.predict(place.store)
    place.by_donor.predict(renamed(place, donor={"bob": "dan", "cat": "eve"}))
    after = place.by_donor.predict(place.store)
    np.testing.assert_array_equal(after.obsm[LATENT], before.obsm[LATENT])


def test_cells_without_the_column_are_one_new_batch_and_the_log_says_so(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    cells = place.cells.copy()
    del cells.obs["donor"]
    found = place.by_donor.predict(cells)
    assert "the cells have no column donor, by which the model knows technical batches" in caplog.text
    assert "all of them are taken for one new batch" in caplog.text
    named = place.by_donor.predict(renamed(place, donor=dict.fromkeys(("ann", "bob", "cat"), "dan")))
    np.testing.assert_array_equal(found.obsm[LATENT], named.obsm[LATENT])


def test_one_of_two_columns_is_refused_where_the_other_is_missing(place: Place) -> None:
    cells = place.cells.copy()
    del cells.obs["chip"]
    with pytest.raises(InputError, match="has no column 'chip'"):
        place.by_both.predict(cells)


def test_a_cell_with_one_unknown_level_of_two_is_of_a_new_batch(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scamac_scale")
    cells = renamed(place, chip={"11": "12"})
    found = place.by_both.predict(cells)
    assert "has not seen: ann, 12; bob, 12; cat, 12" in caplog.text
    is_new = (place.cells.obs["chip"] == 11).to_numpy()
    known = place.by_both.predict(place.store)
    np.testing.assert_array_equal(found.obsm[LATENT][~is_new], known.obsm[LATENT][~is_new])
    assert np.isfinite(found.obsm[LATENT]).all()
    tech = match_tech_batches(place.by_both.fitted, cells.obs, None)
    assert tech.new is not None
    assert sorted(set(tech.new.tolist())) == [-1, 0, 1, 2]


def test_other_columns_may_stand_for_those_of_the_fit(place: Place) -> None:
    cells = place.cells.copy()
    cells.obs = cells.obs.rename(columns={"donor": "patient", "chip": "lane"})
    known = place.by_both.predict(place.store)
    for key in ("patient,lane", ["patient", "lane"]):
        np.testing.assert_array_equal(place.by_both.predict(cells, batch_key=key).obsm[LATENT], known.obsm[LATENT])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("donor", r"names 1 columns; the model was fitted with 2 \(donor, chip\)"),
        ("donor,chip,depth", "names 3 columns"),
        ("donor,lab", "has no column 'lab'"),
        ("donor,depth", "'depth' holds measurements"),
    ],
)
def test_columns_that_do_not_fit_are_refused(place: Place, key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        place.by_both.predict(place.cells, batch_key=key)


def test_a_key_is_refused_where_the_model_knows_no_batches() -> None:
    model = ScAMAC(config=replace(CORRECTED, batch_key=None)).fit(build_donors())
    assert UNCORRECTED_KEY not in model.predict(build_donors()).obsm
    with pytest.raises(InputError, match="batch key 'donor': the model was fitted without technical batches"):
        model.predict(build_donors(), batch_key="donor")


def denoised(place: Place, batch: str, cells: ad.AnnData | None = None) -> np.ndarray:
    found = place.by_donor.predict(place.cells if cells is None else cells, denoised=True, denoised_batch=batch)
    values: np.ndarray = found.layers[DENOISED_KEY]
    return values


def test_a_reconstruction_in_a_named_batch_is_that_of_its_own_cells(place: Place) -> None:
    own, bob = denoised(place, "own"), denoised(place, "bob")
    is_bob = (place.cells.obs["donor"] == "bob").to_numpy()
    np.testing.assert_allclose(
        bob[is_bob], own[is_bob], rtol=1e-4, atol=1e-4
    )  # the offset is found by one sum and not a difference
    assert np.abs(bob[~is_bob] - own[~is_bob]).max() > 0.1


def test_reconstructions_in_one_batch_are_alike(place: Place) -> None:
    donor, kind = place.cells.obs["donor"].to_numpy(), place.cells.obs["cell_type"].to_numpy()
    own = distance(denoised(place, "own"), donor, kind)
    for batch in ("mean", "cat"):
        assert distance(denoised(place, batch), donor, kind) < 0.5 * own


@pytest.mark.parametrize("batch", ["own", "mean", "cat"])
def test_cells_of_a_new_batch_are_reconstructed_in_any(place: Place, batch: str) -> None:
    cells = renamed(place, donor={"bob": "dan"})
    is_new = (place.cells.obs["donor"] == "bob").to_numpy()
    found, known = denoised(place, batch, cells), denoised(place, batch)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[~is_new], known[~is_new])
    assert np.abs(found[is_new] - known[is_new]).mean() < 0.2 * known[is_new].mean()


def test_an_unknown_batch_is_refused_before_any_work(place: Place, tmp_path: Path) -> None:
    message = "no technical batch 'dan' to reconstruct cells in; it knows donor: ann, bob, cat, and own and mean"
    for out in (None, tmp_path / "out.zarr"):
        with pytest.raises(InputError, match=message):
            place.by_donor.predict(place.cells, out, denoised=True, denoised_batch="dan")
    assert list(tmp_path.iterdir()) == []
    for batch in ("ann", "ann,12", "10,ann", "ann,10,11"):
        with pytest.raises(InputError, match="it knows donor: ann, bob, cat; chip: 10, 11"):
            place.by_both.predict(place.cells, denoised=True, denoised_batch=batch)
    found = place.by_both.predict(place.cells, denoised=True, denoised_batch="ann, 10")
    assert np.isfinite(found.layers[DENOISED_KEY]).all()


def test_a_prediction_is_not_gone_on_with_by_another_column(place: Place, tmp_path: Path) -> None:
    cells = place.cells.copy()
    cells.obs["patient"] = cells.obs["donor"]
    place.by_donor.predict(cells, tmp_path / "out.zarr")
    place.by_donor.predict(cells, tmp_path / "out.zarr", resume=True)
    with pytest.raises(ResumeError, match="batch_key='patient'"):
        place.by_donor.predict(cells, tmp_path / "out.zarr", batch_key="patient", resume=True)


@pytest.mark.slow
def test_columns_that_are_not_asked_for_change_no_bit(tmp_path: Path) -> None:
    digests = set()
    for key, columns in ((None, []), (None, ["donor", "chip"]), ("none", ["donor", "chip"]), ("none", [])):
        cells = build_donors()
        cells.obs = cells.obs[["cell_type", *columns]]
        folder = tmp_path / f"{key}-{len(columns)}"
        folder.mkdir()
        store = ingest(cells, folder / "store.zarr", IngestConfig(n_genes=100))
        model = ScAMAC(config=replace(CORRECTED, batch_key=key)).fit(store, run=folder / "run")
        weights = (folder / "run" / "model" / "model.safetensors").read_bytes()
        latents = np.ascontiguousarray(model.predict(store).obsm[LATENT]).tobytes()
        digests.add((hashlib.sha256(weights).hexdigest(), hashlib.sha256(latents).hexdigest()))
    assert len(digests) == 1


@pytest.mark.slow
def test_batches_without_a_correction_change_no_bit() -> None:
    cells = build_donors()
    none = replace(CORRECTED, correction=replace(CORRECTED.correction, acts_on="none"))
    found = ScAMAC(config=none).fit(cells)
    assert found.fitted.tech_levels == {}
    plain = ScAMAC(config=replace(CORRECTED, batch_key=None)).fit(cells)
    np.testing.assert_array_equal(found.predict(cells).obsm[LATENT], plain.predict(cells).obsm[LATENT])


def test_matching_leaves_cells_of_known_batches_alone() -> None:
    model = with_correction(fitted_model())
    obs = pd.DataFrame({"donor": ["cat", "ann", "bob"], "chip": [11, 10, 11]})
    found = match_tech_batches(model, obs, None)
    assert found.new is None
    np.testing.assert_array_equal(found.levels, [[2, 4], [0, 3], [1, 4]])


def test_cells_of_one_batch_are_fitted_without_a_correction(caplog: pytest.LogCaptureFixture) -> None:
    cells = build_donors()
    cells.obs["lab"] = "ours"
    model = ScAMAC(batch_key="lab", config=CORRECTED).fit(cells)
    assert "all cells have the same value in lab" in caplog.text
    assert model.fitted.tech_levels == {}
    assert UNCORRECTED_KEY not in model.predict(cells).obsm


def test_the_tool_in_place_writes_both_latents(place: Place) -> None:
    cells = place.cells.copy()
    tl.scamac(cells, batch_key=["donor", "chip"], config=CORRECTED)
    assert {LATENT, UNCORRECTED_KEY, "scamac_membership"} <= set(cells.obsm)
    assert not np.allclose(cells.obsm[UNCORRECTED_KEY], cells.obsm[LATENT], atol=1e-3)
