"""Means, paired differences, wins and losses over labelled sets: arithmetic on lists of runs, nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

Run = Mapping[str, Any]

TIE = 0.005
"""Scores of one set that differ by less are a tie."""


def set_scores(runs: Sequence[Run], method: str, score: str) -> dict[tuple[str, int], float]:
    """Score of every (set, seed) of one method, failed runs left out."""
    return {(run["set"], run["seed"]): run[score] for run in runs if run["method"] == method and score in run}


def set_means(scores: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Mean over seeds of every set."""
    by_set: dict[str, list[float]] = defaultdict(list)
    for (name, _), value in scores.items():
        by_set[name].append(value)
    return {name: fmean(values) for name, values in by_set.items()}


def group_means(by_set: Mapping[str, float], family: Callable[[str], str]) -> dict[str, float]:
    """Mean over the sets of every family."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for name, value in by_set.items():
        by_family[family(name)].append(value)
    return {name: fmean(values) for name, values in by_family.items()}


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def describe(runs: Sequence[Run], method: str) -> dict[str, Any]:
    """Means over sets of one method.

    Parameters
    ----------
    runs
        Runs with ``set``, ``seed``, ``method``, ``ari``, ``nmi``, ``n_clusters``, ``n_true``, ``seconds``,
        ``peak_bytes``, and ``neighbor_accuracy`` where there is a latent.
    method
        Name of the method.

    Returns
    -------
    dict
        ARI and NMI (mean over seeds, then over sets), the mean standard deviation of ARI over the seeds of a set, the
        share of runs whose number of clusters is within 1 of the number of labels, seconds (sum over sets of the mean
        over seeds), highest peak; the 15-NN accuracy, None where no run has one.
    """
    mine = [run for run in runs if run["method"] == method and "ari" in run]
    if not mine:
        return {"sets": 0, "runs": 0}
    ari, nmi, seconds = (set_means(set_scores(mine, method, score)) for score in ("ari", "nmi", "seconds"))
    neighbors = set_means(set_scores(mine, method, "neighbor_accuracy"))
    spreads = [stdev(values) for name in ari if len(values := [run["ari"] for run in mine if run["set"] == name]) > 1]
    return {
        "sets": len(ari),
        "runs": len(mine),
        "ari": fmean(ari.values()),
        "nmi": fmean(nmi.values()),
        "neighbor_accuracy": fmean(neighbors.values()) if neighbors else None,
        "ari_sd_over_seeds": fmean(spreads) if spreads else None,
        "count_within_1": fmean(abs(run["n_clusters"] - run["n_true"]) <= 1 for run in mine),
        "seconds": sum(seconds.values()),
        "peak_bytes": max(run["peak_bytes"] for run in mine),
    }


def compare(
    runs: Sequence[Run], method: str, other: str, score: str, family: Callable[[str], str]
) -> dict[str, Any] | None:
    """Paired differences, `method` minus `other`.

    Parameters
    ----------
    runs
        See `describe`.
    method, other
        Names of methods.
    score
        ``ari``, ``nmi`` or ``neighbor_accuracy``.
    family
        Set to the name of its study.

    Returns
    -------
    dict or None
        Means over the sets (and over families, each counted once) that both methods have, on the seeds that both
        have, with standard errors of the differences; wins, losses and ties by sets. None where there is no such set.
    """
    mine, theirs = set_scores(runs, method, score), set_scores(runs, other, score)
    by_set = set_means({key: mine[key] - theirs[key] for key in mine.keys() & theirs.keys()})
    if not by_set:
        return None
    differences = list(by_set.values())
    by_family = list(group_means(by_set, family).values())
    return {
        "method": method,
        "other": other,
        "score": score,
        "sets": len(differences),
        "difference": fmean(differences),
        "standard_error": standard_error(differences),
        "families": len(by_family),
        "family_difference": fmean(by_family),
        "family_standard_error": standard_error(by_family),
        "wins": sum(value >= TIE for value in differences),
        "losses": sum(value <= -TIE for value in differences),
        "ties": sum(abs(value) < TIE for value in differences),
    }


def summarise(
    runs: Sequence[Run],
    methods: Sequence[str],
    references: Sequence[str],
    label_kind: Callable[[str], str],
    family: Callable[[str], str],
) -> dict[str, Any]:
    """Everything that the tables show, for all sets and for each kind of label apart.

    Returns
    -------
    dict
        ``all`` and one entry per kind of label, each with ``methods`` (`describe`) and ``pairs`` (`compare` of every
        reference with every other method, ARI, NMI and, where both have a latent, 15-NN accuracy).
    """
    kinds = sorted({label_kind(run["set"]) for run in runs})
    parts = {"all": list(runs)} | {kind: [run for run in runs if label_kind(run["set"]) == kind] for kind in kinds}
    return {
        name: {
            "methods": {method: describe(part, method) for method in methods},
            "pairs": [
                pair
                for score in ("ari", "nmi", "neighbor_accuracy")
                for reference in references
                for other in methods
                if other != reference and (pair := compare(part, reference, other, score, family)) is not None
            ],
        }
        for name, part in parts.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the seeds."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def in_words(values: dict[str, float], digits: int = 3) -> str:
    """Median, with the lowest and the highest in brackets."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(values["median"], values["low"], values["high"], d=digits)
