"""scanpy's ``seurat_v3`` and ``seurat_v3_paper``: variances of counts, standardised by what their means let expect, and clipped.

Two passes: moments of the counts, from which a local regression (loess) tells the standard deviation to expect at each mean; then sums of
counts clipped at ``mean + sqrt(N) * sd``. Unclipped counts are summed as they are and clipped ones are only counted, so that all sums are
whole numbers, exact in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.errors import InputError, MissingExtraError
from scamac_scale.host.compiled import compiled
from scamac_scale.ingestion.flavors.over_batches import choose_by_rank
from scamac_scale.ingestion.flavors.sums import Choice, Common, fold, moments_of_batches, raw_moments, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.ingestion.flavors.sums import BlockSums, Candidates, Moments, Rows

SPAN = 0.3
"""Share of the genes that a local fit takes, as in scanpy and Seurat."""
MIN_GENES = 10
"""Genes that vary which a fit needs: three points for each parabola. With hardly any, the library crashes the interpreter."""


def import_loess() -> Any:  # Any: scikit-misc is not typed
    """Import the local regression, or say which extra brings it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        from skmisc.loess import loess
    except ImportError as error:
        raise MissingExtraError(
            "ingest.flavor=seurat_v3 (and seurat_v3_paper) needs the local regression of scikit-misc; install it with "
            'pip install "scamac-scale[loess]", or choose seurat, cell_ranger or pearson_residuals.'
        ) from error
    return loess


def choose_seurat_v3(candidates: Candidates) -> Choice:
    """Choose by the median rank over technical batches, then by the number of them."""
    return _choose(candidates, is_rank_first=True)


def choose_seurat_v3_paper(candidates: Candidates) -> Choice:
    """Choose by the number of technical batches, then by the median rank; as `choose_seurat_v3` where there are none."""
    return _choose(candidates, is_rank_first=False)


def _choose(candidates: Candidates, *, is_rank_first: bool) -> Choice:
    import pandas as pd

    n_batches, n_genes = candidates.shape
    common = Common(candidates.column, n_genes, candidates.tech)
    batches = moments_of_batches(candidates, fold(candidates, raw_moments, common, "measuring counts"))
    spread, reasons = np.ones((n_batches, n_genes)), {}
    for at, moments in enumerate(batches):
        try:
            spread[at] = expected_spread(moments)
        except InputError as error:
            reasons[at] = str(error)
    if len(reasons) == n_batches:
        raise InputError(
            f"{candidates.raw.name}: no gene can be chosen by {'seurat_v3' if is_rank_first else 'seurat_v3_paper'}: {reasons[0]}; "
            "choose another ingest.flavor."
        )
    limit = np.stack([clip_at(moments, spread[at]) for at, moments in enumerate(batches)])
    clipped = fold(candidates, clipped_sums, common._replace(of_batches=limit), "measuring clipped counts")
    heard = [at for at in range(n_batches) if at not in reasons]
    scores = np.stack([standardised(batches[at], spread[at], limit[at], clipped[:, at]) for at in heard])
    columns, is_variable = choose_by_rank(scores, candidates, is_rank_first=is_rank_first)
    mean, variance = sum(batches[1:], batches[0]).mean_and_variance()
    table = pd.DataFrame({"means": mean, "variances": variance, "variances_norm": scores.mean(axis=0), **columns})
    return Choice(table, is_variable, tuple(reasons), "the local regression of seurat_v3 fails (few cells, say)")


def expected_spread(moments: Moments) -> NDArray[np.float64]:
    """Compute the standard deviation to expect of each gene, given its mean.

    Parameters
    ----------
    moments
        Sums of counts.

    Returns
    -------
    ndarray
        (G,) from a local parabola through the logarithms (base 10) of variances against those of means; 1 of genes that do not vary.

    Raises
    ------
    InputError
        If too few genes vary, or the fit fails, as it does where many genes have the same few means.
    MissingExtraError
        If scikit-misc is not installed.
    """
    loess = import_loess()
    mean, variance = moments.mean_and_variance()
    varies = variance > 0
    if varies.sum() < MIN_GENES:
        raise InputError(f"{varies.sum()} genes vary, and the local regression needs {MIN_GENES}")
    model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=SPAN, degree=2)
    try:
        model.fit()
    except ValueError as error:
        said = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise InputError(f"the local regression of variances on means fails ({' '.join(said.split())})") from error
    fitted = np.zeros(len(mean))
    fitted[varies] = model.outputs.fitted_values
    if not np.isfinite(fitted).all():
        raise InputError("the local regression of variances on means gives numbers that are not finite")
    return np.asarray(np.sqrt(10**fitted))


def clip_at(moments: Moments, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count beyond which a cell tells nothing more of a gene: ``mean + sqrt(N) * sd``, (G,)."""
    return np.asarray(spread * np.sqrt(moments.n_cells) + moments.mean_and_variance()[0])


def standardised(
    moments: Moments, spread: NDArray[np.float64], limit: NDArray[np.float64], clipped: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the variance of each gene after it is clipped and divided by what is expected.

    Parameters
    ----------
    moments
        Sums of counts, over at least two cells.
    spread, limit
        (G,) from `expected_spread` and `clip_at`.
    clipped
        (3, G) from `clipped_sums`.

    Returns
    -------
    ndarray
        (G,) ``sum (min(x, limit) - mean)^2 / ((N - 1) sd^2)``.

    References
    ----------
    Stuart et al., Cell 2019; ``scanpy.pp.highly_variable_genes(flavor="seurat_v3")``.
    """
    n, mean = moments.n_cells, moments.mean_and_variance()[0]
    total, squared = clipped[0] + clipped[2] * limit, clipped[1] + clipped[2] * limit**2
    return np.asarray((1 / ((n - 1) * np.square(spread))) * (n * np.square(mean) + squared - 2 * total * mean))


def clipped_sums(index: int, block: sparse.csr_matrix, start: int, common: Common) -> BlockSums:
    """Sum the counts of a block that are not beyond their limit, and their squares, and count the others."""
    limit = common.of_batches
    assert limit is not None

    def add(rows: Rows, cells: IntArray, batch: int, into: NDArray[np.float64]) -> None:
        _add_clipped(rows, cells, common.column, limit[batch], into[0])

    return summed(block, start, common, 3, add)


@compiled
def _add_clipped(rows: Any, cells: Any, column: Any, limit: Any, into: Any) -> None:  # pragma: no cover  compiled
    indptr, indices, data = rows
    for row in cells:
        for at in range(indptr[row], indptr[row + 1]):
            gene = column[indices[at]]
            if gene >= 0:
                value = np.float64(data[at])
                if value > limit[gene]:
                    into[2, gene] += 1.0
                else:
                    into[0, gene] += value
                    into[1, gene] += value * value
