from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scamac_scale.cells.genes import GeneSpace, InputRecord, duplicates, locate_genes
from scamac_scale.errors import InputError, StoreError

NAMES = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=20, unique=True)


def space(**changes: Any) -> GeneSpace:
    return GeneSpace(
        **{"kind": "counts", "target_sum": 1000.0, "filtered": ("a", "b", "c"), "chosen": ("a", "c"), **changes}
    )


@settings(max_examples=40)
@given(names=NAMES, target=st.floats(1e-6, 1e9))
@pytest.mark.slow
def test_a_gene_space_survives_json(names: list[str], target: float) -> None:
    before = GeneSpace("linear", target, tuple(names), tuple(names[::2]))
    assert GeneSpace.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_a_gene_space_reads_arrays_of_strings() -> None:
    written = space().to_dict() | {"filtered": np.array(["a", "b", "c"]), "target_sum": np.float64(1000.0)}
    assert GeneSpace.from_dict(written) == space()


def test_log_values_have_no_target() -> None:
    assert space(kind="log", target_sum=None).target_sum is None
    with pytest.raises(InputError, match="counts and linear values need one, log values none"):
        space(kind="log")
    with pytest.raises(InputError, match="counts and linear values need one, log values none"):
        space(target_sum=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "binary"}, "kind='binary' of a gene space; it is one of counts, linear, log"),
        ({"target_sum": 0.0}, "target_sum=0.0 of a gene space; it must be positive and finite"),
        ({"target_sum": float("nan")}, "must be positive and finite"),
        ({"chosen": ()}, "without chosen genes"),
        ({"filtered": ("a", "b", "a", "c")}, "filtered genes of a gene space repeat a; names must be unique"),
        ({"chosen": ("c", "c")}, "chosen genes of a gene space repeat c"),
        ({"chosen": ("a", "z")}, "1 chosen genes are not among the filtered ones, such as 'z'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        space(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "?"}, "kind"),
        ({"filtered": "abc"}, "expected a list of gene names, got str"),
        ({"chosen": 3}, "expected a list of gene names, got int"),
        ({"target_sum": "many"}, "target_sum is str"),
    ],
)
def test_a_damaged_record_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=f"the saved gene space is damaged: .*{message}"):
        GeneSpace.from_dict(space().to_dict() | changes)


INPUT = InputRecord(1, 9, 10, 7, {"where": 3}, 1, 2)


def test_what_the_input_held_is_kept_and_tells_no_gene_spaces_apart() -> None:
    written = json.loads(json.dumps(space(input=INPUT).to_dict(has_input=True)))
    assert GeneSpace.from_dict(written).input == INPUT
    assert space(input=INPUT) == space()
    assert space(input=INPUT).to_dict() == space().to_dict()


@pytest.mark.parametrize("changes", [{"n_cells": 9}, {"n_genes": -1}, {"left_out": {"where": "3"}}, {"left_out": None}])
def test_a_damaged_record_of_the_input_is_refused(changes: dict[str, Any]) -> None:
    written = space(input=INPUT).to_dict(has_input=True)
    assert isinstance(written["input"], dict)
    with pytest.raises(StoreError, match="the saved gene space is damaged"):
        GeneSpace.from_dict(written | {"input": written["input"] | changes})


@pytest.mark.parametrize("key", ["kind", "target_sum", "filtered", "chosen"])
def test_a_missing_key_is_named(key: str) -> None:
    written = space().to_dict()
    del written[key]
    with pytest.raises(StoreError, match=f"'{key}'"):
        GeneSpace.from_dict(written)


def test_each_repeated_name_is_reported_once() -> None:
    assert duplicates(["x", "y", "x", "z", "y", "x"]) == ["x", "y"]
    assert duplicates(["x", "y"]) == []


@settings(max_examples=40)
@given(names=NAMES, wanted=NAMES)
def test_genes_are_located_by_name(names: list[str], wanted: list[str]) -> None:
    for gene, position in zip(wanted, locate_genes(wanted, names), strict=True):
        assert (names[position] == gene) if position >= 0 else (gene not in names)
