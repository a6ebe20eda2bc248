"""What a command says at its end: a few lines for a person. ``--json`` has the rest."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from scamac_scale.cli.show import size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

Result = dict[str, Any]
MOST_SIZES = 12
"""Clusters whose sizes stand in a line."""
MOST_FOUND = 5
"""Findings that are told; the report has all."""
ESTIMATED = "an estimate, right within one about two times in five"


def of_ingest(result: Result) -> list[str]:
    """Tell what a store holds."""
    batches = [f"{row['levels']} of {row['column']}" for row in result.get("batches", [])]
    return [
        f"{result['path']}: {result['n_cells']:,} cells x {result['n_genes']:,} genes, {size_text(result['disk_bytes'])}",
        f"values: taken as {result['values']}"
        + (f", scaled to {result['target_sum']:,.0f} a cell" if result.get("target_sum") else ""),
        f"batches: {', '.join(batches)}" if batches else "batches: none were named (--batch-key)",
        f"next: scamac-scale train --store {_quoted(result['path'])} --run RUN",
    ]


def of_train(result: Result) -> list[str]:
    """Tell what a fit has found."""
    empty = result["empty_clusters"]
    lines = [
        f"{result['model']}: the model of {result['n_cells']:,} cells",
        f"clusters: {result['n_clusters']}" + (f" ({ESTIMATED})" if result["is_count_estimated"] else ", as asked for"),
        f"time: {sum(result['seconds_by_part'].values()):,.0f} s, {result['steps']} steps",
    ]
    if empty:
        lines.append(f"warning: empty clusters: {len(empty)}; ask for fewer with --n-clusters")
    return [
        *lines,
        f"next: scamac-scale predict --run {_quoted(result['run'])} --input {_quoted(result['store'])} --out RESULT.h5ad",
    ]


def _quoted(paths: str | list[str]) -> str:
    """Write paths so that they can be typed."""
    return shlex.join([paths] if isinstance(paths, str) else paths)


def of_predict(result: Result) -> list[str]:
    """Tell what a result holds."""
    rows = result["clusters"]
    return [
        f"{result['path']}: clusters, latents and memberships of {result['n_cells']:,} cells",
        sizes({row["cluster"]: row["cells"] for row in rows}, is_estimated=result.get("is_count_estimated", False)),
        sure(result),
        f"next: scamac-scale report --run {_quoted(result['run'])} --result {_quoted(result['path'])}",
    ]


def of_cluster(result: Result) -> list[str]:
    """Tell what a clustering of files has come to."""
    found = [entry["found"].rstrip(".") for entry in result["findings"] if entry["severity"] != "note"]
    more = f" and {len(found) - MOST_FOUND} more, see the report" if len(found) > MOST_FOUND else ""
    commands = [entry["command"] for entry in result["findings"] if entry["command"]]
    return [
        f"result: {result['result']} ({result['n_cells']:,} cells); model: {result['model']}; markers: {result['markers'] or 'none'}",
        sizes(result["sizes"], is_estimated=result["is_count_estimated"]),
        sure(result),
        "checks: " + ("; ".join(found[:MOST_FOUND]) + more if found else "nothing was found"),
        *(f"another number of clusters, without training: {command}" for command in commands[:1]),
        f"next: open {_quoted(result['report'])}",
    ]


def sizes(cells: Mapping[str, int], *, is_estimated: bool) -> str:
    """Tell the number of clusters, and how large they are."""
    note = f" ({ESTIMATED})" if is_estimated else ""
    if len(cells) <= MOST_SIZES:
        each = ", ".join(f"{name}: {n_cells:,}" for name, n_cells in cells.items())
        return f"clusters: {len(cells)}{note}; cells of each: {each}"
    most, least = max(cells.values()), min(cells.values())
    return f"clusters: {len(cells)}{note}; from {least:,} to {most:,} cells"


def sure(result: Result) -> str:
    """Tell how sure the labels are."""
    mean, unsure = result.get("mean_membership"), result.get("unsure_share")
    if mean is None or unsure is None:
        return "how sure: not measured"
    return f"how sure: membership of the own cluster {mean:.2f} on average; below one half in {unsure:.1%} of the cells"
