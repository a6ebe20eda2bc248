from __future__ import annotations

import numpy as np
import pytest
import torch

from scamac_scale.cells.buffer import RowBuffer
from scamac_scale.loader.collate import DenseSlot, SparseSlot
from tests.support.memory import MatrixSource


def filling(source: MatrixSource, *pieces: list[int]) -> list[tuple[RowBuffer, np.ndarray]]:
    """Buffers that hold all rows, of which a batch takes some from each."""
    found = []
    for rows in pieces:
        buffer = RowBuffer()
        source.load(np.array([0]), np.array([source.n_cells]), buffer)
        found.append((buffer, np.array(rows, dtype=np.int64)))
    return found


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("pieces", [[], [[3]], [[3, 1], [], [7, 7, 0]]])
def test_both_slots_hold_the_rows_of_all_pieces(pieces: list[list[int]], is_scaled: bool) -> None:
    source = MatrixSource(is_scaled=is_scaled)
    expected = source.dense([row for piece in pieces for row in piece])
    dense, csr = DenseSlot(20, is_pinned=False), SparseSlot(20, is_pinned=False)
    for slot in (dense, csr):
        slot.fill(filling(source, list(range(50))))  # what was there before must not shine through
        slot.fill(filling(source, *pieces))
    np.testing.assert_array_equal(dense.batch().numpy(), expected)
    np.testing.assert_array_equal(csr.batch().to_dense().numpy(), expected)


def test_sparse_batch_goes_into_memory_that_is_given() -> None:
    source = MatrixSource()
    slot = SparseSlot(20, is_pinned=False)
    slot.fill(filling(source, [4, 2]))
    out = torch.full((2, 20), 7.0)
    assert slot.batch().to_dense(out).data_ptr() == out.data_ptr()
    np.testing.assert_array_equal(out.numpy(), source.dense([4, 2]))


def test_sparse_batch_with_wide_gene_numbers() -> None:
    buffer = RowBuffer()
    buffer.allot(1, 2, np.dtype(np.uint32), np.dtype(np.float32), is_scaled=False)
    buffer.indptr[:], buffer.genes[:], buffer.values[:] = [0, 2], [1, 70_000], [2, 3]
    slot = SparseSlot(70_001, is_pinned=False)
    slot.fill([(buffer, np.array([0]))])
    found = slot.batch().to_dense()
    assert (found[0, 1], found[0, 70_000], found.sum()) == (2, 3, 5)


def test_slot_memory_is_used_again() -> None:
    source = MatrixSource()
    slot = DenseSlot(20, is_pinned=False)
    slot.fill(filling(source, [1, 2, 3]))
    before = slot.batch().data_ptr(), slot.nbytes
    slot.fill(filling(source, [4]))
    assert (slot.batch().data_ptr(), slot.nbytes) == before
    assert slot.nbytes == 3 * 20 * 4
