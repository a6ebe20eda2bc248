"""How well do the labels agree with the known cell types, on every labelled set of a folder?

Every method sees a set at full size, once per seed; its last state is scored by ARI and NMI (unlabelled cells are
clustered with the rest and left out of the score). No epoch, seed or setting is picked by a score. Methods that need
the number of clusters are told the true one; `auto` and Leiden at a fixed resolution are not. What the latent keeps, ours
and the peers' components, is scored by the labels of the 15 nearest neighbours, whatever the clusters.

    python benchmarks/quality.py --data FOLDER --threads 1 --resume
    python benchmarks/quality.py --report              # the tables again, from the JSON file

All fits share one process, so that imports are paid once. Peak memory is that of this process during the fit, with all
that is imported; seconds are of one run each, the file's pages in the cache.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import Results, environment
from rich import box
from rich.console import Console
from rich.table import Table
from sets import GROUPS as SET_GROUPS
from sets import family, is_chosen, label_kind
from summary import TIE, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from methods import LabelledSet, Method

OUT = Path(__file__).resolve().parent / "results" / "quality.json"
KEY = ("set", "method", "seed")
FAILURES = (ValueError, ArithmeticError, RuntimeError, OSError)
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

WHOLE = ("scamac", "scamac-auto", "scamac-paper")
OURS = (*WHOLE, "consensus", "consensus-auto")
PEERS = ("pca50-kmeans", "pca50-ward", "leiden-1", "leiden-0.5", "leiden-k")
GROUPS = {"all": OURS + PEERS, "ours": OURS, "peers": PEERS}
"""OURS are compared with every other method; PCA50 + Ward takes their place where none was run."""

SCORES = {
    "ari": "ARI",
    "neighbor_accuracy": "15-NN accuracy of the labels in the latent",
    "transfer_accuracy": "Accuracy on a donor held out, labelled by 15-NN in the latent",
    "transfer_macro_f1": "Macro F1 on a donor held out, labelled by 15-NN in the latent",
}
"""Score to the title of its table."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this minus 1")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["all"],
        choices=[*GROUPS, *GROUPS["all"]],
        metavar="METHOD",
        help=f"of {', '.join(GROUPS['all'])}, or {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--group", choices=SET_GROUPS, default="single", help="which sets of sets.py; others are single"
    )
    parser.add_argument("--sets", nargs="+", help="only these files, without .h5ad, of whatever group")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the tables of what the file holds")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument(
        "--paper-max-cells", type=int, default=1500, help="largest set for the paper config, which is slow"
    )
    parser.add_argument("--paper-seeds", type=int, default=1, help="seeds for the paper config")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    if not options.report and (options.data is None or not Path(options.data).is_dir()):
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    return options


def plan(
    options: argparse.Namespace, sets: Sequence[LabelledSet], done: set[tuple[Any, ...]]
) -> list[tuple[LabelledSet, str, int]]:
    """The fits to run, small sets first, seed by seed."""
    wanted = list(dict.fromkeys(name for asked in options.methods for name in GROUPS.get(asked, (asked,))))
    # First the fits that share nothing, so that what the others keep in memory does not count for them.
    stages = [[name for name in wanted if name in WHOLE], [name for name in wanted if name not in WHOLE]]
    fits = []
    for data in sorted(sets, key=lambda data: data.n_cells):
        for seed, method in [(seed, name) for stage in stages for seed in range(options.seeds) for name in stage]:
            is_limited = method == "scamac-paper" and (
                data.n_cells > options.paper_max_cells or seed >= options.paper_seeds
            )
            is_done = options.resume and (data.name, method, seed) in done
            if not is_limited and not is_done:
                fits.append((data, method, seed))
    return fits


def run_fit(method: Method, data: LabelledSet, seed: int) -> dict[str, Any]:
    """One fit and its scores; a fit that fails is recorded with its message and runs again at the next --resume."""
    try:
        labels, cost, latent = method.fit(data, seed)
    except FAILURES as error:
        return {"error": f"{type(error).__name__}: {error}".replace(str(data.path), data.path.name)}
    return {
        **data.score(labels),
        **({} if latent is None else data.score_latent(latent)),
        "n_clusters": len(set(labels.tolist())),
        "n_true": data.n_true,
        "seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
        "peak_bytes": cost.peak_bytes,
    }


def run(options: argparse.Namespace, console: Console) -> int:
    """Run all fits that are asked for; the number of those that failed."""
    from methods import LabelledSet, find_methods, warm_up

    paths = sorted(Path(options.data).glob("*.h5ad"))
    sets = [LabelledSet(path, options.label) for path in paths if is_chosen(path.stem, options.group, options.sets)]
    results = Results(options.out, KEY)
    fits = plan(options, sets, results.done())
    names = {name for _, name, _ in fits}
    methods = find_methods(names)
    held = results.read()
    described = {data.name: describe_set(data) for data in sets}
    settings = {name: {"title": method.title, "settings": method.settings} for name, method in methods.items()}
    results.update(sets={**held.get("sets", {}), **described}, methods={**held.get("methods", {}), **settings})
    if "scamac-paper" in names:
        limit = f"sets of at most {options.paper_max_cells} cells, {options.paper_seeds} seed(s)"
        results.update(limits={**held.get("limits", {}), "scamac-paper": limit})
    warm_up(names, max((data.n_cells for data, _, _ in fits), default=0))
    where, failed, began = environment(), 0, time.perf_counter()
    for index, (data, name, seed) in enumerate(fits):
        outcome = run_fit(methods[name], data, seed)
        results.add({"set": data.name, "method": name, "seed": seed, **outcome}, where)
        failed += "error" in outcome
        left = (time.perf_counter() - began) / (index + 1) * (len(fits) - index - 1)
        line = f"{index + 1}/{len(fits)}  {data.name}  {name}  seed {seed}  {in_words(outcome)}  ({left / 60:.0f} min left)"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if index + 1 == len(fits) or fits[index + 1][0] is not data:
            data.forget()
    return failed


def in_words(outcome: dict[str, Any]) -> str:
    """One fit, on a line."""
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    kept = f"15-NN {outcome['neighbor_accuracy']:.3f}  " if "neighbor_accuracy" in outcome else ""
    return (
        f"ARI {outcome['ari']:.3f}  NMI {outcome['nmi']:.3f}  {kept}K {outcome['n_clusters']}/{outcome['n_true']}  "
        f"{outcome['seconds']:.1f} s  {outcome['peak_bytes'] / 2**20:.0f} MiB"
    )


def describe_set(data: LabelledSet) -> dict[str, Any]:
    """What the JSON file says about a set."""
    return {
        "cells": data.n_cells,
        "genes": data.n_genes,
        "density": round(data.density, 4),
        "classes": data.n_true,
        "unlabelled": int((~data.is_labelled).sum()),
        "labels": label_kind(data.name),
        "family": family(data.name),
    }


def report(options: argparse.Namespace, console: Console) -> None:
    """Sum up the whole file, write the summary into it, and show the tables."""
    results = Results(options.out, KEY)
    held = results.read()
    runs = held["runs"]
    methods = [name for name in GROUPS["all"] if any(run["method"] == name and "ari" in run for run in runs)]
    if not methods:
        console.print(f"{options.out.name} holds no finished fit.")
        return
    references = [name for name in OURS if name in methods] or ["pca50-ward"]
    summary = summarise(runs, methods, references, label_kind, family)
    results.update(summary=summary)
    style = box.MARKDOWN if options.markdown else box.SIMPLE_HEAD
    titles = {name: held["methods"][name]["title"] for name in methods}
    for score, title in SCORES.items():
        with_score = [name for name in methods if any(run["method"] == name and score in run for run in runs)]
        if with_score:
            console.print(score_table(held, score, title, {name: titles[name] for name in with_score}, style))
    console.print(mean_table(summary, titles, style))
    for part in ("all", "experiment"):
        if part in summary:
            console.print(pair_table(summary[part]["pairs"], titles, part, style))
    for name, limit in held.get("limits", {}).items():
        console.print(f"{titles.get(name, name)}: {limit} only, by --paper-max-cells and --paper-seeds.")
    broken = [run for run in runs if "error" in run]
    for run in broken:
        console.print(f"failed: {run['set']} {run['method']} seed {run['seed']}: {run['error']}", markup=False)
    console.print("Consensus only: the consensus on the landmarks' input, others to the nearest center; no network.")
    console.print(f"Peak memory is that of one process for all methods, imports included. Tie: less than {TIE}.")


def score_table(held: dict[str, Any], score: str, title: str, titles: dict[str, str], style: box.Box) -> Table:
    """One score of every set that has it, mean over seeds."""
    from summary import set_means, set_scores

    table = Table(title=f"{title}, mean over seeds", box=style)
    for column in ("set", "labels", "cells", "K"):
        table.add_column(column, justify="left" if column in ("set", "labels") else "right", no_wrap=True)
    for method in titles.values():
        table.add_column(method, justify="right")
    by_method = [set_means(set_scores(held["runs"], method, score)) for method in titles]
    for name, facts in sorted(held["sets"].items(), key=lambda item: item[1]["cells"]):
        scores = [f"{means[name]:.3f}" if name in means else "" for means in by_method]
        if any(scores):
            table.add_row(name, facts["labels"], str(facts["cells"]), str(facts["classes"]), *scores)
    return table


def mean_table(summary: dict[str, Any], titles: dict[str, str], style: box.Box) -> Table:
    """Means over sets, by kind of label."""
    parts = list(summary)
    table = Table(title="Means over sets", box=style)
    table.add_column("method", no_wrap=True)
    for column in (
        "sets",
        "ARI",
        "NMI",
        "15-NN",
        *(f"ARI, {part}" for part in parts[1:]),
        "sd of seeds",
        "K ± 1",
        "s",
        "peak MiB",
    ):
        table.add_column(column, justify="right")
    for name, title in titles.items():
        of = {part: summary[part]["methods"][name] for part in parts}
        total = of["all"]
        by_kind = [f"{of[part]['ari']:.3f} ({of[part]['sets']})" if of[part]["sets"] else "" for part in parts[1:]]
        spread = total["ari_sd_over_seeds"]
        table.add_row(
            title,
            str(total["sets"]),
            f"{total['ari']:.3f}",
            f"{total['nmi']:.3f}",
            "" if total["neighbor_accuracy"] is None else f"{total['neighbor_accuracy']:.3f}",
            *by_kind,
            "" if spread is None else f"{spread:.3f}",
            f"{100 * total['count_within_1']:.0f} %",
            f"{total['seconds']:.0f}",
            f"{total['peak_bytes'] / 2**20:.0f}",
        )
    return table


def pair_table(pairs: Sequence[dict[str, Any]], titles: dict[str, str], part: str, style: box.Box) -> Table:
    """Paired differences, one row for each pair of methods."""
    table = Table(title=f"Paired differences, {part} labels (± standard error over sets; over families)", box=style)
    table.add_column("method")
    table.add_column("minus")
    for column in ("sets", "ARI", "ARI, families", "won / lost / tied", "NMI", "15-NN"):
        table.add_column(column, justify="right")
    by_score = {(pair["score"], pair["method"], pair["other"]): pair for pair in pairs}
    for pair in pairs:
        if pair["score"] == "ari":
            twins = [by_score.get((score, pair["method"], pair["other"])) for score in ("nmi", "neighbor_accuracy")]
            table.add_row(
                titles[pair["method"]],
                titles[pair["other"]],
                str(pair["sets"]),
                with_error(pair["difference"], pair["standard_error"]),
                with_error(pair["family_difference"], pair["family_standard_error"]),
                f"{pair['wins']} / {pair['losses']} / {pair['ties']}",
                *("" if twin is None else with_error(twin["difference"], twin["standard_error"]) for twin in twins),
            )
    return table


def with_error(value: float, error: float | None) -> str:
    """Signed value and its standard error."""
    return f"{value:+.3f}" if error is None else f"{value:+.3f} ± {error:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 if a fit failed."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 200)
    failed = 0 if options.report else run(options, console)
    report(options, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
