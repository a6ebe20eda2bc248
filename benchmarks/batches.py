"""Are cells of different batches brought together, and types kept apart? On the sets with batches, beside peers.

Every method is told the true number of clusters; on its latent k-means and our consensus (of at most 1,000 landmarks, the
others by the nearest center) are run, beside labels of its own. No epoch, seed or setting is picked by a score. Peers run as
child processes in an environment of their own (`--peer-python`); times leave its imports out, peaks do not.

    python benchmarks/batches.py --peer-python PEERS/bin/python --threads 1 --resume
    python benchmarks/batches.py --report                          # the tables again, from the JSON file
    python benchmarks/batches.py --over-correction ...             # a type that one batch alone has: is it kept apart?
    python benchmarks/batches.py --held-out ...                    # a batch that the fit has not seen: is it mixed in?
    python benchmarks/batches.py --scale ...                       # the correction alone, up to a million cells
    python benchmarks/batches.py --picture kang12k_1287g ...       # UMAP by batch and by type

Ours reads the cells from memory here. scVI: `scvi` at its defaults (`--scvi-epochs` cuts it short), `scvi-equal` with the
epochs that fit into the mean CPU seconds that ours took on the set.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from integration.children import PeerError, Peers
from integration.latents import FORMS, METHODS, TITLES, Options, packages_of, warm_up
from integration.questions import HELD_OUT_METHODS, HELD_OUT_SETS, OVER_METHODS, OVER_SETS
from integration.scores import MIXING
from quality import FAILURES, THREAD_SETTINGS
from record import Results, environment
from rich import box
from rich.console import Console
from sets import GROUPS, find_set, label_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from integration.cells import BatchedCells

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = tuple(name for name in METHODS if name not in FORMS)
ASKED = {"all": tuple(METHODS), "forms": tuple(FORMS), "peers": PEERS}
"""Names of several methods; `forms` are all of ours."""
MODES = ("compare", "over_correction", "held_out", "scale", "picture")
KEYS = {
    "compare": ("set", "method", "seed"),
    "over_correction": ("set", "type", "batch", "method", "seed"),
    "held_out": ("set", "batch", "method", "seed"),
    "scale": ("method", "cells", "batches", "seed"),
}
FILES = {
    "compare": "batches.json",
    "over_correction": "batches_over_correction.json",
    "held_out": "batches_held_out.json",
    "scale": "batches_scale.json",
    "picture": "batches.png",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument(
        "--sets", nargs="+", help="only these files, without .h5ad; others than the known as NAME=COLUMN"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this minus 1")
    parser.add_argument(
        "--methods", nargs="+", choices=[*ASKED, *METHODS], metavar="METHOD", help=f"of {', '.join([*METHODS, *ASKED])}"
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter of the environment with the peers")
    parser.add_argument("--scvi-epochs", type=int, help="of scvi; default: its own choice, up to 400")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the tables of what the file holds")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--out", type=Path, help="JSON file, or the picture; default in benchmarks/results")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--over-correction", action="store_true", help="F1 of a type that is left in one batch only")
    mode.add_argument("--held-out", action="store_true", help="leave each batch out of the fit, and predict it")
    mode.add_argument("--scale", action="store_true", help="the correction alone on simulated cells")
    mode.add_argument("--picture", metavar="SET", help="draw one set")
    parser.add_argument("--cases", type=int, default=12, help="types and batches of each set for --over-correction")
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 1_000_000], help="N for --scale")
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 20, 100], help="batches for --scale")
    options = parser.parse_args(arguments)
    options.mode = next((name for name in MODES[1:] if getattr(options, name)), MODES[0])
    options.out = options.out or RESULTS / FILES[options.mode]
    is_fit = not options.report and options.mode != "scale"
    if is_fit and (options.data is None or not Path(options.data).is_dir()):
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    return options


def methods_of(options: argparse.Namespace) -> list[str]:
    """What to run, each once."""
    if options.mode == "picture":
        from integration.picture import SHOWN

        default: Sequence[str] = SHOWN
    else:
        default = {
            "compare": ["all"],
            "over_correction": OVER_METHODS,
            "held_out": HELD_OUT_METHODS,
            "scale": ["ours", "pca50-harmony"],
        }[options.mode]
    asked = options.methods or default
    return list(dict.fromkeys(name for one in asked for name in ASKED.get(one, (one,))))


def find_files(options: argparse.Namespace) -> list[tuple[Path, str]]:
    """The files to read, small ones first, and their batch columns."""
    defaults = {"over_correction": OVER_SETS, "held_out": HELD_OUT_SETS, "picture": (options.picture,)}
    asked = options.sets or defaults.get(options.mode, GROUPS["batches"])
    found = []
    for one in asked:
        name, _, column = one.partition("=")
        column = column or find_set(name).batch
        path = Path(options.data) / f"{name}.h5ad"
        if column is None:
            raise PeerError(f"{name} has no batch column that is known here; name it: {name}=COLUMN.")
        if path.exists():
            found.append((path, column))
        elif options.sets or options.picture:
            raise PeerError(f"{options.data} holds no {path.name}.")
    if not found:
        raise PeerError(f"{options.data} holds none of {', '.join(asked)}; name others by --sets NAME=COLUMN.")
    return sorted(found, key=lambda item: item[0].stat().st_size)


def open_sets(options: argparse.Namespace) -> Iterator[BatchedCells]:
    """The sets, one at a time."""
    from integration.cells import BatchedCells

    for path, column in find_files(options):
        cells = BatchedCells.read(path, column, options.label)
        yield cells
        cells.forget()


def attempt(make: Callable[[], dict[str, Any]], path: str) -> dict[str, Any]:
    """What a run gives; one that fails is recorded with its message and runs again at the next --resume."""
    try:
        return make()
    except FAILURES as error:  # PeerError among them
        return {"error": f"{type(error).__name__}: {error}".replace(path, "")}


class Recorder:
    """Adds runs to the file, and says so.

    Parameters
    ----------
    options
        ``out``, ``mode``, ``resume``, ``data``.
    console
        Where to print.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.results = Results(options.out, KEYS[options.mode])
        self.names = KEYS[options.mode]
        self.done = self.results.done() if options.resume else set()
        self.console, self.folder = console, f"{options.data}/"
        self.where, self.failed = environment(), 0

    def lacks(self, *key: Any) -> bool:
        """Whether a run is still to be made."""
        return key not in self.done

    def add(self, key: tuple[Any, ...], make: Callable[[], dict[str, Any]]) -> None:
        """Make and keep one run."""
        outcome = attempt(make, self.folder)
        self.results.add({**dict(zip(self.names, key, strict=True)), **outcome}, self.where)
        self.failed += "error" in outcome
        self.console.print(*key, in_words(outcome), highlight=False, markup=False, soft_wrap=True)


def in_words(outcome: dict[str, Any]) -> str:
    """One run, on a line."""
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    parts = [
        f"{how} " + " ".join(f"{name} {scores[name]:.3f}" for name in ("f1", "ari") if name in scores)
        for how, scores in outcome.get("labels", {}).items()
    ]
    parts += [f"{name} {outcome[name]:.3f}" for name in (*MIXING, "ilisi_seen", "apart_after") if name in outcome]
    parts += [f"{outcome['seconds']:.1f} s"] if "seconds" in outcome else []
    return "  ".join(parts)


def one_run(cells: BatchedCells, method: str, seed: int, told: Options) -> dict[str, Any]:
    """One method on one set, with all scores."""
    from integration.scores import all_scores

    found = METHODS[method].run(cells, seed, told)
    return {
        **all_scores(found.latent, found.labels, cells, seed),
        "n_true": cells.n_types,
        "seconds": round(found.cost.seconds, 3),
        "cpu_seconds": round(found.cost.cpu_seconds, 3),
        "peak_bytes": found.cost.peak_bytes,
        **found.about,
    }


def describe(cells: BatchedCells) -> dict[str, Any]:
    """What the JSON file says about a set."""
    return {
        "cells": cells.n_cells,
        "genes": int(cells.adata.n_vars),
        "classes": cells.n_types,
        "batch": cells.column,
        "batches": len(set(cells.batches.tolist())),
        "labels": label_kind(cells.name),
    }


def compare_methods(options: argparse.Namespace, told: Options, recorder: Recorder) -> None:
    """Every method on every set."""
    names = methods_of(options)
    settings = {name: {"title": TITLES[name], "settings": METHODS[name].settings} for name in names}
    recorder.results.update(methods={**recorder.results.read().get("methods", {}), **settings})
    for cells in open_sets(options):
        held = recorder.results.read()
        recorder.results.update(sets={**held.get("sets", {}), cells.name: describe(cells)})
        for seed in range(options.seeds):
            for name in names:
                if recorder.lacks(cells.name, name, seed):
                    recorder.add((cells.name, name, seed), partial(one_run, cells, name, seed, told))


def ask_over_correction(options: argparse.Namespace, told: Options, recorder: Recorder) -> None:
    """A type that one batch alone keeps, for the first `--cases` of a seeded order of types and batches."""
    from integration.questions import find_cases, over_correction

    for cells in open_sets(options):
        for case in find_cases(cells, seed=0)[: options.cases]:
            left = case.apply(cells)
            for seed in range(options.seeds):
                for name in methods_of(options):
                    key = (cells.name, case.kept_type, case.batch, name, seed)
                    if recorder.lacks(*key):
                        recorder.add(key, partial(over_correction, left, case, name, seed, told))


def ask_held_out(options: argparse.Namespace, told: Options, recorder: Recorder) -> None:
    """Each batch in turn left out of the fit."""
    from integration.questions import fit_whole, held_out

    for cells in open_sets(options):
        for seed in range(options.seeds):
            for name in methods_of(options):
                whole = cache(partial(fit_whole, cells, name, seed))  # once for all batches, if any is to be run
                for batch in sorted(set(cells.batches.tolist())):
                    key = (cells.name, batch, name, seed)
                    if recorder.lacks(*key):
                        recorder.add(key, partial(held_out, cells, batch, name, seed, whole))


def ask_scale(options: argparse.Namespace, told: Options, recorder: Recorder) -> None:
    """The correction alone, few cells first."""
    from integration.scale import run_case

    for n_cells in sorted(options.cells):
        for n_batches in options.batches:
            for seed in range(options.seeds):
                for name in methods_of(options):
                    if recorder.lacks(name, n_cells, n_batches, seed):
                        recorder.add(
                            (name, n_cells, n_batches, seed),
                            partial(run_case, name, n_cells, n_batches, seed, told.peers),
                        )


ASK = {
    "compare": compare_methods,
    "over_correction": ask_over_correction,
    "held_out": ask_held_out,
    "scale": ask_scale,
}


def report(options: argparse.Namespace, console: Console) -> None:
    """Sum up the whole file, write the summary into it, and show the tables."""
    from integration import tables

    results = Results(options.out, KEYS[options.mode])
    held = results.read()
    runs, style = (
        [run for run in held["runs"] if "error" not in run],
        box.MARKDOWN if options.markdown else box.SIMPLE_HEAD,
    )
    if not runs:
        console.print(f"{options.out.name} holds no finished run.")
    elif options.mode == "compare":
        summary = tables.summarise(runs)
        results.update(summary=summary)
        for score in ("ari", *MIXING):
            console.print(tables.set_table(runs, held["sets"], score, style))
        console.print(tables.mean_table(summary, style))
        if summary["pairs"]:
            console.print(tables.pair_table(summary["pairs"], style))
        console.print("Ours reads cells from memory. Peaks have all that is imported, times of peers do not.")
    elif options.mode == "scale":
        console.print(tables.scale_table(runs, style))
    else:
        summarise, show = {
            "over_correction": (tables.over_summary, tables.over_table),
            "held_out": (tables.held_out_summary, tables.held_out_table),
        }[options.mode]
        rows = summarise(runs)
        results.update(summary=rows)
        console.print(show(rows, style))
    for run in held["runs"]:
        if "error" in run:
            key = " ".join(str(run[name]) for name in KEYS[options.mode])
            console.print(f"failed: {key}: {run['error']}", markup=False, highlight=False, soft_wrap=True)


def cpu_of_ours(options: argparse.Namespace, name: str) -> float | None:
    """Mean CPU seconds of `ours` on a set, of the runs that the file holds."""
    runs = Results(options.out, KEYS["compare"]).read()["runs"]
    seconds = [
        run["cpu_seconds"] for run in runs if (run["set"], run["method"]) == (name, "ours") and "error" not in run
    ]
    return fmean(seconds) if seconds else None


def run(options: argparse.Namespace, console: Console) -> int:
    """Make all runs that are asked for; the number of those that failed."""
    peers = Peers(options.peer_python, options.threads)
    names = methods_of(options)
    packages = packages_of(names)
    peers.check(packages)
    told = Options(peers, options.scvi_epochs, partial(cpu_of_ours, options))
    if options.mode != "scale":
        find_files(options)  # a name that is not there is told before any work
        warm_up(names)
    if options.mode == "picture":
        from integration.picture import draw

        for cells in open_sets(options):
            draw(cells, tuple(names), 0, told, options.out)
        console.print(f"wrote {options.out}")
        return 0
    recorder = Recorder(options, console)
    ASK[options.mode](options, told, recorder)
    return recorder.failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 if a run failed, 2 if it could not begin."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        failed = 0 if options.report else run(options, console)
    except PeerError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    if options.mode != "picture":
        report(options, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
