"""The paper's Figure 4: this program beside other ways to cluster, on the labelled sets of a folder.

The peers are written anew from their papers, or are libraries; benchmarks/clustering_peers/ says for each what is as
published, what differs, and whom to cite. Each sees the same genes (2,000 variable ones), gives its last state, and no
label chooses anything; those that take K are told the true one. SIMLR-like runs on sets of at most 1,500 cells. The
training of the deep ones is bounded in gradient steps, for a CPU. scGAC and GraphSCC of the figure are left out.

    python benchmarks/figure4.py --data FOLDER --threads 1 --peer-python ENV/bin/python --resume
    python benchmarks/figure4.py --report             # the tables again, from the JSON file

scVI needs an environment of its own: pip install 'scvi-tools==1.4.2', named by --peer-python; without it, it is left out.
Peak memory is that of the process that does the work, imports included. Sets are taken small first, all methods of one
seed and set in turn, so that a run that is stopped has whole rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality import THREAD_SETTINGS, describe_set, in_words, pair_table, run_fit, score_table, with_error
from record import Results, environment
from rich import box
from rich.console import Console
from rich.table import Table
from sets import GROUPS, family, is_chosen, label_kind
from summary import TIE, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clustering_peers.cells import CountedSet

OUT = Path(__file__).resolve().parent / "results" / "figure4.json"
KEY = ("set", "method", "seed")
REFERENCES = ("scamac", "consensus")
"""Those that every other method is compared with."""
SCORES = {"ari": "ARI", "nmi": "NMI", "neighbor_accuracy": "15-NN accuracy of the labels in the latent"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to this minus 1")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="some of them; default: all that can run")
    parser.add_argument("--group", choices=GROUPS, default="single", help="which sets of sets.py; others are single")
    parser.add_argument("--sets", nargs="+", help="only these files, without .h5ad")
    parser.add_argument("--max-cells", type=int, help="leave larger sets out")
    parser.add_argument("--peer-python", type=Path, help="interpreter of the environment that has scvi-tools")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the tables of what the file holds")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    if not options.report and (options.data is None or not Path(options.data).is_dir()):
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    return options


def choose(asked: Sequence[str] | None, has_scvi: bool) -> list[str]:
    """The methods to run, in the order of the table."""
    from clustering_peers.table import NAMES, SCVI

    if asked is None:
        return [name for name in NAMES if has_scvi or name not in SCVI]
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise SystemExit(f"--methods {' '.join(unknown)}: not known; use some of {', '.join(NAMES)}.")
    return [name for name in NAMES if name in asked]


def plan(
    options: argparse.Namespace, sets: Sequence[CountedSet], names: Sequence[str], done: set[tuple[Any, ...]]
) -> list[tuple[CountedSet, str, int]]:
    """The fits to run, small sets first, seed by seed."""
    from clustering_peers.table import LIMITS

    return [
        (data, name, seed)
        for data in sorted(sets, key=lambda data: data.n_cells)
        for seed in range(options.seeds)
        for name in names
        if data.n_cells <= LIMITS.get(name, data.n_cells) and not (options.resume and (data.name, name, seed) in done)
    ]


def run(options: argparse.Namespace, console: Console) -> int:
    """Run all fits that are asked for; the number of those that failed."""
    import torch
    from clustering_peers.cells import CountedSet
    from clustering_peers.table import LIMITS, find_all
    from integration.children import Peers
    from methods import warm_up

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    paths = sorted(Path(options.data).glob("*.h5ad"))
    chosen = [path for path in paths if is_chosen(path.stem, options.group, options.sets)]
    sets = [CountedSet(path, options.label) for path in chosen]
    sets = [data for data in sets if options.max_cells is None or data.n_cells <= options.max_cells]
    results = Results(options.out, KEY)
    names = choose(options.methods, options.peer_python is not None)
    methods = find_all(names, Peers(options.peer_python, options.threads))
    fits = plan(options, sets, names, results.done())
    held = results.read()
    described = {data.name: describe_set(data) for data in sets}
    settings = {name: {"title": method.title, "settings": method.settings} for name, method in methods.items()}
    results.update(
        sets={**held.get("sets", {}), **described}, methods={**held.get("methods", {}), **settings}, limits=LIMITS
    )
    used = {name for _, name, _ in fits}
    if used & {"desc", "scvi-leiden"}:
        used.add("leiden-1")  # the same graph
    warm_up(used, max((data.n_cells for data, _, _ in fits), default=0))
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


def report(options: argparse.Namespace, console: Console) -> None:
    """Sum up the whole file, write the summary into it, and show the tables."""
    from clustering_peers.table import FINDS_K, NAMES

    results = Results(options.out, KEY)
    held = results.read()
    runs = held["runs"]
    methods = [name for name in NAMES if any(run["method"] == name and "ari" in run for run in runs)]
    if not methods:
        console.print(f"{options.out.name} holds no finished fit.")
        return
    references = [name for name in REFERENCES if name in methods] or methods[:1]
    summary = summarise(runs, methods, references, label_kind, family)
    results.update(summary=summary)
    style = box.MARKDOWN if options.markdown else box.SIMPLE_HEAD
    titles = {name: held["methods"][name]["title"] + (" *" if name in FINDS_K else "") for name in methods}
    for score, title in SCORES.items():
        with_score = [name for name in methods if any(run["method"] == name and score in run for run in runs)]
        if with_score:
            console.print(score_table(held, score, title, {name: titles[name] for name in with_score}, style))
    console.print(cost_table(held, summary["all"], titles, style))
    console.print(pair_table(summary["all"]["pairs"], titles, "all", style))
    for run in [run for run in runs if "error" in run]:
        console.print(f"failed: {run['set']} {run['method']} seed {run['seed']}: {run['error']}", markup=False)
    console.print(f"* finds its own number of clusters. Tie: less than {TIE}.", markup=False)


def cost_table(held: dict[str, Any], part: dict[str, Any], titles: dict[str, str], style: box.Box) -> Table:
    """Means over the sets that a method was run on, ours minus it on the same sets, CPU seconds and peak memory."""
    best: dict[tuple[str, int], float] = {}
    for run in held["runs"]:
        if "ari" in run:
            key = run["set"], run["seed"]
            best[key] = max(best.get(key, -1.0), run["ari"])
    table = Table(title="Means over the sets that each was run on; scAMAC minus it on the same sets", box=style)
    table.add_column("method", no_wrap=True)
    heads = ("sets", "ARI", "NMI", "15-NN", "scAMAC minus it, ARI", "NMI", "won / lost / tied", "best of its set")
    for column in (*heads, "CPU s, all sets", "peak MiB"):
        table.add_column(column, justify="right")
    pairs = {(pair["other"], pair["score"]): pair for pair in part["pairs"] if pair["method"] == REFERENCES[0]}
    for name, title in titles.items():
        facts, mine = part["methods"][name], [run for run in held["runs"] if run["method"] == name and "ari" in run]
        leads = sum(run["ari"] > best[run["set"], run["seed"]] - TIE for run in mine)
        ari, nmi = pairs.get((name, "ari")), pairs.get((name, "nmi"))
        table.add_row(
            title,
            str(facts["sets"]),
            f"{facts['ari']:.3f}",
            f"{facts['nmi']:.3f}",
            "" if facts["neighbor_accuracy"] is None else f"{facts['neighbor_accuracy']:.3f}",
            *("" if pair is None else with_error(pair["difference"], pair["standard_error"]) for pair in (ari, nmi)),
            "" if ari is None else f"{ari['wins']} / {ari['losses']} / {ari['ties']}",
            f"{leads} of {len(mine)}",
            f"{sum(run['cpu_seconds'] for run in mine) / len({run['seed'] for run in mine}):.0f}",
            f"{facts['peak_bytes'] / 2**20:.0f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 if a fit failed."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 280)
    failed = 0 if options.report else run(options, console)
    report(options, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
