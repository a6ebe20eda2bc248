"""How much of the variance of a latent lies between groups of cells, such as batches: sums over blocks, divided once at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GroupSums:
    """Sums over the cells of each group, in float64, added block by block.

    Parameters
    ----------
    n_groups
        P groups.
    width
        D columns.

    Notes
    -----
    All values are taken from the mean of the first block on, so that squares do not cancel where the mean is far from 0.
    """

    def __init__(self, n_groups: int, width: int) -> None:
        self.counts = np.zeros(n_groups, dtype=np.int64)
        self.sums = np.zeros((n_groups, width))
        self.squares = np.zeros(n_groups)
        self._shift: NDArray[np.float64] | None = None

    def add(self, values: NDArray[Any], groups: NDArray[np.integer[Any]]) -> None:
        """Add cells.

        Parameters
        ----------
        values
            (B, D), finite.
        groups
            (B,) group of each, from 0 on.

        Raises
        ------
        ShapeError
            If the shapes do not fit.
        """
        from scipy import sparse

        if values.ndim != 2 or values.shape[1] != self.sums.shape[1] or groups.shape != values.shape[:1]:
            raise ShapeError(
                f"values {values.shape} and groups {groups.shape} must have the shapes (B, {self.sums.shape[1]}) and (B,)."
            )
        if not len(values):
            return
        if self._shift is None:
            self._shift = values.mean(axis=0, dtype=np.float64)
        shifted = values.astype(np.float64) - self._shift
        places = (groups, np.arange(len(groups)))
        members = sparse.csr_matrix((np.ones(len(groups)), places), shape=(len(self.counts), len(groups)))
        self.counts += np.bincount(groups, minlength=len(self.counts))
        self.sums += members @ shifted
        self.squares += members @ (shifted**2).sum(axis=1)

    def share_between(
        self, inner: NDArray[np.integer[Any]], outer: NDArray[np.integer[Any]] | None = None
    ) -> float | None:
        """Tell what share of the variance lies between groups.

        Parameters
        ----------
        inner
            (P,) the batch that each group is a part of.
        outer
            (P,) the cluster that each is a part of: then the variance is that within clusters, and the share that between batches
            of the same cluster. None takes all cells as one.

        Returns
        -------
        float or None
            0 to 1; None where there is no variance to speak of.

        Notes
        -----
        With all columns added up: ``sum_cb N_cb |m_cb - m_c|^2 / sum_i |z_i - m_c(i)|^2`` for clusters c and batches b. Without any
        difference between batches about ``(B - 1) / (N - 1)``, not 0.
        """
        outer = np.zeros(len(self.counts), dtype=np.int64) if outer is None else outer
        pairs = np.unique(np.stack([outer, inner]), axis=1, return_inverse=True)[1].reshape(-1)
        of_pairs, of_outer = self._centers(pairs), self._centers(outer)
        total = float(self.squares.sum()) - of_outer
        if total <= 1e-12 * float(self.squares.sum()) or total <= 0:
            return None
        return float(min(max((of_pairs - of_outer) / total, 0.0), 1.0))

    def _centers(self, parts: NDArray[np.integer[Any]]) -> float:
        """Sum over parts of N |m|^2, m from the shift on."""
        counts = np.bincount(parts, weights=self.counts)
        sums = np.zeros((len(counts), self.sums.shape[1]))
        np.add.at(sums, parts, self.sums)
        return float(((sums**2).sum(axis=1) / np.maximum(counts, 1)).sum())
