"""A fit and a prediction from a bucket, through a bad network: the bits of those from a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scamac_scale import IngestConfig, ScAMAC, ingest
from scamac_scale.store import layout
from tests.support.bucket import upload
from tests.support.chaos import MIXED, chaos
from tests.support.settings import STREAMED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import ObjectServer


@pytest.mark.slow
def test_a_fit_and_a_prediction_from_a_bucket_are_those_from_a_disk(
    tiny_atlas: Path, tmp_path: Path, bucket: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_VALUES", 512)
    monkeypatch.setattr(layout, "SHARD_VALUES", 2048)
    monkeypatch.setenv("SCAMAC_CACHE_DIR", str(tmp_path / "cache"))
    store = ingest(tiny_atlas, tmp_path / "tiny.store.zarr", IngestConfig(n_genes=100))
    url, raw = upload(store, f"{bucket}/tiny.store.zarr"), upload(tiny_atlas, f"{bucket}/tiny.h5ad")
    there = ScAMAC(config=STREAMED).fit(store)
    with chaos(object_server.address, shares=MIXED, stall_s=0.1) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        here = ScAMAC(config=STREAMED).fit(url)
        assert server.n_faults() > 5
        expected = there.fitted.network.state_dict()
        found = here.fitted.network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert torch.equal(here.fitted.clusters.centers, there.fitted.clusters.centers)
        on_disk = there.predict(tiny_atlas)
        for data in (url, raw):
            assert np.array_equal(here.predict(data).obsm["X_scAMAC"], on_disk.obsm["X_scAMAC"])
