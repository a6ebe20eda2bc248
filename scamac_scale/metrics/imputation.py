"""How well held-out expression values are recovered: median L1 distance, RMSE and cosine similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from scamac_scale.errors import InputError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


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
