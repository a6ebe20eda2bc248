"""How fast is one GPU, how much of its memory is taken, and does it give the numbers of the CPU?

Six parts: parity with the CPU, the feed onto the device, the training step and how much of it the device waits for data, the
sweep, attention and the similarity of Eq. (15), and the highest device memory at the sizes of two sets before gene selection
and of a million cells. Every time ends when the device is done; medians of five runs after two to warm up.

    python benchmarks/gpu.py                           # on one CUDA device, under nine minutes
    python benchmarks/gpu.py --device cpu --small      # a trial of the script; nothing is kept

Nothing has been measured yet as long as there is no results/gpu.json: no GPU was at hand when this was written.

The cells are random counts, written within the call, so their pages are in the cache; parity has simulated cells of clear
types. --store names a store for the million cells, where they shall not be written. Where the budget runs short, fewer than
a million are written, and the row says how many; what cannot begin any more is skipped, and said to be. Device memory is what
torch has allocated, the context of CUDA aside. Exit code 1: a comparison failed, or a case raised.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from record import Results, environment
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from gpu_parts import Case
    from gpu_setup import Bench, Row

Result = TypeVar("Result")
BEGAN_S = time.perf_counter()
OUT = Path(__file__).resolve().parent / "results" / "gpu.json"
KEY = ("part", "case", "measure")
SHARES = {"parity": 0.2, "train": 0.3, "memory": 0.35, "feed": 0.15, "sweep": 0.1, "operations": 0.2}
"""Parts in their order, and how much of the budget each may take at most: together more than all, for most take less."""
NOTE = (
    "Median and spread over runs of one process; the peak is what torch had allocated at most. waiting, by comparison: 1 - (the "
    "same steps on one batch that is there) / (steps fed); by events: CUDA events before and after each batch is asked for, which "
    "takes in its gathering where the cells are on the device."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a trial of the script")
    parser.add_argument("--budget-s", type=float, default=500.0, help="seconds from the start; default %(default)g")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), metavar="PART")
    parser.add_argument("--store", type=Path, help="training store in place of the million cells")
    parser.add_argument("--folder", type=Path, help="where stores are written for the time of the call")
    parser.add_argument("--out", type=Path, help="JSON file, replaced; a trial has none unless told")
    options = parser.parse_args(arguments)
    if options.out is None and options.device == "cuda" and not options.small:
        options.out = OUT
    return options


def describe(device: torch.device) -> Row:
    """Name and versions of the device."""
    import torch

    found: Row = {"kind": device.type, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type != "cuda":
        return found
    about = torch.cuda.get_device_properties(device)
    return found | {
        "name": about.name,
        "memory_gb": round(about.total_memory / 1e9, 1),
        "capability": f"{about.major}.{about.minor}",
        "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(),
    }


def attempt(work: Callable[[], Result]) -> tuple[Result | None, Row | None]:
    """Do some work; gives what came of it, or a row that says what it raised."""
    from gpu_setup import OutOfTimeError

    try:
        return work(), None
    except OutOfTimeError as error:
        return None, {"measure": "", "skipped": str(error)}
    # Code that has never run on a GPU may raise anything, and one call must tell as much as it can: the traceback is printed, the
    # case becomes a row, the exit code 1, and the others still run.
    except Exception as error:  # noqa: BLE001  see above
        traceback.print_exc()
        return None, {"measure": "", "error": f"{type(error).__name__}: {error}"}


def run_part(part: Callable[[Bench], Iterator[Case]], bench: Bench) -> Iterator[Row]:
    """Rows of all cases of a part; where what they share cannot be made, one row says so."""
    cases = part(bench)
    while True:
        case, failure = attempt(partial(next, cases, None))
        if failure is not None:
            yield {"case": "all that is left of the part", **failure}
        if case is None:
            return
        name, work = case
        found, failure = attempt(work)
        for row in found or [failure or {}]:
            yield {"case": name, **row}


def run_all(bench: Bench, parts: Sequence[str]) -> Iterator[Row]:
    """Rows of the parts that were asked for."""
    import gpu_parity
    import gpu_parts

    known: dict[str, Callable[[Bench], Iterator[Case]]] = {
        "parity": gpu_parity.parity,
        "feed": gpu_parts.feed,
        "train": gpu_parts.train,
        "sweep": gpu_parts.sweep,
        "operations": gpu_parts.operations,
        "memory": gpu_parts.memory,
    }
    for name in SHARES:
        if name in parts:
            bench.clock.start_part(SHARES[name])
            yield from ({"part": name, **row} for row in run_part(known[name], bench))


def show(rows: Sequence[Row], title: str) -> Table:
    """All rows as one table."""
    table = Table(title=title, caption=NOTE, caption_justify="left", box=box.SIMPLE_HEAD)
    for column in ("part", "case", "measure", "median", "lowest", "highest", "unit", "device MB", "note"):
        is_number = column in ("median", "lowest", "highest", "device MB")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for index, row in enumerate(rows):
        ends = index + 1 == len(rows) or rows[index + 1]["part"] != row["part"]
        peak = row.get("peak_device_bytes")
        numbers = [f"{row[name]:,.4g}" if row.get(name, 0) < 1e4 else f"{row[name]:,.0f}" for name in spread_of(row)]
        memory = "" if peak is None else f"{peak / 1e6:,.1f}"
        told = (
            row["part"],
            row["case"],
            row["measure"],
            *(numbers or [""] * 3),
            row.get("unit", ""),
            memory,
            note(row),
        )
        table.add_row(*told, end_section=ends)
    return table


def spread_of(row: Row) -> tuple[str, ...]:
    """Fields with numbers; none where the case was skipped or failed."""
    return ("median", "lowest", "highest") if "median" in row else ()


def note(row: Row) -> str:
    """What is to be said of a row in a word."""
    if "error" in row:
        return f"ERROR {row['error'].splitlines()[0][:120]}"
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    if "verdict" in row:
        return f"{row['verdict']} (at most {row['tolerance']:g})"
    return f"{row['n_cells']:,} cells" if "n_cells" in row else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 if a comparison failed or a case raised."""
    began = BEGAN_S if arguments is None else time.perf_counter()
    options = parse(arguments)
    import torch
    from gpu_setup import SMALL, Bench, Clock, Sizes

    from scamac_scale.config import ScamacConfig

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA device here; --device cpu --small tries the script without one.", file=sys.stderr
        )
        return 2
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    where: dict[str, Any] = {**environment(), "device": describe(device)}
    if device.type == "cuda":
        gc.freeze()  # what was imported need not be looked at before every measurement of memory, 0.3 s each
    sizes = SMALL if options.small else Sizes()
    console = Console(width=None if sys.stdout.isatty() else 200)
    results = None if options.out is None else Results(options.out, KEY)
    if results is not None:
        options.out.unlink(missing_ok=True)
        about = {"note": NOTE, "budget_s": options.budget_s, "page_cache": "warm: written in this call"}
        results.update(**about, sizes=asdict(sizes), config=asdict(ScamacConfig()))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="scamac-gpu-", dir=options.folder) as folder:
        bench = Bench(device, sizes, Clock(options.budget_s, began), Path(folder), options.store)
        for row in run_all(bench, options.parts):
            if not rows or rows[-1]["part"] != row["part"]:
                console.print(f"{time.perf_counter() - began:4.0f} s  {row['part']}", highlight=False)
            rows.append({**row, "at_s": round(time.perf_counter() - began, 1)})
            if results is not None:
                results.add(rows[-1], where)
    console.print(show(rows, f"{where['device'].get('name', 'CPU')}, torch {where['device']['torch']}"))
    failed = [row for row in rows if "error" in row or row.get("verdict") == "FAIL"]
    console.print(f"{len(rows)} rows, {len(failed)} failed, {time.perf_counter() - began:.0f} s", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
