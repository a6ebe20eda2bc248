"""Summaries and tables of the four files; arithmetic is that of benchmarks/summary.py."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table
from sets import family
from summary import compare, set_means, set_scores, standard_error

from integration.latents import METHODS, TITLES
from integration.scale import exponents
from integration.scores import CLUSTERINGS, MIXING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich import box

HOW = {"own": "", "consensus": " + consensus", "kmeans": " + k-means"}
SCORES = {"ilisi": "iLISI", "clisi": "cLISI", "graph_connectivity": "connectivity", "knn": "15-NN"}
COSTS = ("seconds", "cpu_seconds", "peak_bytes")
Run = dict[str, Any]


def title_of(method: str, how: str = "own") -> str:
    """Of a method with one clustering."""
    return TITLES[method] + HOW[how]


def by_clustering(runs: Sequence[Run]) -> list[Run]:
    """One row for each clustering of each run, its method named by both."""
    return [
        {**run, **scores, "method": f"{run['method']}/{how}"}
        for run in runs
        for how, scores in run.get("labels", {}).items()
    ]


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Means over sets, and paired differences of ours (or of PCA50 + Harmony, where ours was not run).

    Returns
    -------
    dict
        ``labels``: ARI and NMI by method and clustering; ``mixing``: other scores and costs by method; ``pairs``.
    """
    rows = by_clustering(runs)
    methods = [name for name in METHODS if any(run["method"] == name and "seconds" in run for run in runs)]
    clustered = [f"{m}/{how}" for m in METHODS for how in CLUSTERINGS if any(r["method"] == f"{m}/{how}" for r in rows)]
    labels = {
        name: {
            score: fmean(by_set.values())
            for score in ("ari", "nmi")
            if (by_set := set_means(set_scores(rows, name, score)))
        }
        | {"sets": len(set_means(set_scores(rows, name, "ari")))}
        for name in clustered
    }
    mixing = {}
    for name in methods:
        mean = {score: set_means(set_scores(runs, name, score)) for score in (*MIXING, *COSTS)}
        mixing[name] = {score: fmean(by_set.values()) for score, by_set in mean.items() if by_set}
        mixing[name]["peak_bytes"] = max(mean["peak_bytes"].values())
        mixing[name]["sets"] = len(mean["seconds"])
    reference = next((name for name in ("ours", "pca50-harmony") if name in methods), None)
    return {"labels": labels, "mixing": mixing, "pairs": pairs_of(runs, rows, methods, clustered, reference)}


def pairs_of(
    runs: Sequence[Run], rows: Sequence[Run], methods: Sequence[str], clustered: Sequence[str], reference: str | None
) -> list[dict[str, Any]]:
    """`summary.compare` of the reference with every other method, for every score."""
    if reference is None:
        return []
    mine = next(name for name in clustered if name.startswith(f"{reference}/"))
    wanted = [(rows, mine, other, score) for score in ("ari", "nmi") for other in clustered if other != mine]
    wanted += [(runs, reference, other, score) for score in MIXING for other in methods if other != reference]
    return [pair for one in wanted if (pair := compare(*one, family)) is not None]


def set_table(runs: Sequence[Run], sets: dict[str, Any], score: str, style: box.Box) -> Table:
    """One score of every set, mean over seeds."""
    rows = by_clustering(runs) if score in ("ari", "nmi") else runs
    names = list(dict.fromkeys(run["method"] for run in rows if score in run))
    names.sort(key=lambda name: (list(METHODS).index(name.split("/")[0]), name))
    ordered = sorted(sets, key=lambda name: sets[name]["cells"])
    table = Table(title=f"{SCORES.get(score, score.upper())}, mean over seeds", box=style)
    table.add_column("method", no_wrap=True)
    for name in (*ordered, "mean"):
        table.add_column(name, justify="right")
    for name in names:
        by_set = set_means(set_scores(rows, name, score))
        values = [f"{by_set[one]:.3f}" if one in by_set else "" for one in ordered]
        mean = f"{fmean(by_set.values()):.3f}" if len(by_set) == len(ordered) else ""
        table.add_row(title_of(*name.split("/")), *values, mean)
    return table


def mean_table(summary: dict[str, Any], style: box.Box) -> Table:
    """Mixing and costs, means over sets."""
    table = Table(title="Latents, means over sets", box=style)
    table.add_column("method", no_wrap=True)
    for column in ("sets", *SCORES.values(), "s", "CPU s", "peak MiB"):
        table.add_column(column, justify="right")
    for name, mean in summary["mixing"].items():
        table.add_row(
            TITLES[name],
            str(mean["sets"]),
            *(f"{mean[score]:.3f}" if score in mean else "" for score in SCORES),
            f"{mean['seconds']:.1f}",
            f"{mean['cpu_seconds']:.1f}",
            f"{mean['peak_bytes'] / 2**20:.0f}",
        )
    return table


def pair_table(pairs: Sequence[dict[str, Any]], style: box.Box) -> Table:
    """Paired differences; those of NMI stand in the file alone."""
    table = Table(title="Paired differences (± standard error over sets; over families)", box=style)
    for column in ("score", "method", "minus"):
        table.add_column(column, no_wrap=True)
    for column in ("sets", "difference", "families", "won / lost / tied"):
        table.add_column(column, justify="right")
    for pair in [pair for pair in pairs if pair["score"] != "nmi"]:
        table.add_row(
            SCORES.get(pair["score"], pair["score"].upper()),
            title_of(*pair["method"].split("/")),
            title_of(*pair["other"].split("/")),
            str(pair["sets"]),
            with_error(pair["difference"], pair["standard_error"]),
            with_error(pair["family_difference"], pair["family_standard_error"]),
            f"{pair['wins']} / {pair['losses']} / {pair['ties']}",
        )
    return table


def with_error(value: float, error: float | None) -> str:
    """Signed value and its standard error."""
    return f"{value:+.3f}" if error is None else f"{value:+.3f} ± {error:.3f}"


def over_summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """F1 of the kept type over cases: mean, standard error, and ours minus each other on the cases that both have."""
    rows = [{**row, "case": (row["set"], row["type"], row["batch"], row["seed"])} for row in by_clustering(runs)]
    by_method: dict[str, dict[Any, float]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["case"]] = row["f1"]
    mine = by_method.get("ours/own", {})
    found = []
    for name, cases in by_method.items():
        gaps = [mine[case] - cases[case] for case in mine.keys() & cases.keys()] if name != "ours/own" else []
        found.append(
            {
                "method": name,
                "cases": len(cases),
                "f1": fmean(cases.values()),
                "standard_error": standard_error(list(cases.values())),
                "by_set": {
                    one: fmean(value for case, value in cases.items() if case[0] == one)
                    for one in sorted({case[0] for case in cases})
                },
                "ours_minus": fmean(gaps) if gaps else None,
                "ours_minus_error": standard_error(gaps),
            }
        )
    return found


def over_table(summary: Sequence[dict[str, Any]], style: box.Box) -> Table:
    """F1 of a type that one batch keeps."""
    table = Table(title="F1 of a type that is left in one batch only, best cluster, mean over cases", box=style)
    table.add_column("method", no_wrap=True)
    sets = sorted({name for row in summary for name in row["by_set"]})
    for column in ("cases", "F1", *sets, "ours minus"):
        table.add_column(column, justify="right")
    for row in summary:
        gap = "" if row["ours_minus"] is None else with_error(row["ours_minus"], row["ours_minus_error"])
        by_set = [f"{row['by_set'][name]:.3f}" if name in row["by_set"] else "" for name in sets]
        spread = "" if row["standard_error"] is None else f" ± {row['standard_error']:.3f}"
        table.add_row(title_of(*row["method"].split("/")), str(row["cases"]), f"{row['f1']:.3f}{spread}", *by_set, gap)
    return table


def held_out_summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Means over batches and seeds, by set and method."""
    names = ("ilisi", "ilisi_seen", "ilisi_of_batch", "ilisi_of_batch_seen", "ari_of_batch", "ari_of_batch_seen")
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if "ilisi" in run:
            groups.setdefault((run["set"], run["method"]), []).append(run)
    return [
        {
            "set": one,
            "method": method,
            "runs": len(group),
            **{name: fmean(run[name] for run in group) for name in names},
            "lowest_ratio": min(run["ilisi"] / max(run["ilisi_seen"], 1e-9) for run in group),
        }
        for (one, method), group in sorted(groups.items())
    ]


def held_out_table(summary: Sequence[dict[str, Any]], style: box.Box) -> Table:
    """iLISI with a batch that the fit has not seen, against a fit that saw it."""
    table = Table(
        title="Each batch left out of the fit in turn, unseen / seen; means over batches and seeds", box=style
    )
    for column in ("set", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("runs", "iLISI, all cells", "lowest ratio", "iLISI, its cells", "ARI, its cells"):
        table.add_column(column, justify="right")
    for row in summary:
        table.add_row(
            row["set"],
            TITLES[row["method"]],
            str(row["runs"]),
            f"{row['ilisi']:.3f} / {row['ilisi_seen']:.3f}",
            f"{row['lowest_ratio']:.2f}",
            f"{row['ilisi_of_batch']:.3f} / {row['ilisi_of_batch_seen']:.3f}",
            f"{row['ari_of_batch']:.3f} / {row['ari_of_batch_seen']:.3f}",
        )
    return table


def scale_table(runs: Sequence[Run], style: box.Box) -> Table:
    """The correction alone."""
    table = Table(title="Correction alone, 32 dimensions; exponent of s in N", box=style)
    table.add_column("method", no_wrap=True)
    for column in ("batches", "cells", "s", "CPU s", "peak MiB", "rounds", "variance between batches", "exponent"):
        table.add_column(column, justify="right")
    slopes = exponents(runs)
    done = [run for run in runs if "seconds" in run]
    for run in sorted(done, key=lambda run: (run["method"], run["batches"], run["cells"])):
        is_last = run["cells"] == max(one["cells"] for one in done if one["method"] == run["method"])
        slope = slopes.get((run["method"], run["batches"])) if is_last else None
        table.add_row(
            TITLES[run["method"]],
            str(run["batches"]),
            f"{run['cells']:,}",
            f"{run['seconds']:.1f}",
            f"{run['cpu_seconds']:.1f}",
            f"{run['peak_bytes'] / 2**20:.0f}",
            str(run.get("rounds", "")),
            f"{run['apart_before']:.3f} to {run['apart_after']:.3f}",
            "" if slope is None else f"{slope:.2f}",
        )
    return table
