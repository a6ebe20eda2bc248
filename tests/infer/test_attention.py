from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import torch

from scamac_scale.config import ModelConfig
from scamac_scale.errors import ConfigError, OutputError
from scamac_scale.infer import attention as atlas
from scamac_scale.infer.options import PredictOptions
from scamac_scale.infer.predict import predict
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.sources import open_source
from tests.support.fitted import GENES, fitted_model

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.fitted import FittedModel


ATLAS = PredictOptions(attention="atlas")


def attentive_model(**settings: object) -> FittedModel:
    model = fitted_model(**settings)
    with torch.no_grad():
        torch.nn.init.normal_(model.network.get_parameter("fusion.alpha"), std=3.0, generator=torch.manual_seed(1))
        for name in ("w_q", "w_k"):  # scores that differ
            model.network.get_parameter(f"synergy.{name}.weight").mul_(4.0)
    model.network.refresh_bank()
    return model


def dense_latent(model: FittedModel, adata: ad.AnnData) -> np.ndarray:
    """All cells as one batch of in-batch attention: Eq. (10) as printed, in float64."""
    network = ScamacNetwork(
        len(GENES),
        ModelConfig(encoder_width=16, latent_width=8, bank_cells=12, spatial_form="batch"),
        model.config.input,
    )
    network.load_state_dict(model.network.state_dict())
    with open_source(adata, model.genes) as source:
        block = source.read(np.arange(source.n_cells))
        values = torch.zeros(source.n_cells, len(GENES))
        for cell in range(source.n_cells):
            at = slice(int(block.indptr[cell]), int(block.indptr[cell + 1]))
            values[cell, block.indices[at].astype(np.int64)] = torch.from_numpy(block.data[at])
    network.double().eval()
    with torch.no_grad():
        latent: np.ndarray = network(network.scale_input(values), frozen=True).latent.numpy()
    return latent


@pytest.mark.parametrize("form", ["landmark", "batch"])
def test_every_cell_attends_to_all_cells_of_the_input(
    tiny_adata: ad.AnnData, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas, "QUERY_CELLS", 64)  # several blocks of queries, of reads and of scores
    monkeypatch.setattr(atlas, "READ_CELLS", 96)
    monkeypatch.setattr(atlas, "KEY_BLOCK", 40)
    model = attentive_model(spatial_form=form)
    with open_source(tiny_adata, model.genes) as source:
        found = predict(model, source, options=ATLAS)
        assert isinstance(found, ad.AnnData)
        usual = predict(model, source)
        assert isinstance(usual, ad.AnnData)
    np.testing.assert_allclose(found.obsm["X_scAMAC"], dense_latent(model, tiny_adata), rtol=0, atol=1e-5)
    if form == "landmark":
        assert np.abs(found.obsm["X_scAMAC"] - usual.obsm["X_scAMAC"]).max() > 1e-3


def test_files_lie_beside_the_output_without_a_name(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    model = attentive_model()
    seen: list[list[str]] = []
    read = atlas.AtlasAttention.read

    def look(self: atlas.AtlasAttention, start: int, stop: int) -> torch.Tensor:
        assert os.fstat(self._keys._writer.fileno()).st_dev == tmp_path.stat().st_dev
        seen.append([path.name for path in tmp_path.iterdir() if not path.name.startswith(".out.zarr")])
        return read(self, start, stop)

    monkeypatch.setattr(atlas.AtlasAttention, "read", look)
    with open_source(tiny_adata, model.genes) as source:
        predict(model, source, tmp_path / "out.zarr", ATLAS)
    assert seen == [[]]  # a process that is killed leaves nothing of them
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_a_disk_without_room_is_refused_before_any_work(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    model = attentive_model()
    result = 4 * 300 * (8 + 3)
    scratch = 4 * 3 * 3 * 8 * 300
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": result + scratch - 1})())
    with open_source(tiny_adata, model.genes) as source:
        for out in (tmp_path / "out.zarr", None):
            if out is None:
                monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": scratch - 1})())
            with pytest.raises(OutputError, match="needs up to"):
                predict(model, source, out, ATLAS)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_attention_and_an_unknown_form_are_refused(tiny_adata: ad.AnnData) -> None:
    model = attentive_model(has_synergy=False)
    with open_source(tiny_adata, model.genes) as source, pytest.raises(ConfigError, match="trained without attention"):
        predict(model, source, options=ATLAS)
    with pytest.raises(ConfigError, match=r"attention='atlsa'.*mean 'atlas'"):
        PredictOptions(attention="atlsa")  # type: ignore[arg-type]  # as it may come from Python
