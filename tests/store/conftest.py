from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import sparse

from tests.support.stores import counts, write

if TYPE_CHECKING:
    from tests.support.stores import Written


@pytest.fixture(scope="session", params=["fast", "small"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """650 cells by 40 genes in many small chunks and several shards, so that rows cross them; in both profiles."""
    raw = counts(650, 40)
    raw = sparse.diags(np.arange(650) != 17, dtype=raw.dtype).tocsr() @ raw  # cell 17 is without counts
    raw.eliminate_zeros()
    return write(tmp_path_factory.mktemp("store") / "a.zarr", raw, chunk_values=64, profile=request.param)
