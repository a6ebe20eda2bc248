from pathlib import Path

import pytest

from scamac_scale import IngestConfig, ScAMAC, ingest
from tests.support.settings import QUICK


@pytest.fixture(scope="session")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("store") / "tiny.store.zarr", IngestConfig(n_genes=100))


@pytest.fixture(scope="session")
def model(store: Path) -> ScAMAC:
    return ScAMAC(config=QUICK).fit(store)
