"""How fast, how cheap and how random are shuffled batches, from this program and from its peers?

Every run is a process of its own, on the same cells; rounds are interleaved, so that a busy moment of the machine hits
all cases alike. The clock runs between whole reads; in the first round every row of two epochs, or of as many batches as
--check-seconds allow, is compared with the truth by its cell afterwards. The peers read values that are normalised already, as
float32; this program reads counts and normalises them on the way. All deliver the same values.

    python benchmarks/loader.py --data FOLDER --peer-python PYTHON --rounds 5

A peer that is not installed here may live in another interpreter, --peer-python. The settings of a peer are the fastest
of those its documentation suggests, tried before the rounds with the very batch, layout and step of the row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeds import data
from feeds.bars import judge
from feeds.measure import Feed
from feeds.run_case import find_cases
from record import Results, environment
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "loader.json"
CACHE = {
    False: "warm: earlier runs have read the files",
    True: "dropped before each run: sync, then posix_fadvise(DONTNEED) on the files of the case; the kernel may keep some",
}
PATHS = {"data": "FOLDER", "peer_python": "PYTHON", "out": "FILE"}
"""What stands in the recorded command for a path of this machine."""
ROW = ("cells", "genes", "is_cold", "batch_cells", "layout", "step_ms")
"""What is the same for the cases that are compared."""
KEY = ("case", *ROW)
BASELINE = "annbatch"
TRIES = 2
"""Of each setting of a peer; the better one counts, for the machine may have been busy."""
MEDIANS = (
    "cpu_us_per_cell",
    "main_cpu_us_per_cell",
    "wait_ms_per_batch",
    "peak_bytes",
    "baseline_bytes",
    "disk_bytes_per_cell",
    "first_batch_s",
    "import_s",
)
CHECKED = ("pair_recurrence", "dataset_mixing", "checked_rows", "checked_epochs")
FIELDS = {
    "cells_per_s": "median over rounds; best, lowest and highest beside it",
    "cpu_us_per_cell": "user and system time of all threads and child processes, over the timed part",
    "main_cpu_us_per_cell": "the same of the thread that takes the batches",
    "wait_ms_per_batch": "wall time until a batch is handed over",
    "peak_bytes": "highest memory up to the end of the timed part, imports included; of children what they do not share",
    "baseline_bytes": "memory after the imports, before opening",
    "disk_bytes_per_cell": "files that the case reads, labels included",
    "first_batch_s": "from before opening to the first batch, without imports",
    "import_s": "imports alone, without the start of the interpreter",
    "pair_recurrence": "chance that two cells of one batch share one in the next epoch, over that of random batches",
    "dataset_mixing": "entropy of the joined datasets in a batch, mean over cells, over that of all cells; 1 is perfect",
    "checked_rows": "rows compared with the truth, all of them right unless there is an error",
    "speed_ratio": "cells_per_s over that of annbatch in the same round, median",
    "cpu_ratio": "the same of cpu_us_per_cell; less is better",
}
"""What the columns mean."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data; made if missing")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--batch-cells", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--layouts", nargs="+", choices=["dense", "csr"], default=["dense", "csr"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="timed part of each run")
    parser.add_argument("--step-ms", type=float, nargs="+", default=[0.0, 20.0], help="sleep per batch: a busy trainer")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each run")
    parser.add_argument("--cases", nargs="+", choices=list(find_cases()), default=list(find_cases()), metavar="CASE")
    parser.add_argument("--peer-python", help="interpreter that holds the peers")
    parser.add_argument("--no-tune", action="store_true", help="peers with the first of their settings")
    parser.add_argument("--check-seconds", type=float, default=60.0, help="longest check of a run")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    return parser.parse_args(arguments)


class Child:
    """Runs cases in processes of their own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._cases = find_cases()
        self._python = {name: self._find_python(case) for name, case in self._cases.items() if name in options.cases}
        self._unprepared: dict[str, str] = {}

    def prepare(self, name: str, say: Callable[[str], None]) -> None:
        """Write what a case needs beside the shared files; a failure shows in its runs."""

        def make() -> None:
            done = self._call(name, ["--prepare"])
            if done.returncode:
                raise RuntimeError(self._reason(done))

        own = self._cases[name].prepare.__func__ is not Feed.prepare.__func__  # type: ignore[attr-defined]  bound method
        if own and self._python[name] is not None:
            try:
                data.make_part(self._options.data, name, make, say)
            except RuntimeError as error:
                self._unprepared[name] = f"not prepared: {error}"

    def run(self, row: dict[str, Any], *arguments: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
        """Measure one row once; what the child printed, or its error."""
        name, options = row["case"], self._options
        if self._python[name] is None:
            return {"error": f"not installed: {', '.join(self._cases[name].modules)}"}
        if row["layout"] not in self._cases[name].layouts:
            return {"error": "not offered"}
        if name in self._unprepared:
            return {"error": self._unprepared[name]}
        call = ["--batch-cells", str(row["batch_cells"]), "--layout", row["layout"], "--step-ms", str(row["step_ms"])]
        call += ["--seconds", str(options.seconds), "--check-seconds", str(options.check_seconds), *arguments]
        call += ["--cold"] if options.cold else []
        call += [] if settings is None else ["--settings", json.dumps(settings)]
        done = self._call(name, call)
        if done.returncode:
            return {"error": self._reason(done)}
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        problem = check_problem(outcome.get("check"))
        return {**outcome, "error": problem} if problem else outcome

    def _call(self, name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        python = self._python[name]
        assert python is not None
        call = [python, "-m", "feeds.run_case", "--case", name, "--data", str(self._options.data.resolve()), *arguments]
        limit = 600 + 20 * self._options.seconds + 2 * self._options.check_seconds
        try:
            return subprocess.run(call, cwd=HERE, capture_output=True, text=True, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(call, 1, "", f"no end after {limit:.0f} s")

    def _reason(self, done: subprocess.CompletedProcess[str]) -> str:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        return reason.replace(str(self._options.data.resolve()), "FOLDER").replace(str(HERE.parent), "REPOSITORY")

    def _find_python(self, case: type[Feed]) -> str | None:
        peer = self._options.peer_python
        order = [peer, sys.executable] if case.in_peer else [sys.executable, peer]
        return next((python for python in order if python and has_modules(python, case.modules)), None)


def has_modules(python: str, modules: Sequence[str]) -> bool:
    """Whether an interpreter finds all of these."""
    asked = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in {tuple(modules)!r}))"
    return subprocess.run([python, "-c", asked], check=False, capture_output=True).returncode == 0


def check_problem(found: dict[str, Any] | None) -> str | None:
    """What a check found wrong, in words."""
    if found is None:
        return None
    if found["wrong_rows"]:
        return f"check failed: {found['wrong_rows']} of {found['checked_rows']} rows are not what their cell is"
    if found["is_exact"] and (found["missed_cells"] or found["repeated_cells"]):
        return f"check failed: {found['missed_cells']} cells missed, {found['repeated_cells']} repeated in an epoch"
    return None


def find_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What to measure in every round, cases side by side."""
    shared = {"cells": options.cells, "genes": options.genes, "is_cold": options.cold}
    return [
        {**shared, "case": case, "batch_cells": batch_cells, "layout": layout, "step_ms": step_ms}
        for batch_cells in options.batch_cells
        for layout in options.layouts
        for step_ms in options.step_ms
        for case in options.cases
    ]


def tune(child: Child, row: dict[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try the settings of a case, in turns; the fastest, and what every try gave."""
    candidates = find_cases()[row["case"]].candidates
    if options.no_tune or len(candidates) == 1:
        return candidates[0], []
    tried: list[dict[str, Any]] = []
    for settings in candidates * TRIES:
        outcome = child.run(row, settings=settings)
        if is_absent(outcome):
            break
        kept = ("cells_per_s", "cpu_us_per_cell", "peak_bytes", "error")
        tried.append({"settings": settings, **{name: outcome[name] for name in kept if name in outcome}})
    best = max(tried, key=lambda one: one.get("cells_per_s", 0.0), default={"settings": candidates[0]})
    return best["settings"], tried


def in_words(row: dict[str, Any], outcome: dict[str, Any]) -> str:
    """One run, on a line."""
    where = f"{row['case']}  {row['layout']} {row['batch_cells']}  step {row['step_ms']:g} ms"
    if "error" in outcome:
        return f"{where}  {outcome['error']}"
    return f"{where}  {outcome['cells_per_s']:,.0f} cells/s  CPU {outcome['cpu_us_per_cell']:.2f} us/cell"


def command(options: argparse.Namespace) -> str:
    """The command line that repeats this run, without the paths of this machine."""
    words = ["python benchmarks/loader.py"]
    for name, value in vars(options).items():
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        else:
            shown = PATHS.get(name) or " ".join(map(str, value if isinstance(value, list) else [value]))
            words.append(f"{flag} {shown}")
    return " ".join(words)


def measure_all(options: argparse.Namespace, console: Console) -> int:
    """Prepare, tune and run all rounds; the number of rows that failed."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    data.prepare(options.data, options.cells, options.genes, say)
    child, rows, results = Child(options), find_rows(options), Results(options.out, (*KEY, "round"))
    for name in options.cases:
        child.prepare(name, say)
    held, ours = results.read(), {tuple(row[name] for name in KEY) for row in rows}
    kept = [run for run in held["runs"] if tuple(run[name] for name in KEY) not in ours]
    results.update(runs=kept, command=command(options), cache=CACHE[options.cold], columns=FIELDS)
    results.update(data=data.read_marker(options.data))
    where, chosen, tuning, failed = environment(), {}, [], set()
    for index, row in enumerate(rows):
        chosen[index], tried = tune(child, row, options)
        tuning += [{**row, "chosen": chosen[index], "tried": tried}] if tried else []
        for one in tried:
            say(f"tried {one['settings']}: {in_words(row, one)}")
    results.update(tuning=tuning)
    for number in range(options.rounds):
        for index, row in enumerate(rows):
            outcome = child.run(row, *([] if number else ["--check"]), "--seed", str(number), settings=chosen[index])
            results.add({**row, "round": number, **outcome}, where)
            failed |= {index} if "error" in outcome and not is_absent(outcome) else set()
            say(f"round {number + 1}/{options.rounds}  {in_words(row, outcome)}")
    return len(failed)


def is_absent(outcome: dict[str, Any]) -> bool:
    """Whether a row has no numbers because the case cannot give them."""
    return outcome.get("error", "").startswith(("not installed", "not offered"))


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each case, batch, layout and step; one with an error has no numbers but the error."""
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["round"]):
        grouped.setdefault(tuple(run[name] for name in KEY), []).append(run)
    rows = []
    for key, found in grouped.items():
        row: dict[str, Any] = {**dict(zip(KEY, key, strict=True)), "rounds": len(found)}
        errors = [run["error"] for run in found if "error" in run]
        baseline = grouped.get((BASELINE, *key[1:]), [])
        rows.append({**row, "error": errors[0]} if errors else {**row, **numbers(found, baseline)})
    return sorted(rows, key=lambda row: tuple(row[name] for name in ROW))


def numbers(found: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the rounds of one row."""
    speed = [run["cells_per_s"] for run in found]
    row: dict[str, Any] = {"cells_per_s": statistics.median(speed), "best": max(speed), "lowest": min(speed)}
    row["highest"] = row["best"]
    row |= {name: statistics.median(run[name] for run in found) for name in MEDIANS}
    checked = next((run["check"] for run in found if "check" in run), {})
    row |= {name: checked.get(name) for name in CHECKED}
    other = {run["round"]: run for run in baseline if "error" not in run}
    both = [(run, other[run["round"]]) for run in found if run["round"] in other]
    for name, field in (("speed_ratio", "cells_per_s"), ("cpu_ratio", "cpu_us_per_cell")):
        row[name] = statistics.median(run[field] / peer[field] for run, peer in both) if both else None
    return row | {"settings": found[0]["settings"]}


def table(rows: Sequence[dict[str, Any]], style: box.Box) -> Table:
    """All rows, side by side where they may be compared."""
    shown = Table(title="Shuffled batches", box=style)
    titles = ("case", "layout", "batch", "step ms", "cells/s", "best", "range", "wait ms", "CPU us", "main CPU us")
    titles += (
        "peak MiB",
        "imported MiB",
        "disk B",
        "first s",
        "import s",
        "recurrence",
        "mixing",
        "checked",
        "x annbatch",
        "x its CPU",
    )
    for index, title in enumerate(titles):
        shown.add_column(title, justify="left" if index < 2 else "right", no_wrap=index < 1)
    for index, row in enumerate(rows):
        ends = index + 1 == len(rows) or [row[name] for name in ROW] != [rows[index + 1][name] for name in ROW]
        shown.add_row(*cells_of(row), end_section=ends)
    return shown


def cells_of(row: dict[str, Any]) -> list[str]:
    """One row in words."""
    head = [row["case"], row["layout"], str(row["batch_cells"]), f"{row['step_ms']:g}"]
    if "error" in row:
        return [*head, row["error"]]
    recurrence = row["pair_recurrence"]
    return [
        *head,
        f"{row['cells_per_s']:,.0f}",
        f"{row['best']:,.0f}",
        f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
        f"{row['wait_ms_per_batch']:.1f}",
        f"{row['cpu_us_per_cell']:.2f}",
        f"{row['main_cpu_us_per_cell']:.2f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
        f"{row['baseline_bytes'] / 2**20:.0f}",
        f"{row['disk_bytes_per_cell']:.0f}",
        f"{row['first_batch_s']:.2f}",
        f"{row['import_s']:.2f}",
        "" if recurrence is None else f"{recurrence:.2f}",
        "" if row["dataset_mixing"] is None else f"{row['dataset_mixing']:.3f}",
        "" if row["checked_rows"] is None else f"{row['checked_rows']:,}",
        *("" if row[name] is None else f"{row[name]:.2f}" for name in ("speed_ratio", "cpu_ratio")),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 if a row failed."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 240)
    failed = measure_all(options, console)
    results = Results(options.out, (*KEY, "round"))
    held = results.read()
    rows = summarise(held["runs"])
    bars = judge(rows, held.get("tuning", []))
    results.update(summary=rows, bars=bars)
    size = (options.cells, options.genes, options.cold)
    shown = [row for row in rows if (row["cells"], row["genes"], row["is_cold"]) == size]
    console.print(table(shown, box.SIMPLE_HEAD))
    console.print(f"Page cache {CACHE[options.cold]}.", highlight=False)
    for bar in bars:
        goal = (
            "" if bar["bar"] is None else f" (at {bar['at']} {bar['bar']:.3g}: {'met' if bar['is_met'] else 'missed'})"
        )
        console.print(f"{bar['what']}: {bar['value']:.3g}{goal}", highlight=False, markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
