from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scamac_scale.cells.tech_batches import UNKNOWN, as_categories, find_tech_batches, split_key
from scamac_scale.errors import InputError

DAYS = [dt.date(2024, 1, day) for day in (1, 2, 1, 2, 2, 1)]
SAME_LEVELS = {
    "text": (["b", "a", "b", "a", "a", "b"], ("a", "b")),
    "pandas text": (pd.array(["b", "a"] * 3, dtype="string"), ("a", "b")),
    "category": (pd.Categorical(["b", "a"] * 3, categories=["z", "b", "a"]), ("a", "b")),
    "integers": ([10, 9, 10, 9, 9, 10], ("10", "9")),
    "nullable integers": (pd.array([2, 1] * 3, dtype="Int64"), ("1", "2")),
    "category of integers": (pd.Categorical([3, 1, 1, 3, 3, 1]), ("1", "3")),
    "whole floats": ([2.0, 1.0] * 3, ("1", "2")),
    "nullable whole floats": (pd.array([2.0, 1.0] * 3, dtype="Float64"), ("1", "2")),
    "float objects": (np.array([2.0, 1.0] * 3, object), ("1.0", "2.0")),
    "bool": ([True, False] * 3, ("False", "True")),
    "bool objects": (np.array([True, False] * 3, object), ("False", "True")),
    "category of bools": (pd.Categorical([True, False] * 3), ("False", "True")),
    "number and text": (np.array([1, "1", 2] * 2, object), ("1", "2")),
    "dates": (DAYS, ("2024-01-01", "2024-01-02")),
    "times": (pd.to_datetime(DAYS), ("2024-01-01", "2024-01-02")),
    "category of times": (pd.Categorical(pd.to_datetime(DAYS)), ("2024-01-01", "2024-01-02")),
    "intervals": (pd.cut(np.arange(6), [-1, 2, 6]), ("(-1, 2]", "(2, 6]")),
}
"""Columns, and their levels: the same in the table, as categories and in a store."""


@pytest.mark.parametrize("name", SAME_LEVELS)
def test_a_column_has_the_levels_that_it_has_as_categories(name: str) -> None:
    values, levels = SAME_LEVELS[name]
    obs = pd.DataFrame({"batch": values, "other": 0.5}, index=list("abcdef"))
    found = find_tech_batches(obs, ("batch",))
    assert found.names == (levels,)
    changed = as_categories(obs, ("batch",))
    assert isinstance(changed["batch"].dtype, pd.CategoricalDtype)
    assert changed["other"].dtype == np.float64
    again = find_tech_batches(changed, ("batch",))
    assert again.names == found.names
    np.testing.assert_array_equal(again.codes, found.codes)


def test_categories_keep_their_order() -> None:
    obs = pd.DataFrame({"day": pd.Categorical(["d9", "d10"] * 2, categories=["d9", "d10", "d20"], ordered=True)})
    pd.testing.assert_frame_equal(as_categories(obs, ("day",)), obs)


def test_several_columns_have_the_combinations_that_occur() -> None:
    obs = pd.DataFrame({"donor": ["a", "b", "a", "b", "a"], "chip": [2, 1, 2, 1, 1]})
    found = find_tech_batches(obs, ("donor", "chip"))
    assert found.counts == (2, 2)
    assert found.codes.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert found.joint().tolist() == [1, 2, 1, 2, 0]


def test_levels_that_are_not_known_are_told() -> None:
    obs = pd.DataFrame({"donor": ["new", "b", "a"]})
    assert find_tech_batches(obs, ("donor",), (("a", "b"),)).codes[:, 0].tolist() == [UNKNOWN, 1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["a", None, "b", None, "a"],
            r"2 of 5 cells have no value in the batch column 'x', the first is 'c1' \(number 1\)",
        ),
        ([1.0, 2.0, np.nan, 1.0, 2.0], r"1 of 5 cells have no value .* the first is 'c2' \(number 2\)"),
        ([1.0, 2.5, 1.0, 1.0, 2.0], r"'x' holds measurements \(2\.5, \.\.\.\); a batch is a whole number or a name"),
        ([1.0, np.inf, 1.0, 1.0, 2.0], r"holds measurements \(inf, \.\.\.\)"),
        ([1, 2, 3, 4, 5], r"every cell has a value of its own in the batch column 'x' \('1', '2', \.\.\.\)"),
    ],
)
def test_a_column_that_tells_no_batches_is_refused(values: Any, message: str) -> None:
    obs = pd.DataFrame({"x": values}, index=[f"c{i}" for i in range(5)])
    with pytest.raises(InputError, match=message):
        find_tech_batches(obs, ("x",), where="file: obs")


def test_a_column_must_be_there_once_and_be_named_once() -> None:
    obs = pd.DataFrame([[1, 2, 3]] * 3, columns=["x", "y", "x"])
    with pytest.raises(InputError, match=r"file: obs has no column 'z' \(batch key\); it has x, y, x\."):
        find_tech_batches(obs, ("z",), where="file: obs")
    with pytest.raises(InputError, match="obs has 2 columns 'x'"):
        find_tech_batches(obs, ("x",))
    with pytest.raises(InputError, match="names y more than once"):
        find_tech_batches(obs, ("y", "y"))


def test_a_key_is_names_with_commas_between_them() -> None:
    assert split_key("donor, chip") == ("donor", "chip")
    assert split_key(None) == split_key("") == ()
