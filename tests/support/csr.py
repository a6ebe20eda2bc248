"""Blocks of cells as plain arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from scamac_scale.cells.csr import CsrBlock


def dense(block: CsrBlock) -> np.ndarray:
    parts = (block.data, block.indices.astype(np.int64), block.indptr)
    return sparse.csr_matrix(parts, shape=(block.n_cells, block.n_genes)).toarray()
