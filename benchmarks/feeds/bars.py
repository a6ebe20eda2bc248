"""What the feed was meant to reach, and whether a run of ``loader.py`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH_CELLS, LAYOUT, BUSY_MS = 4096, "dense", 20.0
Row = dict[str, Any]


def judge(summary: Sequence[Row], tuning: Sequence[Row]) -> list[Row]:
    """Compare the rows of dense batches of 4,096 cells with the bars.

    Parameters
    ----------
    summary
        Rows of `loader.summarise`.
    tuning
        What the settings of the peers gave.

    Returns
    -------
    list of dict
        What is compared, its value, the bar, and whether it is met; only what the rows allow.
    """
    rows = {
        (row["case"], row["step_ms"]): row
        for row in summary
        if (row["batch_cells"], row["layout"], row["is_cold"]) == (BATCH_CELLS, LAYOUT, False) and "error" not in row
    }
    found: list[Row] = []

    def add(what: str, value: float | None, bar: float | None, *, is_most: bool = False) -> None:
        if value is not None:
            is_met = None if bar is None else value <= bar if is_most else value >= bar
            found.append(
                {"what": what, "value": value, "bar": bar, "at": "most" if is_most else "least", "is_met": is_met}
            )

    def ratio(case: str, peer: str, name: str = "cells_per_s", step: float = 0.0) -> float | None:
        both = [rows.get((one, step)) for one in (case, peer)]
        return None if None in both else both[0][name] / both[1][name]  # type: ignore[index]  # seen just before

    add("cells/s of store_fast over annbatch", ratio("store_fast", "annbatch"), 5.0)
    add(
        "CPU per cell of store_fast over annbatch",
        ratio("store_fast", "annbatch", "cpu_us_per_cell"),
        1 / 3,
        is_most=True,
    )
    add("cells/s of store_small over annbatch", ratio("store_small", "annbatch"), 3.5)
    add("cells/s of store_fast over scDataset", ratio("store_fast", "scdataset"), 15.0)
    add("cells/s of store_fast over AnnLoader", ratio("store_fast", "annloader"), 30.0)
    add("peak memory of store_fast over annbatch", ratio("store_fast", "annbatch", "peak_bytes"), 1.0, is_most=True)
    own = {case: row["peak_bytes"] - row["baseline_bytes"] for (case, step), row in rows.items() if step == 0.0}
    if {"store_fast", "annbatch"} <= own.keys():
        add("the same without what imports take", own["store_fast"] / own["annbatch"], 1.0, is_most=True)
    busy = rows.get(("store_fast", BUSY_MS))
    if busy is not None:
        share = busy["cells_per_s"] / (BATCH_CELLS / BUSY_MS * 1e3)
        add(f"share of the ceiling of a trainer that takes {BUSY_MS:g} ms", share, 0.85)
    plain = rows.get(("store_fast", 0.0))
    if plain is not None:
        add("pair recurrence of store_fast", plain["pair_recurrence"], 1.3, is_most=True)
        for settings, speed in sorted(by_setting(tuning).items()):
            add(f"cells/s of store_fast over annbatch with {settings}", plain["cells_per_s"] / speed, None)
    return found


def by_setting(tuning: Sequence[Row]) -> dict[str, float]:
    """Best speed of each setting of annbatch that was tried."""
    best: dict[str, float] = {}
    for row in tuning:
        if (row["case"], row["batch_cells"], row["layout"], row["step_ms"]) != ("annbatch", BATCH_CELLS, LAYOUT, 0.0):
            continue
        for one in row["tried"]:
            name = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
            best[name] = max(best.get(name, 0.0), one.get("cells_per_s", 0.0))
    return best
