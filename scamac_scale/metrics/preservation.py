"""What a latent keeps of the labels: the accuracy of nearest neighbours, within the cells and for cells held out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.labels import is_labelled

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Points = NDArray[np.floating[Any]]

N_NEIGHBORS = 15


class TransferScores(TypedDict):
    """Scores of labels carried over to cells held out; plain numbers.

    Attributes
    ----------
    accuracy
        Share of the cells held out that get their label, 0 to 1.
    macro_f1
        Mean over labels of F1, 0 to 1: of the labels that the cells held out have or get.
    n_cells
        Labelled cells held out.
    """

    accuracy: float
    macro_f1: float
    n_cells: int


def neighbor_accuracy(
    latent: ArrayLike, labels: ArrayLike, n_neighbors: int = N_NEIGHBORS, n_folds: int = 5, seed: int = 0
) -> float:
    """Share of cells whose label is the most frequent one among their nearest neighbours in the other folds.

    Parameters
    ----------
    latent
        (N, D).
    labels
        (N,), annotation; cells without one are left out, see `metrics.clustering.is_labelled`.
    n_neighbors
        Cells that vote, by Euclidean distance, each one alike.
    n_folds
        Parts into which the cells are cut, with the same share of every label as far as its cells go.
    seed
        Of the cut.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    InputError
        If there are too few labelled cells, or a value is not finite.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    points, truth = _labelled(latent, labels)
    largest = int(np.unique(truth, return_counts=True)[1].max(initial=0))
    if largest < n_folds or len(truth) - -(-len(truth) // n_folds) < n_neighbors:
        raise InputError(
            f"{len(truth)} labelled cells, at most {largest} of one label, are too few for {n_neighbors} neighbours in "
            f"{n_folds} folds; ask for fewer."
        )
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        found = cross_val_predict(_classifier(n_neighbors), points, truth, cv=folds)
    return float((found == truth).mean())


def transfer_scores(
    latent: ArrayLike, labels: ArrayLike, is_held_out: ArrayLike, n_neighbors: int = N_NEIGHBORS
) -> TransferScores:
    """Label cells held out, such as those of one donor, by their nearest neighbours among the others.

    Parameters
    ----------
    latent
        (N, D).
    labels
        (N,), annotation; cells without one are left out.
    is_held_out
        (N,) bool.
    n_neighbors
        Cells that vote, by Euclidean distance, each one alike.

    Returns
    -------
    TransferScores
        A dict of plain numbers.

    Raises
    ------
    ShapeError
        If the shapes do not fit.
    InputError
        If too few labelled cells are held out or are left, or a value is not finite.
    """
    from sklearn.metrics import f1_score

    held_out = np.asarray(is_held_out, dtype=bool)
    annotation = np.asarray(labels, dtype=object)
    if held_out.shape != annotation.shape:
        raise ShapeError(
            f"is_held_out {held_out.shape} and labels {annotation.shape} must both have the shape (N,): compare columns "
            "of the same cells."
        )
    points, truth = _labelled(latent, annotation)
    held_out = held_out[is_labelled(annotation)]
    n_held_out, n_left = int(held_out.sum()), int((~held_out).sum())
    if n_held_out == 0 or n_left < n_neighbors:
        raise InputError(
            f"{n_held_out} labelled cells are held out and {n_left} are left; there must be at least 1 and "
            f"{n_neighbors}, the number of neighbours."
        )
    found = _classifier(n_neighbors).fit(points[~held_out], truth[~held_out]).predict(points[held_out])
    return TransferScores(
        accuracy=float((found == truth[held_out]).mean()),
        macro_f1=float(f1_score(truth[held_out], found, average="macro")),
        n_cells=n_held_out,
    )


def _classifier(n_neighbors: int) -> Any:  # Any: scikit-learn is not typed
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors, algorithm="brute")  # exact


def _labelled(latent: ArrayLike, labels: ArrayLike) -> tuple[Points, NDArray[np.str_]]:
    """Points and labels of the cells that have one."""
    points: Points = np.asarray(latent)
    annotation: NDArray[Any] = np.asarray(labels, dtype=object)  # Any: labels may be text, numbers or missing
    if points.ndim != 2 or annotation.ndim != 1 or len(points) != len(annotation):
        raise ShapeError(
            f"latent {points.shape} and labels {annotation.shape} must have the shapes (N, D) and (N,): compare the "
            "same cells."
        )
    kept = is_labelled(annotation)
    if not np.isfinite(points[kept]).all():
        raise InputError("the latent of a labelled cell holds NaN or infinity; check the model.")
    return points[kept], annotation[kept].astype(str)
