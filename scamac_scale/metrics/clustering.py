"""Agreement of clusters with labels: NMI and ARI, Eqs. (16) to (18), by scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from scamac_scale.errors import InputError, ShapeError
from scamac_scale.metrics.labels import is_labelled

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ClusteringScores(TypedDict):
    """Scores of one clustering; plain numbers.

    Attributes
    ----------
    ari
        Adjusted Rand index, -0.5 to 1.
    nmi
        Normalised mutual information, arithmetic mean in the denominator, 0 to 1.
    n_cells
        Cells that were scored.
    n_unlabelled
        Cells left out for want of a label.
    n_clusters, n_labels
        Distinct clusters and labels among the scored cells.
    """

    ari: float
    nmi: float
    n_cells: int
    n_unlabelled: int
    n_clusters: int
    n_labels: int


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> ClusteringScores:
    """Compare clusters with labels.

    Parameters
    ----------
    labels
        (N,), annotation given with the data; see `is_labelled`.
    clusters
        (N,), the assignment.

    Returns
    -------
    ClusteringScores
        A dict of plain numbers.

    Raises
    ------
    ShapeError
        If the lengths differ, or an input is not one-dimensional.
    InputError
        If no cell has a label, or a labelled cell has no cluster.

    References
    ----------
    scAMAC Eqs. (16) to (18).
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    annotation: NDArray[Any] = np.asarray(labels, dtype=object)  # Any: labels may be text, numbers or missing
    assignment: NDArray[Any] = np.asarray(clusters, dtype=object)
    if annotation.ndim != 1 or annotation.shape != assignment.shape:
        raise ShapeError(
            f"labels {annotation.shape} and clusters {assignment.shape} must both have the shape (N,): compare columns "
            "of the same cells."
        )
    kept = is_labelled(annotation)
    if not kept.any():
        raise InputError(f"none of the {len(kept)} cells has a label; name another label column.")
    missing = int((~is_labelled(assignment[kept])).sum())
    if missing:
        raise InputError(
            f"{missing} labelled cells have no cluster; predict them first, or name another cluster column."
        )
    truth = np.unique(annotation[kept].astype(str), return_inverse=True)[1]
    found = np.unique(assignment[kept].astype(str), return_inverse=True)[1]
    return ClusteringScores(
        ari=float(adjusted_rand_score(truth, found)),
        nmi=float(normalized_mutual_info_score(truth, found)),
        n_cells=int(kept.sum()),
        n_unlabelled=int((~kept).sum()),
        n_clusters=int(found.max()) + 1,
        n_labels=int(truth.max()) + 1,
    )
