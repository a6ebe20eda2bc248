"""What a report says in words: what was run, what came out in five lines, and the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.ingestion.kinds import named_total, named_values
from scamac_scale.ingestion.names import described
from scamac_scale.report_page.checks import N_MEASURED, left_out
from scamac_scale.report_page.shown import counted, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scamac_scale.cells.genes import GeneSpace, InputRecord
    from scamac_scale.report_page.finding import Finding
    from scamac_scale.report_page.gather import Facts

SEVERITIES = {"bad": "Most likely wrong", "look": "Look at this", "note": "Good to know"}
MAX_VALUE = 300
"""Letters of a setting."""


def title(facts: Facts) -> str:
    """Name the page by the files of its cells where they are known, else by its run."""
    names = [name.rstrip("/").rpartition("/")[2] for name in facts.run.inputs]
    if not names:
        return f"Report on {short(facts.run.path.rstrip('/').rpartition('/')[2], 80)}"
    more = f" and {counted(len(names) - 1, 'more file')}" if len(names) > 1 else ""
    return f"Report on {short(names[0], 80)}{more}"


def about(facts: Facts) -> list[tuple[str, str]]:
    """Say what was run on what: names and values."""
    run, result = facts.run, facts.result
    report = run.report
    n_fit = report.get("n_cells")
    found = []
    if run.inputs:
        found.append(("Input", short(", ".join(run.inputs), 200)))
    if run.genes.input is not None:
        found.append(("Cells of the input", _input_cells(run.genes.input)))
    found.append(("Cells of the fit", f"{n_fit:,}" if isinstance(n_fit, int) else "not known"))
    if result is not None:
        found.append(("Cells of the result", f"{result.n_cells:,}"))
    found.append(("Genes", _genes(run.genes)))
    found.append(("Values", _values(facts)))
    found.append(("Clusters", _count(facts)))
    found.append(("Batch key", _batches(facts)))
    found.append(("Seed", str(run.config.get("seed"))))
    seconds = report.get("seconds")
    if isinstance(seconds, int | float):
        steps = report.get("steps")
        found.append(
            ("Time of the fit", _time(float(seconds)) + (f", {steps:,} steps" if isinstance(steps, int) else ""))
        )
    version = report.get("versions", {}).get("scamac-scale", "not known")
    commit = report.get("commit")
    found.append(("Version", version + (f" ({str(commit)[:10]})" if commit else "")))
    found.append(("Run", short(run.path, 120)))
    if result is not None:
        found.append(("Result", short(result.path, 120)))
    return found


def _input_cells(record: InputRecord) -> str:
    told = f"{record.n_cells:,}" + (f" in {record.n_inputs:,} inputs" if record.n_inputs > 1 else "")
    if n_out := record.n_cells - record.n_taken:
        told += f", {n_out:,} left out by the filters"
        if named := left_out(record):
            told += f" ({named})"
    if record.n_empty:
        told += f"; {record.n_empty:,} {'is' if record.n_empty == 1 else 'are'} without counts, and in the fit"
    return told


def _genes(genes: GeneSpace) -> str:
    if genes.input is None:
        return f"{len(genes.chosen):,} of {len(genes.filtered):,} that passed the filter"
    least = genes.input.min_cells
    passed = "that passed the filter" if least is None else f"in at least {counted(least, 'cell')}"
    whole = f"{genes.input.n_inputs:,} joined inputs" if genes.input.n_inputs > 1 else "the input"
    return f"{genes.input.n_genes:,} in {whole}, {len(genes.filtered):,} {passed}, {len(genes.chosen):,} chosen"


def _values(facts: Facts) -> str:
    genes = facts.run.genes
    record = genes.values
    seen = (
        named_values(genes.kind, record.base, record.total)
        if record is not None and record.seen == genes.kind
        else genes.kind
    )
    if genes.target_sum is None:
        return f"{seen}, taken as they are"
    return f"{seen}, scaled to {named_total(genes.target_sum)} a cell and logged"


def _count(facts: Facts) -> str:
    is_estimated = bool(facts.run.report.get("is_count_estimated"))
    n_fit = facts.run.model.n_clusters
    told = f"{n_fit}, estimated: right within one about two times in five" if is_estimated else f"{n_fit}, as was said"
    if facts.result is not None and len(facts.result.clusters.names) != n_fit:
        told += f"; the result has {len(facts.result.clusters.names)}"
    return told


def _batches(facts: Facts) -> str:
    levels = facts.run.model.tech_levels
    if levels:
        return ", ".join(f"{short(column)} ({len(names):,} batches)" for column, names in levels.items())
    result = facts.result
    if result is not None and result.batches is not None:
        n_batches = len(result.batches.names) + result.n_more_batches
        return f"none in the fit; here by {short(result.batch_key or '')} ({n_batches:,} batches)"
    return "none"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lines(facts: Facts, found: list[Finding]) -> list[tuple[str, str]]:
    """Say what came out in at most five lines, each with how good it is; the most serious first."""
    made = (
        [_checks_line(found), *_result_lines(facts, found)]
        if facts.result is not None
        else [
            _checks_line(found),
            (
                "note",
                "There is no result in this report: name what predict has written with --result for clusters and pictures.",
            ),
        ]
    )
    order = {"bad": 0, "look": 1, "good": 2, "note": 3}
    return sorted(made, key=lambda line: order[line[0]])[:5]


def _worst(found: list[Finding], *checks: str) -> str:
    own = [finding["severity"] for finding in found if finding["check"] in checks]
    return "bad" if "bad" in own else "look" if "look" in own else "good"


def _checks_line(found: list[Finding]) -> tuple[str, str]:
    n_bad = sum(finding["severity"] == "bad" for finding in found)
    n_look = sum(finding["severity"] == "look" for finding in found)
    if n_bad:
        what = "thing is" if n_bad == 1 else "things are"
        more = f", {n_look} more to look at" if n_look else ""
        return "bad", f"{n_bad} {what} most likely wrong{more}: read on below before you use these clusters."
    if n_look:
        return (
            "look",
            f"{n_look} {'thing' if n_look == 1 else 'things'} to look at, below; nothing that is surely wrong.",
        )
    return "good", "The checks found nothing wrong."


def _result_lines(facts: Facts, found: list[Finding]) -> Iterator[tuple[str, str]]:
    result = facts.result
    assert result is not None
    names, sizes = result.clusters.names, result.sizes
    filled = np.flatnonzero(sizes)
    if len(filled):
        most, least = int(sizes.argmax()), int(filled[sizes[filled].argmin()])
        yield (
            _worst(found, "number of clusters", "empty clusters", "tiny clusters"),
            f"{counted(result.n_cells, 'cell')} in 1 cluster, {short(names[most])}."
            if len(filled) == 1
            else f"{result.n_cells:,} cells in {len(filled):,} clusters: the largest is {short(names[most])} with "
            f"{counted(int(sizes[most]), 'cell')}, the smallest {short(names[least])} with {sizes[least]:,}.",
        )
    if result.memberships is not None and result.n_cells:
        confidence = result.memberships.confidence
        yield (
            _worst(found, "membership"),
            f"Cells belong to their cluster by {float(np.median(confidence)):.2f} in the median; "
            f"{float((confidence >= 0.9).mean()):.0%} by more than .9.",
        )
    if result.scores:
        scores = result.scores
        yield (
            _worst(found, "labels"),
            f"Against the labels in {short(result.label or '')}: ARI {scores['ari']:.2f}, NMI {scores['nmi']:.2f} "
            f"({counted(scores['n_labels'], 'label')}, {scores['n_cells']:,} cells).",
        )
    if result.batches is not None:
        n_own = len(result.batches.names)
        some = f"{n_own:,} largest of {n_own + result.n_more_batches:,}" if result.n_more_batches else f"{n_own:,}"
        whole = f"{some} batches of {short(result.batch_key or '')}"
        n_not = n_own - facts.own.get(N_MEASURED, 0)
        yield _batches_line(whole, n_not, n_not == n_own, _worst(found, "batches"))


def _batches_line(whole: str, n_not: int, is_none: bool, worst: str) -> tuple[str, str]:
    """Say how batches mix, of which `n_not` were not measured, or none at all."""
    if worst != "good":
        return worst, f"The {whole} do not mix everywhere."
    if not n_not:
        return worst, f"The {whole} mix in all clusters."
    some = "the" if is_none else f"{n_not:,} of the"
    return "note", f"How {some} {whole} mix was not measured: there are too few cells, or none that could mix."


def numbers_for_names(genes: Sequence[str]) -> list[str]:
    """Say what to do where genes have Ensembl numbers for names; nothing where they have not."""
    if not described(genes).startswith("Ensembl"):
        return []
    return [
        "The genes are named by Ensembl numbers. If a column of var holds their symbols, run again with "
        "--ingest.gene_column NAME, which takes that column for the names."
    ]


def settings(facts: Facts) -> list[tuple[str, str]]:
    """All settings of the run, with versions and hardware, by dotted names."""
    report = facts.run.report
    extra = {
        name: report[name] for name in ("versions", "hardware", "seconds_by_part") if isinstance(report.get(name), dict)
    }
    config = dict(facts.run.config)
    if config.get("batch_key") is None and facts.run.batch_key is not None:
        config["batch_key"] = f"{facts.run.batch_key} (as the cells were ingested)"
    return [(name, short(value, MAX_VALUE)) for name, value in (*_flat(config), *_flat(extra))]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for at, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name}[{at}].")
        else:
            yield f"{prefix}{name}", "null" if value is None else str(value)


def phases(facts: Facts) -> list[tuple[str, float, float]]:
    """Stretches of steps: of the settings where they tell, else by the terms that are there."""
    train, steps = facts.run.config.get("train", {}), facts.run.report.get("steps")
    found: list[tuple[str, float, float]] = []
    at = 0
    try:
        at += train["pretrain"]["steps"]
        found.append(("pretraining", 0.0, float(at)))
        for turn in range(train["rounds"]):
            start = at
            at += sum(phase["steps"] for phase in train["phases"])
            found.append((f"round {turn + 1}", float(start), float(at)))
    except (KeyError, TypeError):
        found = []
    if found and at == steps:
        return found
    later = [
        values[0][0]
        for name, values in facts.run.metrics.items()
        if name in ("clustering", "similarity") and len(values[0])
    ]
    last = max((float(values[0][-1]) for values in facts.run.metrics.values() if len(values[0])), default=0.0)
    if not later or not 0 < min(later) < last:
        return []
    return [("pretraining", 0.0, float(min(later))), ("training", float(min(later)), last)]
