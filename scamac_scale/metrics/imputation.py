"""How well held-out expression is recovered: hidden values by L1, RMSE and cosine, thinned counts by log error and Poisson loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from scamac_scale.errors import InputError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ImputationScores(TypedDict):
    """Scores of one imputation; plain numbers, in the units of the values.

    Attributes
    ----------
    median_l1
        Median absolute difference, non-negative.
    rmse
        Root of the mean squared difference, non-negative.
    cosine
        Cosine similarity of the two vectors of values, -1 to 1; 0 where one of them is 0.
    n_values
        Values compared.
    """

    median_l1: float
    rmse: float
    cosine: float
    n_values: int


def imputation_scores(truth: ArrayLike, imputed: ArrayLike, held_out: ArrayLike | None = None) -> ImputationScores:
    """Compare imputed with true values.

    Parameters
    ----------
    truth, imputed
        Same shape, (B, G) or a vector of entries, same units (log-normalised).
    held_out
        Bool mask of that shape: the entries that were hidden from the method; None compares all.

    Returns
    -------
    ImputationScores
        A dict of plain numbers; computed in float64.

    Raises
    ------
    ShapeError
        If the shapes differ.
    InputError
        If there is nothing to compare, or a value is not finite.
    """
    true, guess = np.asarray(truth, dtype=np.float64), np.asarray(imputed, dtype=np.float64)
    mask = np.ones(true.shape, dtype=bool) if held_out is None else np.asarray(held_out, dtype=bool)
    if not true.shape == guess.shape == mask.shape:
        raise ShapeError(
            f"truth {true.shape}, imputed {guess.shape} and held_out {mask.shape} must have the same shape: compare the "
            "same cells and genes."
        )
    true, guess = true[mask], guess[mask]
    if true.size == 0:
        raise InputError("no value is held out; hide at least one entry before imputing.")
    if not (np.isfinite(true).all() and np.isfinite(guess).all()):
        raise InputError("truth or imputed holds NaN or infinity at a held-out entry; check the imputed values.")
    difference = guess - true
    lengths = float(np.linalg.norm(true) * np.linalg.norm(guess))
    return ImputationScores(
        median_l1=float(np.median(np.abs(difference))),
        rmse=float(np.sqrt(np.mean(difference**2))),
        cosine=float(true @ guess / lengths) if lengths > 0 else 0.0,
        n_values=int(true.size),
    )


class ThinnedScores(TypedDict):
    """Scores of denoised counts against molecules that were held out; less is better.

    Attributes
    ----------
    log_mse
        Mean squared difference of ``log1p`` of the counts, each cell scaled to `SCORED_TOTAL`, non-negative.
    poisson
        Mean Poisson loss, without the part that no prediction changes.
    n_values
        Entries compared, zeros too.
    """

    log_mse: float
    poisson: float
    n_values: int


SCORED_TOTAL = 1e4
"""Total to which each cell is scaled before the logarithm is taken."""
TINY_COUNT = 1e-6
"""Added to an expected count in the logarithm."""


def thinned_scores(held_out: ArrayLike, denoised: ArrayLike, kept_total: float) -> ThinnedScores:
    """Compare denoised counts with molecules that were kept from the method, over all entries.

    Parameters
    ----------
    held_out
        (N, G) held-out counts.
    denoised
        (N, G) non-negative, in units of the counts that the method saw.
    kept_total
        Sum of the counts that the method saw; the Poisson loss scales the denoised ones by the sum of the held-out
        counts over it.

    Returns
    -------
    ThinnedScores
        A dict of plain numbers; computed in float64.

    Raises
    ------
    ShapeError
        If the shapes differ.
    InputError
        If there is nothing to compare, a value is negative or not finite, or no count was seen.

    Notes
    -----
    A method that fills in zeros pays for it, since they are scored like all others. The formulas are those of the denoising
    task of Open Problems. A cell without counts stays at 0.

    References
    ----------
    J. Batson, L. Royer and J. Webber, Molecular cross-validation for single-cell RNA-seq, bioRxiv 786269, 2019.
    """
    test, guess = np.asarray(held_out, dtype=np.float64), np.asarray(denoised, dtype=np.float64)
    if test.shape != guess.shape or test.ndim != 2:
        raise ShapeError(
            f"held_out {test.shape} and denoised {guess.shape} must have the same shape (N, G): compare the same cells and genes."
        )
    if test.size == 0 or not kept_total > 0:
        raise InputError(f"{test.size} entries and a total of {kept_total}: there is nothing to compare.")
    if not (np.isfinite(test).all() and np.isfinite(guess).all() and test.min() >= 0 and guess.min() >= 0):
        raise InputError(
            "held_out or denoised holds a negative value, NaN or infinity; clamp the denoised counts at 0."
        )
    expected = guess * (test.sum() / kept_total)
    return ThinnedScores(
        log_mse=float(np.mean((_log_scaled(test) - _log_scaled(guess)) ** 2)),
        poisson=float(np.mean(expected - test * np.log(expected + TINY_COUNT))),
        n_values=int(test.size),
    )


def _log_scaled(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    totals = counts.sum(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.log1p(counts * (SCORED_TOTAL / np.where(totals > 0, totals, 1.0)))
    return scaled
