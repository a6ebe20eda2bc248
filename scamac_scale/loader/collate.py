"""From rows in buffers to one batch: slots of reused memory that reader threads fill and the consumer reads.

A dense slot holds a batch as the network takes it; a sparse slot holds it as CSR, for a device that makes it dense by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.cells.buffer import RowBuffer

_SLACK = 1.1
_ALIGNMENT = 64
"""Bytes, as torch aligns its own memory: libraries round products of other memory otherwise."""

Filling = list[tuple["RowBuffer", "NDArray[np.int64]"]]
"""Buffers, and the rows that a batch takes from each, in the order of the batch."""


class SparseBatch(NamedTuple):
    """Some cells as sparse rows, log-normalised.

    Attributes
    ----------
    indptr
        (B + 1,) int64; row ``i`` lies at ``indptr[i]:indptr[i + 1]``.
    genes
        (nnz,) uint16 or uint32.
    values
        (nnz,) float32.
    n_genes
        G.
    """

    indptr: Tensor
    genes: Tensor
    values: Tensor
    n_genes: int

    def to(self, device: torch.device) -> SparseBatch:
        """Copy to a device; without waiting where the memory is page-locked."""
        indptr, genes, values = (part.to(device, non_blocking=True) for part in (self.indptr, self.genes, self.values))
        return SparseBatch(indptr, genes, values, self.n_genes)

    def to_dense(self, out: Tensor | None = None) -> Tensor:
        """Make the rows dense on the device where they are: (B, G) float32, in `out` where that is given."""
        n_cells = len(self.indptr) - 1
        if out is None:
            out = torch.empty((n_cells, self.n_genes), dtype=torch.float32, device=self.values.device)
        out.zero_()
        start = torch.arange(n_cells, device=self.values.device) * self.n_genes
        place = torch.repeat_interleave(start, self.indptr.diff(), output_size=len(self.values))
        # by way of the signed type of the same width: torch converts few unsigned types on CUDA
        signed, mask = (torch.int16, 2**16 - 1) if self.genes.dtype == torch.uint16 else (torch.int32, 2**32 - 1)
        place += self.genes.view(signed).to(torch.int64) & mask
        out.view(-1)[place] = self.values  # no gene is twice in a cell: nothing depends on an order
        return out


class Slot(Protocol):
    """Reused memory for one batch."""

    def fill(self, filling: Filling) -> None:
        """Write a batch."""

    def batch(self) -> Any:  # Any: a Tensor or a SparseBatch
        """Give the batch that was written; valid until the slot is filled again."""

    def beside(self) -> Tensor:
        """Give (B, G) float32 memory beside the batch that was written; valid as long as that is."""

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""


class DenseSlot:
    """A (B, G) float32 batch in memory that grows to the largest batch seen."""

    def __init__(self, n_genes: int, *, is_pinned: bool) -> None:
        self._n_genes = n_genes
        self._memory = _Memory(is_pinned=is_pinned)
        self._n_cells = 0

    def fill(self, filling: Filling) -> None:
        """Write a batch."""
        self._n_cells = sum(places.size for _, places in filling)
        out = self.batch().numpy()
        at = 0
        for buffer, places in filling:
            buffer.to_dense(places, out[at : at + places.size])
            at += places.size

    def batch(self) -> Tensor:
        """Give (B, G) float32."""
        return self._memory.matrix("values", self._n_cells, self._n_genes)

    def beside(self) -> Tensor:
        """Give (B, G) float32, as they were left."""
        return self._memory.matrix("beside", self._n_cells, self._n_genes)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""
        return self._memory.nbytes


class SparseSlot:
    """A batch as CSR in memory that grows to the largest batch seen."""

    def __init__(self, n_genes: int, *, is_pinned: bool) -> None:
        self._n_genes = n_genes
        self._memory = _Memory(is_pinned=is_pinned)
        self._n_cells = self._n_values = 0
        self._gene_type = torch.uint16

    def fill(self, filling: Filling) -> None:
        """Write a batch."""
        lengths = [np.zeros(1, np.int64), *(buffer.lengths(places) for buffer, places in filling)]
        indptr = np.cumsum(np.concatenate(lengths))
        self._n_cells, self._n_values = indptr.size - 1, int(indptr[-1])
        if filling:
            self._gene_type = torch.uint16 if filling[0][0].genes.dtype == np.uint16 else torch.uint32
        batch = self.batch()
        batch.indptr.numpy()[:] = indptr
        genes, values = batch.genes.numpy(), batch.values.numpy()
        at = 0
        for buffer, places in filling:
            buffer.to_sparse(places, indptr[at : at + places.size + 1], genes, values)
            at += places.size

    def batch(self) -> SparseBatch:
        """Give the sparse rows."""
        return SparseBatch(
            self._memory.room("indptr", self._n_cells + 1, torch.int64),
            self._memory.room("genes", self._n_values, self._gene_type),
            self._memory.room("values", self._n_values, torch.float32),
            self._n_genes,
        )

    def beside(self) -> Tensor:
        """Give (B, G) float32, as they were left."""
        return self._memory.matrix("beside", self._n_cells, self._n_genes)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""
        return self._memory.nbytes


class _Memory:
    """Named pieces of host memory that grow when they must."""

    def __init__(self, *, is_pinned: bool) -> None:
        self._is_pinned = is_pinned
        self._held: dict[str, Tensor] = {}

    def room(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        held = self._held.get(name)
        if held is None or held.dtype != dtype or len(held) < size:
            # a batch that is larger than the first one will not be the last: sizes differ in sparse ones
            wanted = size if held is None or held.dtype != dtype else int(size * _SLACK)
            self._held[name] = held = _allocate(wanted, dtype, is_pinned=self._is_pinned)
        return held[:size]

    def matrix(self, name: str, n_rows: int, n_columns: int) -> Tensor:
        return self.room(name, n_rows * n_columns, torch.float32).view(n_rows, n_columns)

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())


def _allocate(size: int, dtype: torch.dtype, *, is_pinned: bool) -> Tensor:
    """Take memory: page-locked, or by NumPy, which asks for huge pages: the kernel then misses far fewer addresses."""
    if is_pinned:
        return torch.empty(size, dtype=dtype, pin_memory=True)
    held = np.empty(max(size, 1) * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -held.ctypes.data % _ALIGNMENT
    return torch.from_numpy(held[start : start + max(size, 1) * dtype.itemsize]).view(dtype)[:size]


SLOTS: dict[str, type[DenseSlot] | type[SparseSlot]] = {"dense": DenseSlot, "csr": SparseSlot}
"""How a batch is handed out."""
