"""Facts are made by hand: each check sees what it is to see, and nothing else speaks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scamac_scale.cells.genes import GeneSpace, InputRecord, ValueRecord
from scamac_scale.evaluation import Levels
from scamac_scale.ops.tree import Tree
from scamac_scale.report_page import checks
from scamac_scale.report_page.checks import check, findings
from scamac_scale.report_page.curves import curves_of
from scamac_scale.report_page.gather import BINS, Facts, Memberships, ResultFacts, RunFacts
from scamac_scale.report_page.words import about, lines, numbers_for_names, settings, title
from tests.support.fitted import fitted_model
from tests.support.trees import some_tree

GENES = tuple(f"g{number}" for number in range(600))


def run_facts(values: ValueRecord | None = None, kind: str = "counts", **report: Any) -> RunFacts:
    model = fitted_model()
    target = None if kind == "log" else 1e4
    model.genes = GeneSpace(kind=kind, target_sum=target, filtered=GENES, chosen=GENES, values=values)
    metrics = {"reconstruction": (np.arange(10.0), np.linspace(1.0, 0.5, 10))}
    return RunFacts("run", {}, report, metrics, model)


def result_facts(sizes: list[int], confidence: float = 0.99, **more: Any) -> ResultFacts:
    codes = np.repeat(np.arange(len(sizes)), sizes)
    sure = np.full(len(codes), confidence, dtype=np.float32)
    memberships = Memberships(sure, np.full(len(sizes), confidence), np.zeros((len(sizes), BINS), np.int64))
    return ResultFacts("result", Levels([str(at) for at in range(len(sizes))], codes), memberships, **more)


def told(facts: Facts) -> list[tuple[str, str]]:
    return [(finding["severity"], finding["check"]) for finding in check(facts)]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert told(Facts(run_facts(ValueRecord("counts")), result_facts([100, 200, 300]))) == []


@pytest.mark.parametrize(
    ("seen", "kind", "is_sure", "severity"),
    [
        ("log", "counts", True, "bad"),
        ("log", "linear", True, "bad"),
        ("counts", "log", True, "bad"),
        ("mixed", "counts", True, "bad"),
        ("linear", "counts", True, "look"),
        ("log", "log", False, "look"),
    ],
)
def test_values_of_another_kind_than_was_said_are_told(seen: str, kind: str, is_sure: bool, severity: str) -> None:
    assert told(Facts(run_facts(ValueRecord(seen, is_sure=is_sure), kind))) == [(severity, "values")]


def test_a_model_of_few_genes_is_told() -> None:
    run = run_facts()
    run.model.genes = GeneSpace(kind="counts", target_sum=1.0, filtered=GENES, chosen=GENES[:50])
    assert told(Facts(run)) == [("look", "genes")]


def test_what_the_filters_took_away_is_said() -> None:
    run = run_facts()
    assert not any(name == "Cells of the input" for name, _ in about(Facts(run)))  # of an earlier version
    record = InputRecord(2, 20_500, 1000, 450, {"where": 500, "cells": 0, "min_genes": 50}, 3, 23)
    run.model.genes = replace(run.model.genes, input=record)
    said = dict(about(Facts(run)))
    assert said["Cells of the input"] == (
        "1,000 in 2 inputs, 550 left out by the filters (ingest.where 500, ingest.min_genes 50); 3 are without counts, and in the fit"
    )
    assert said["Genes"] == "20,500 in 2 joined inputs, 600 in at least 23 cells, 600 chosen"
    assert told(Facts(run)) == []  # what was asked for is as it should be
    poor = replace(record, n_taken=90, left_out={"where": 800, "min_genes": 90, "max_mito": 20})
    run.model.genes = replace(run.model.genes, input=poor)
    assert told(Facts(run)) == [("look", "cells")]
    run.model.genes = replace(
        run.model.genes, input=replace(record, n_taken=100, left_out={"where": 800, "min_genes": 100})
    )
    assert told(Facts(run)) == []


def test_losses_that_rise_or_are_not_finite_are_bad() -> None:
    run = run_facts()
    rising = replace(run, metrics={"reconstruction": (np.arange(10.0), np.linspace(0.5, 1.0, 10))})
    assert told(Facts(rising)) == [("bad", "losses")]
    broken = replace(run, metrics={"total": (np.arange(2.0), np.array([1.0, np.nan]))})
    assert told(Facts(broken)) == [("bad", "losses")]


def test_an_estimated_number_of_clusters_is_said_to_be_one() -> None:
    assert told(Facts(run_facts(is_count_estimated=True, n_clusters=3))) == [("note", "number of clusters")]


def test_an_estimated_number_comes_with_a_command_to_paste() -> None:
    run = run_facts(is_count_estimated=True, store="/data/my cells.work/store.zarr")
    run.model.tree = some_tree(12)
    found = check(
        Facts(
            replace(run, path="/data/my cells.work/run"),
            replace(result_facts([100, 200, 300]), path="/data/my cells.h5ad"),
        )
    )
    command = next(finding["command"] for finding in found if finding["severity"] == "note")
    assert command == (
        "scamac-scale predict --run '/data/my cells.work/run' --input '/data/my cells.work/store.zarr' "
        "--out '/data/my cells-2-clusters.h5ad' --n-clusters 2"
    )


def test_a_number_that_was_said_to_predict_is_no_estimate() -> None:
    assert told(Facts(run_facts(is_count_estimated=True), result_facts([100, 200, 300, 400]))) == []


def test_the_batch_key_of_the_store_stands_among_the_settings() -> None:
    run = run_facts()
    run.model.tech_levels = {"donor": ("ann", "bob")}
    assert (
        dict(settings(Facts(replace(run, config={"batch_key": None}))))["batch_key"]
        == "donor (as the cells were ingested)"
    )


def test_curves_are_cut_where_a_stage_begins_and_speed_is_left_out() -> None:
    steps = np.array([0.0, 50.0, 99.0, 100.0, 150.0])
    metrics = {"similarity_atlas": (steps[2:4], steps[2:4]), "total": (steps, steps), "cells_per_s": (steps, steps)}
    total, atlas = curves_of(metrics, [("pretraining", 0.0, 100.0), ("round 1", 100.0, 200.0)])
    assert [part.tolist() for part, _ in total.stretches] == [[0, 50, 99], [100, 150]]
    assert [part.tolist() for part, _ in atlas.stretches] == [[99], [100]]
    assert atlas.has_dots
    assert total.meaning.startswith("The sum of the losses")


def test_shares_of_unsure_cells_are_counted_for_each_cluster() -> None:
    histogram = np.zeros((2, BINS), np.int64)
    histogram[0, [10, 49, 50, 95]] = 1, 1, 2, 4
    shares = Memberships(np.zeros(8, np.float32), np.zeros(2), histogram).shares_below((0.5, 0.7, 0.9))
    np.testing.assert_array_equal(shares, [[0.25, 0.5, 0.5], [np.nan] * 3])


def test_genes_that_are_named_by_numbers_come_with_advice() -> None:
    assert "--ingest.gene_column NAME" in numbers_for_names(["ENSG00000187608", "ENSMUSG00000187608.2"])[0]
    assert numbers_for_names(["CD3D", "LYZ"]) == []


def test_a_page_is_named_by_its_files() -> None:
    assert title(Facts(run_facts())) == "Report on run"
    assert title(Facts(run_facts(inputs=["/data/my cells.h5ad"]))) == "Report on my cells.h5ad"
    assert title(Facts(run_facts(inputs=["a.h5ad", "b.h5ad", "c.h5ad"]))) == "Report on a.h5ad and 2 more files"


def test_empty_and_tiny_clusters_are_named() -> None:
    found = check(Facts(run_facts(), result_facts([500, 0, 5, 700])))
    assert [(finding["check"], finding["found"].split(" ha")[0]) for finding in found] == [
        ("empty clusters", "Cluster 1 of the result"),
        ("tiny clusters", "Cluster 2 (5)"),
    ]


@pytest.mark.parametrize(("confidence", "expected"), [(0.4, [("bad", "membership")]), (0.6, [])])
def test_cells_between_clusters_are_told(confidence: float, expected: list[tuple[str, str]]) -> None:
    assert told(Facts(run_facts(), result_facts([100, 100, 100], confidence))) == expected


def test_clusters_that_the_tree_joins_low_are_too_many() -> None:
    tree = np.array([[0, 1, 0.2, 2], [2, 3, 0.3, 2], [4, 5, 1.0, 4.0]])
    found = check(Facts(run_facts(), result_facts([50, 50, 50, 50], tree=tree)))
    assert [(finding["severity"], finding["check"]) for finding in found] == [("bad", "number of clusters")]
    assert "0 and 1, 2 and 3" in found[0]["found"]
    assert "--n-clusters 2" in found[0]["advice"]


def test_labels_that_own_no_cluster_are_told() -> None:
    labels = Levels(["a", "b", "c"], np.repeat([0, 1, 0, 2], [60, 40, 55, 45]))
    found = check(Facts(run_facts(), result_facts([100, 100], labels=labels, label="type")))
    assert [(finding["severity"], finding["check"]) for finding in found] == [("bad", "labels")]
    assert "b, c" in found[0]["found"]


def test_batches_that_do_not_mix_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Levels(["Ann", "Bob", "Cat"], np.repeat([0, 1, 2], 100))
    draw = np.random.default_rng(0)
    apart = draw.normal(size=(300, 4)) + 50 * batches.codes[:, None]
    monkeypatch.setattr(checks, "read_latent", lambda result, rows: apart[rows])
    result = result_facts([100, 100, 100], batches=batches, batch_key="donor")
    found = check(Facts(run_facts(), result))
    assert [(finding["severity"], finding["check"]) for finding in found] == [("bad", "batches"), ("bad", "batches")]
    assert "Clusters 0 (Ann), 1 (Bob), 2 (Cat) are nearly one batch" in found[0]["found"]
    assert "--batch-key donor" in found[0]["advice"]
    mixed = Levels(batches.names, draw.permutation(batches.codes))
    assert told(Facts(run_facts(), replace(result, batches=mixed))) == []


def batches_line(facts: Facts) -> tuple[str, str]:
    return next(line for line in lines(facts, check(facts)) if "batches of donor" in line[1])


@pytest.mark.parametrize(
    ("sizes", "n_first", "is_found"),
    [
        ([200, 200], [200, 0], True),  # each cluster one of two equal batches
        ([200, 200], [180, 20], True),  # nine in ten, of half of all cells
        ([200, 200], [170, 30], False),
        ([1000, 1000], [900, 800], False),  # nine in ten, of 85 % of all cells
    ],
)
def test_a_cluster_of_nearly_one_batch_is_told_as_odds(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], n_first: list[int], is_found: bool
) -> None:
    n_cells = sum(sizes)
    codes = np.concatenate([np.arange(size) >= first for size, first in zip(sizes, n_first, strict=True)]).astype(int)
    points = np.random.default_rng(0).normal(size=(n_cells, 4))  # neighbours of both batches
    monkeypatch.setattr(checks, "read_latent", lambda result, rows: points[rows])
    result = result_facts(sizes, batches=Levels(["Ann", "Bob"], codes), batch_key="donor")
    found = [finding["found"] for finding in check(Facts(run_facts(), result)) if finding["check"] == "batches"]
    assert len(found) == is_found
    assert all("nearly one batch" in one for one in found)
    is_good = batches_line(Facts(run_facts(), result)) == ("good", "The 2 batches of donor mix in all clusters.")
    assert is_good != is_found


def test_batches_are_not_said_to_mix_where_nothing_was_measured() -> None:
    few = result_facts([10], batches=Levels(["Ann", "Bob"], np.arange(10) % 2), batch_key="donor")
    severity, line = batches_line(Facts(run_facts(), few))
    assert severity == "note"
    assert "was not measured" in line


def test_one_cluster_is_told_in_the_singular() -> None:
    facts = Facts(run_facts(), result_facts([300]))
    assert ("good", "300 cells in 1 cluster, 0.") in lines(facts, check(facts))
    tree = Tree(np.array([[0, 1, 0.5, 2], [2, 3, 0.6, 3]]), np.ones(3))
    assert [finding["found"].split(", but")[0] for finding in checks._parted(tree, 1, facts)] == ["There is 1 cluster"]


def test_findings_are_plain_text_and_the_most_serious_comes_first(finished: tuple[Path, Path]) -> None:
    found = findings(*finished, label="odd", batch_key="donor")
    order = [checks.ORDER[finding["severity"]] for finding in found]
    assert order == sorted(order)
    assert all(finding["found"].isprintable() and finding["advice"].isprintable() for finding in found)
    assert all(finding["found"].endswith(".") for finding in found)
