from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from scamac_scale.inspection import inspect
from scamac_scale.store.reader import StoreReader
from tests.support.csr import dense

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("profile", ["fast", "small"])
def test_a_store_of_version_1_is_read_as_it_was_written(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.zarr"
    shutil.unpack_archive(GOLDEN / f"v1-{profile}.zip", path)
    with np.load(GOLDEN / "v1.npz") as held:
        raw, expected = held["raw"], held["expected"]
    with StoreReader(path) as reader:
        assert (reader.n_cells, reader.n_genes, reader.n_values) == (*raw.shape, int((raw > 0).sum()))
        assert (reader.profile, reader.value_dtype) == (profile, np.uint16)
        rows = reader.source_rows
        np.testing.assert_allclose(dense(reader.read(np.arange(120))), expected[rows], rtol=6e-8, atol=0)
        assert reader.obs.index.tolist() == [f"cell{row}" for row in rows]
        assert reader.obs["cell_type"].tolist() == [("B", "T", "naïve")[row % 3] for row in rows]
        np.testing.assert_array_equal(reader.obs["depth"], rows / 4)
        assert reader.gene_space.chosen == tuple(f"gene{i}" for i in range(30))
        assert reader.gene_space.input is None  # what the filters left out was not kept then
    assert "120 cells" in inspect(path, verify=True)["verified"]
