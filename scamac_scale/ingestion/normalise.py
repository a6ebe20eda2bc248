"""From a block of raw values to the log-normalised values of the chosen genes: pure functions of one block.

Which columns count for a cell's total and which are kept is decided here, by name; the formula itself is in
``scamac_scale/cells/normalisation.py``, for the training store uses it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.genes import locate_genes
from scamac_scale.cells.normalisation import cell_scale, normalise_values
from scamac_scale.errors import ShapeError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.csr import take_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.genes import GeneSpace


@dataclass(frozen=True, eq=False)
class GeneColumns:
    """Where the genes of a gene space lie among the columns of an input.

    Attributes
    ----------
    space
        The genes looked for.
    is_filtered
        (G,) whether a column counts for the total of a cell.
    target
        (G,) position among ``space.chosen``, -1 for columns that are not kept.
    missing_filtered, missing_chosen
        Genes that the input lacks; they count as zeros.
    """

    space: GeneSpace
    is_filtered: NDArray[np.bool_]
    target: NDArray[np.int64]
    missing_filtered: tuple[str, ...]
    missing_chosen: tuple[str, ...]

    @classmethod
    def locate(cls, space: GeneSpace, gene_names: Sequence[str]) -> GeneColumns:
        """Match genes by name.

        Parameters
        ----------
        space
            The genes to look for.
        gene_names
            (G,) unique names of the input's columns, in any order.
        """
        filtered = locate_genes(space.filtered, gene_names)
        chosen = locate_genes(space.chosen, gene_names)
        is_filtered = np.zeros(len(gene_names), dtype=bool)
        is_filtered[filtered[filtered >= 0]] = True
        target = np.full(len(gene_names), -1, dtype=np.int64)
        target[chosen[chosen >= 0]] = np.flatnonzero(chosen >= 0)
        return cls(
            space,
            is_filtered,
            target,
            tuple(space.filtered[i] for i in np.flatnonzero(filtered < 0)),
            tuple(space.chosen[i] for i in np.flatnonzero(chosen < 0)),
        )

    def totals(self, block: sparse.csr_matrix) -> NDArray[np.float64]:
        """Sum each cell of a block (B, G) over the filtered genes: (B,) float64."""
        return cell_totals(block, self.is_filtered)

    def raw_values(self, block: sparse.csr_matrix) -> sparse.csr_matrix:
        """Pick the chosen genes of a block (B, G): (B, chosen) values as they are; a missing gene is zero."""
        self._check(block)
        return take_columns(block, self.target, len(self.space.chosen))

    def normalised(self, block: sparse.csr_matrix) -> sparse.csr_matrix:
        """Turn a block into what the network is fed from.

        Parameters
        ----------
        block
            (B, G) raw values.

        Returns
        -------
        csr_matrix
            (B, chosen) float32: ``log1p(x * target_sum / total)`` with the total over the filtered genes; ``x`` where the
            values are logged already. A cell with total 0 stays zeros. Zeros that the block holds are left out.

        Raises
        ------
        ShapeError
            If the block has not the columns that were located.

        Notes
        -----
        O(nnz of the block). Values other than counts are rounded to float32 first, as the training store holds them, so
        that both give the same bits.
        """
        picked = self.raw_values(block)
        if not picked.data.all():
            picked.eliminate_zeros()
        values = picked.data if self.space.kind == "counts" else picked.data.astype(np.float32)
        if self.space.target_sum is not None:
            values = normalise_values(picked.indptr, values, cell_scale(self.totals(block), self.space.target_sum))
        picked.data = values.astype(np.float32, copy=False)
        return picked

    def _check(self, block: sparse.csr_matrix) -> None:
        if block.shape[1] != len(self.target):
            raise ShapeError(f"a block of {block.shape[1]} genes, expected the {len(self.target)} that were located.")


def cell_totals(block: sparse.csr_matrix, is_filtered: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum each cell over some genes.

    Parameters
    ----------
    block
        (B, G) raw values.
    is_filtered
        (G,) whether a gene counts.

    Returns
    -------
    ndarray
        (B,) float64.

    Raises
    ------
    ShapeError
        If the widths differ.
    """
    if block.shape[1] != len(is_filtered):
        raise ShapeError(f"a block of {block.shape[1]} genes, but {len(is_filtered)} are marked; expected as many.")
    return np.asarray(_totals(block.indptr, block.indices, kernel_values(block.data), is_filtered))


def kernel_values(data: NDArray[Any]) -> NDArray[np.float32] | NDArray[np.float64]:
    """Turn whole numbers into float64 (exact below 2**53), so that kernels are compiled for two types and not for ten."""
    return data if data.dtype in (np.float32, np.float64) else data.astype(np.float64)


@compiled
def _totals(indptr: Any, indices: Any, data: Any, is_filtered: Any) -> Any:  # pragma: no cover  compiled
    totals = np.empty(len(indptr) - 1)
    for row in range(len(totals)):
        total = 0.0
        for entry in range(indptr[row], indptr[row + 1]):
            total += data[entry] if is_filtered[indices[entry]] else 0.0
        totals[row] = total
    return totals
