"""How well do labels carry over to a donor, or a study, that the reference has none of?

Each level of the batch column in turn is left out; the model is fitted to the other levels, with the batch key and without labels; their labels
are carried over by `annotate`. Beside it, on the same cells, all fitted to the reference alone: 15 nearest neighbours and a logistic regression
on 50 principal components of the log-normalised counts, and, as CellTypist does, a logistic regression by stochastic gradients on all genes, scaled.
Accuracy, macro F1 over the labels that the left-out cells have, and the expected calibration error (10 bins of the probability of the label).
`unknown`: at the default share of .05, how many of the left-out cells of known types are called so, and, with one type taken out of the labels of
the reference, how many of that type. The fit has seen the cells of that type, but not its label.

The fits are short (60 steps a phase, one round): the rule reads the corrected input, which gradient steps do not change.

    python benchmarks/annotate.py --models scratch/
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from record import Results, environment, measure
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale import ScAMAC

OUT = Path(__file__).resolve().parent / "results" / "annotate.json"
KEY = ("set", "left_out", "removed", "method")
SETS = {"kang12k_1287g": "sample", "pbmc_pool18k_1191g": "batch"}
LABEL, COMPONENTS, NEIGHBORS, BINS = "cell_type", 50, 15, 10
MIN_CELLS = 50
"""Cells of a type in the left-out level, at least, for the share that is unknown where the reference lacks it."""
UNKNOWN = "unknown"

Labelled = tuple["NDArray[Any]", "NDArray[np.float64]"]
"""(n,) labels, and the probabilities of these."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of the sets; SCAMAC_DATA"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--levels", nargs="+", help="levels that are left out; default: all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--removed", nargs="+", default=[], metavar="LEVEL", help="levels with one type after the other removed"
    )
    parser.add_argument("--models", type=Path, help="folder in which fitted models are kept")
    parser.add_argument("--report", action="store_true", help="no runs: the table of what the file holds")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    return parser.parse_args(arguments)


def calibration_error(probability: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean over cells of |mean probability - accuracy| of their bin."""
    bins = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [abs(float((probability - is_right)[bins == each].sum())) for each in range(BINS)]
    return sum(gaps) / len(probability)


def fitted(reference: AnnData, key: str, path: Path | None) -> ScAMAC:
    """Fit to the reference, or load the model that was."""
    from scamac_scale import ScAMAC, ScamacConfig

    if path is not None and path.exists():
        return ScAMAC.load(path)
    config = ScamacConfig()
    train = config.train
    train = replace(train, batch_cells=512, rounds=1, accelerator="cpu")
    model = ScAMAC(reference.obs[LABEL].nunique(), batch_key=key, config=replace(config, train=train)).fit(reference)
    if path is not None:
        model.save(path)
    return model


def log_normalised(data: AnnData) -> NDArray[np.float32]:
    """(N, G) log(1 + counts scaled to the median total)."""
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    scaled = data.X.multiply((np.median(totals) / totals)[:, None]).tocsr()
    scaled.data = np.log1p(scaled.data)
    return scaled.toarray().astype(np.float32)


def _of(
    classifier: Any, train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any]
) -> Labelled:  # Any: scikit-learn's
    p = classifier.fit(train, labels).predict_proba(test)
    return classifier.classes_[p.argmax(axis=1)], p.max(axis=1).astype(np.float64)


def _components(train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.decomposition import PCA

    pca = PCA(COMPONENTS, random_state=0).fit(train)
    return pca.transform(train), pca.transform(test)


def neighbors(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any]) -> Labelled:
    """Share of the 15 nearest cells on 50 components."""
    from sklearn.neighbors import KNeighborsClassifier

    train, test = _components(train, test)
    return _of(KNeighborsClassifier(NEIGHBORS), train, labels, test)


def regression(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any]) -> Labelled:
    """Logistic regression on 50 components."""
    from sklearn.linear_model import LogisticRegression

    train, test = _components(train, test)
    return _of(LogisticRegression(max_iter=500), train, labels, test)


def celltypist(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any]) -> Labelled:
    """Logistic regression, one label against the rest, by stochastic gradients on all genes, scaled and clipped at 10."""
    from sklearn.linear_model import SGDClassifier

    mean, sd = train.mean(axis=0), train.std(axis=0) + 1e-9
    scaled = [np.clip((each - mean) / sd, -10, 10) for each in (train, test)]
    return _of(SGDClassifier(loss="log_loss", alpha=0.01, max_iter=20, random_state=0), scaled[0], labels, scaled[1])


METHODS: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Labelled] | None] = {
    "annotate": None,
    "15-NN on PCA50": neighbors,
    "logistic regression on PCA50": regression,
    "CellTypist-like": celltypist,
}


def run_level(options: argparse.Namespace, name: str, data: AnnData, level: str, results: Results) -> None:
    """Leave a level out, with every method."""
    is_left_out = (data.obs[SETS[name]].astype(str) == level).to_numpy()
    reference, new = data[~is_left_out].copy(), data[is_left_out].copy()
    truth = new.obs[LABEL].astype(str).to_numpy()
    values = log_normalised(data)
    path = None if options.models is None else options.models / f"{name}__{level}"
    for method in options.methods:
        classify = METHODS[method]
        model = None if classify else fitted(reference, SETS[name], path)
        with measure() as cost:
            if model is None:
                assert classify is not None
                labels = reference.obs[LABEL].astype(str).to_numpy()
                found, p = classify(values[~is_left_out], labels, values[is_left_out])
                about = {}
            else:
                result = model.annotate(reference, LABEL, new)
                kept = result.obs["scamac_label"].astype(str).to_numpy()
                result = model.annotate(reference, LABEL, new, unknown=0.0)
                found, p = (result.obs[key].to_numpy() for key in ("scamac_label", "scamac_label_probability"))
                is_known = np.isin(truth, reference.obs[LABEL].astype(str).unique())
                about = {"unknown": float((kept == UNKNOWN)[is_known].mean()), **result.uns["scamac"]["labels"]}
                is_kept = kept != UNKNOWN
                about["accuracy_of_known"] = float((kept == truth)[is_kept].mean())
        run = {"set": name, "left_out": level, "removed": "", "method": method, "n_cells": len(truth)}
        results.add(
            {**run, **scores(truth, found, p), **about, "cpu_seconds": round(cost.cpu_seconds, 1)}, environment()
        )
    if level in options.removed:
        run_removed(reference, new, fitted(reference, SETS[name], path), {"set": name, "left_out": level}, results)


def scores(truth: NDArray[Any], found: NDArray[Any], p: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy, macro F1 and calibration error."""
    from sklearn.metrics import f1_score

    is_right = np.asarray(found == truth)
    return {
        "accuracy": float(is_right.mean()),
        "macro_f1": float(f1_score(truth, np.asarray(found, dtype=str), labels=np.unique(truth), average="macro")),
        "ece": calibration_error(np.asarray(p, dtype=np.float64), is_right),
    }


def run_removed(reference: AnnData, new: AnnData, model: ScAMAC, run: dict[str, Any], results: Results) -> None:
    """Take one type after the other out of the labels of the reference: how much of it becomes unknown."""
    truth = new.obs[LABEL].astype(str).to_numpy()
    for removed in np.unique(truth):
        is_of = truth == removed
        if is_of.sum() < MIN_CELLS:
            continue
        labels = reference.obs[LABEL].astype(str)
        reference.obs["without"] = labels.where(labels != removed)
        with measure() as cost:
            kept = model.annotate(reference, "without", new).obs["scamac_label"].astype(str).to_numpy()
        about = {
            "unknown_of_removed": float((kept[is_of] == UNKNOWN).mean()),
            "unknown": float((kept[~is_of] == UNKNOWN).mean()),
        }
        row = {**run, "removed": str(removed), "method": "annotate", "n_cells": int(is_of.sum()), **about}
        results.add({**row, "cpu_seconds": round(cost.cpu_seconds, 1)}, environment())


def report(results: Results) -> None:
    """Print means over the left-out levels, and what becomes of removed types."""
    runs = results.read()["runs"]
    console = Console()
    table = Table("set", "method", "levels", "accuracy", "macro F1", "ECE", "unknown")
    for name in SETS:
        for method in METHODS:
            own = [run for run in runs if (run["set"], run["method"], run["removed"]) == (name, method, "")]
            if own:
                means = [f"{statistics.fmean(run[key] for run in own):.3f}" for key in ("accuracy", "macro_f1", "ece")]
                unknown = f"{statistics.fmean(run['unknown'] for run in own):.3f}" if method == "annotate" else "-"
                table.add_row(name, method, str(len(own)), *means, unknown)
    console.print(table)
    table = Table("set", "left out", "removed", "cells", "unknown of removed", "unknown of others")
    for run in (run for run in runs if run["removed"]):
        shown = [f"{run[key]:.3f}" for key in ("unknown_of_removed", "unknown")]
        table.add_row(run["set"], run["left_out"], run["removed"], str(run["n_cells"]), *shown)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and print the table."""
    import anndata

    options = parse(arguments)
    results = Results(options.out, KEY)
    if not options.report:
        for name in options.sets:
            data = anndata.read_h5ad(Path(options.data) / f"{name}.h5ad")
            for level in sorted(data.obs[SETS[name]].astype(str).unique()):
                if options.levels is None or level in options.levels:
                    run_level(options, name, data, level, results)
    report(results)


if __name__ == "__main__":
    main()
