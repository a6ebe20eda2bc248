"""How do time and memory grow with the number of cells: Eq. (15), Eq. (10), a sweep, an epoch?

Five parts, each of which may be run alone; the file keeps what others have left there. `similarity`: Eq. (15) over N cells as
printed (N x N), tile by tile, and from Gram matrices; and the losses of a batch. `attention`: Eq. (10) for N cells in batches,
over a bank, over all cells in blocks, and dense. `atlas`: 10,000 queries against a million keys on disk. `share`: the sums of
Eq. (15) in a fuzzy sweep over 100,000 cells. `epochs`: an epoch, a sweep and the highest memory at 50,000 to 800,000 cells, each
size in a process of its own. What is too large to run follows the law of the larger half of the sizes, and is marked so.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --parts similarity attention --largest 8000
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import environment
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OUT = Path(__file__).resolve().parent / "results" / "scaling.json"
PARTS = ("similarity", "attention", "atlas", "share", "epochs")
PASSES = {
    "value": "Eq. (15) over all pairs of N cells, its value",
    "gradient": "Eq. (15) over all pairs of N cells, value and gradient",
    "batch, memberships": "Eq. (15) in a step of B cells, 50 memberships, with gradient",
    "batch, consensus": "Eq. (15) in a step of B cells, 48 stacked members, with gradient",
}
FIELDS = {
    "size": "cells N, or cells B of a batch",
    "seconds": "of a call, median over rounds; best and worst beside it",
    "extra_bytes": "highest resident memory of a call beyond what was there before it, inputs and place for results included",
    "laws": "value = factor * size ** exponent, least squares on logarithms over the sizes in fitted_to",
    "disagreement": "largest difference of the exact forms at the smallest size, over the largest entry",
    "extrapolated": "from the law, or in proportion; all else is measured",
    "inside_seconds": "spent in the sums of Eq. (15) of a sweep, measured around them",
    "share_by_difference": "of the sweep with the sums and the one without in the same round, over the former",
    "share_with_table": "the same with the table of the codes, which is counted once for the four rounds of a fit; also as if for each",
    "contingency": "the squares of U^T U of the consensus members, counted once in a fit",
    "peak_bytes": "highest resident memory of the process; of epochs, preparation included, and beside it the rounds alone",
}
"""What the names in the file mean."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--largest", type=int, help="no size beyond this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=20.0, help="longer calls are extrapolated")
    parser.add_argument("--limit-bytes", type=float, default=4e9, help="larger calls are extrapolated")
    parser.add_argument("--genes", type=int, help="of the stores; default 2,000 for share, 1,000 for epochs")
    parser.add_argument("--batch-cells", type=int, default=4096, help="of an epoch")
    parser.add_argument("--folder", type=Path, help="for stores and keys, some GB; default: the temporary one")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file; the picture lies beside it")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def held_in(path: Path) -> dict[str, Any]:
    """What earlier runs have left in the file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(path: Path, **sections: Any) -> None:
    """Replace sections of the file, and the file whole, so that a killed run leaves a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps({**held_in(path), **sections}, indent=1) + "\n")
    os.replace(beside, path)


def run_part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part."""
    import scaling_parts
    import scaling_stores

    limits = scaling_parts.Limits(options.rounds, options.limit_s, options.limit_bytes)
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder, largest = Path(made), options.largest
        if name == "similarity":
            return scaling_parts.similarity(largest, limits)
        if name == "attention":
            return scaling_parts.attention(largest, limits)
        if name == "atlas":
            return scaling_parts.atlas(folder, largest)
        stores = largest, options.genes, options.batch_cells, options.rounds
        if name == "epochs":
            return scaling_stores.epochs(folder, *stores)
        known = held_in(options.out).get("similarity")
        law = known["value"]["laws"]["direct"]["seconds"] if known else None
        return scaling_stores.share(folder, *stores, law)


def number(value: float | None, factor: float = 1.0, digits: int = 3) -> str:
    """A number with some digits, a dash for none."""
    if value is None:
        return "-"
    shown = value * factor
    return f"{shown:,.0f}" if abs(shown) >= 1000 else f"{shown:.{digits}g}"


def growth_table(title: str, found: dict[str, Any]) -> Table:
    """Sizes by forms: seconds and megabytes, extrapolated ones with a tilde; the exponents below."""
    forms = list(found["laws"])
    table = Table(title=f"{title}, ms and MB", show_footer=True)
    table.add_column("size", justify="right", footer="power")
    for form in forms:
        law = found["laws"][form]
        table.add_column(form, justify="right", footer=number(law["seconds"]["exponent"]))
        table.add_column("MB", justify="right", footer=number(law["extra_bytes"]["exponent"]))
    by_size: dict[int, dict[str, Any]] = {}
    for row in found["rows"]:
        by_size.setdefault(row["size"], {})[row["form"]] = row
    for size, rows in sorted(by_size.items()):
        cells = []
        for form in forms:
            mark = "~" if rows[form]["extrapolated"] else ""
            cells += [mark + number(rows[form]["seconds"], 1e3), mark + number(rows[form]["extra_bytes"], 1e-6)]
        table.add_row(f"{size:,}", *cells)
    return table


def similarity_tables(found: dict[str, Any]) -> list[Table]:
    """One table for each pass."""
    return [growth_table(title, found[name]) for name, title in PASSES.items()]


def attention_tables(found: dict[str, Any]) -> list[Table]:
    """One table."""
    return [growth_table("Eq. (10) for all N cells", found)]


def atlas_tables(found: dict[str, Any]) -> list[Table]:
    """One table."""
    table = Table(title="Eq. (10), keys on disk")
    for column in ("queries", "keys", "GB on disk", "seconds", "extra MB"):
        table.add_column(column, justify="right")
    whole, keys = found["all_queries"], (f"{found['n_keys']:,}", number(found["disk_bytes"], 1e-9))
    table.add_row(f"{found['n_queries']:,}", *keys, number(found["seconds"]), number(found["extra_bytes"], 1e-6))
    mark = "~" if whole["extrapolated"] else ""
    table.add_row(f"{whole['n_queries']:,}", *keys, mark + number(whole["seconds"]), "")
    return [table]


def share_tables(found: dict[str, Any]) -> list[Table]:
    """One table; the notes below tell the table of the members and the form as printed."""
    notes = [f"table of the members, once: {number(found['contingency']['seconds'])} s"]
    notes.append(f"{found['contingency']['share_of_a_round']:.1%} of a round's sweep")
    if found.get("direct_form"):
        notes.append(f"Eq. (15) as printed: ~{number(found['direct_form']['seconds'])} s")
    table = Table(
        title=f"Sums of Eq. (15) in a fuzzy sweep, {found['n_cells']:,} cells x {found['n_genes']:,} genes",
        caption="; ".join(notes),
    )
    for column in ("U", "sweep, s", "sums, s", "share", "best", "worst", "by diff.", "bar"):
        table.add_column(column, justify="left" if column == "U" else "right")
    for name, row in found["targets"].items():
        if name == "none":
            table.add_row(name, number(row["seconds"]))
            continue
        shares = [row[key] for key in ("share", "share_best", "share_worst", "share_by_difference", "bar")]
        numbers = number(row["seconds"]), number(row["inside_seconds"])
        table.add_row(name, *numbers, *(f"{one:.2%}" for one in shares))
    return [table]


def epochs_tables(found: dict[str, Any]) -> list[Table]:
    """One table."""
    within = {True: "within", False: "beyond"}
    laws, memory = found["laws"], within[found["is_memory_within_bar"]]
    caption = (
        f"exponents {number(laws['epoch_s']['exponent'])} and {number(laws['sweep_s']['exponent'])}, "
        f"{within[found['are_exponents_within_bar']]} the bar of {found['exponent_bar']}; memory {memory} its bar of "
        f"{number(found['memory_bar_bytes'], 1e-6, 4)} MB; {number(found['total_s'])} s in all"
    )
    table = Table(title=f"An epoch in batches of {found['batch_cells']:,}, and a sweep", caption=caption)
    for column in ("cells", "epoch, s", "us/cell", "sweep, s", "us/cell", "peak MB", "before, s"):
        table.add_column(column, justify="right")
    for run in found["runs"]:
        times = [number(run[name], factor) for name in ("epoch_s", "sweep_s") for factor in (1.0, 1e6 / run["n_cells"])]
        table.add_row(f"{run['n_cells']:,}", *times, number(run["peak_bytes"], 1e-6), number(run["prepared_s"]))
    return [table]


TABLES: dict[str, Callable[[dict[str, Any]], list[Table]]] = {
    "similarity": similarity_tables,
    "attention": attention_tables,
    "atlas": atlas_tables,
    "share": share_tables,
    "epochs": epochs_tables,
}


def draw_growth(panel: Any, found: dict[str, Any], name: str) -> None:
    """Lines of all forms: full where measured, open and dashed where extrapolated."""
    for index, form in enumerate(found["laws"]):
        rows = [row for row in found["rows"] if row["form"] == form and row[name]]
        known = [row for row in rows if not row["extrapolated"]]
        beyond = known[-1:] + [row for row in rows if row["extrapolated"]]
        color = f"C{index}"
        for part, style in ((known, "o-"), (beyond, "o--")):
            at, values = [row["size"] for row in part], [row[name] for row in part]
            is_known = part is known
            face, label = (color, form) if is_known else ("none", None)
            panel.plot(
                at, values, style, color=color, markerfacecolor=face, markersize=4, label=label, zorder=1 + is_known
            )
    panel.set_ylabel("seconds" if name == "seconds" else "bytes beyond the inputs")


def draw_epochs(times: Any, memory: Any, found: dict[str, Any]) -> None:
    """Seconds and highest memory of an epoch and a sweep."""
    cells = [run["n_cells"] for run in found["runs"]]
    for name, label in (("epoch_s", "epoch"), ("sweep_s", "sweep")):
        label = f"{label}, exponent {found['laws'][name]['exponent']:.2f}"
        times.plot(cells, [run[name] for run in found["runs"]], "o-", markersize=4, label=label)
    memory.plot(cells, [run["peak_bytes"] for run in found["runs"]], "o-", markersize=4, label="peak")
    memory.plot(cells[-1:], [found["memory_bar_bytes"]], "_", markersize=14, color="C3", label="bar")
    memory.set_ylim(min(run["peak_bytes"] for run in found["runs"]) / 3, 3 * found["memory_bar_bytes"])
    times.set_ylabel("seconds")
    memory.set_ylabel("bytes, resident")


def draw(found: dict[str, Any], path: Path) -> bool:
    """Draw what the file holds; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(15, 7), layout="constrained")
    panels: Any = figure.subplots(2, 4)
    similarity, attention, epochs = (found.get(name) for name in ("similarity", "attention", "epochs"))
    if similarity:
        draw_growth(panels[0, 0], similarity["gradient"], "seconds")
        draw_growth(panels[1, 0], similarity["gradient"], "extra_bytes")
        draw_growth(panels[0, 1], similarity["batch, memberships"], "seconds")
        draw_growth(panels[1, 1], similarity["batch, consensus"], "seconds")
    if attention:
        draw_growth(panels[0, 2], attention, "seconds")
        draw_growth(panels[1, 2], attention, "extra_bytes")
    if epochs:
        draw_epochs(panels[0, 3], panels[1, 3], epochs)
    titles = ("Eq. (15), all pairs", "Eq. (15), a step, memberships", "Eq. (10), all cells", "training")
    for panel, title in zip(panels.flat, (*titles, titles[0], "Eq. (15), a step, consensus", *titles[2:]), strict=True):
        if not panel.lines:
            panel.set_axis_off()
            continue
        panel.set(xscale="log", yscale="log", title=title, xlabel="cells B" if "step" in title else "cells N")
        ticks = sorted({int(x) for line in panel.lines for x in line.get_xdata()})
        panel.set_xticks(ticks, [f"{x / 1000:.0f}k" if x >= 1000 else str(x) for x in ticks], fontsize="small")
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write after each part, print, draw."""
    options = parse(arguments)
    if options.child is not None:
        from scaling_stores import run_child

        print(json.dumps(run_child(options.child, options.batch_cells, options.rounds)))
        return
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    console, where = Console(), environment()
    for name in (part for part in PARTS if part in options.parts):
        began = time.perf_counter()
        found = run_part(name, options)
        found |= {"part_s": time.perf_counter() - began, "environment": where}
        keep(options.out, columns=FIELDS, **{name: found})
        for table in TABLES[name](found):
            console.print(table)
        console.print(f"{name}: {found['part_s']:,.0f} s\n", highlight=False)
    picture = options.out.with_suffix(".png")
    if not draw(held_in(options.out), picture):
        console.print("no picture: matplotlib is missing")


if __name__ == "__main__":
    main()
