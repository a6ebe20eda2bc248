"""Columns of obs of several inputs as one."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.frames import join_frames, kept_columns
from scamac_scale.store.obs import storable_frame


def joined(*columns: object) -> pd.Series:
    """One column of several inputs of two cells each; None is an input without it."""
    frames = [
        pd.DataFrame({} if column is None else {"x": column}, index=[f"{number}a", f"{number}b"])
        for number, column in enumerate(columns)
    ]
    frame = join_frames(frames, [f"file{number}" for number in range(len(frames))])
    assert frame.index.tolist() == [name for one in frames for name in one.index]
    assert len(storable_frame(frame)) == len(frame)
    return frame["x"]


def test_categories_are_merged_in_the_order_in_which_they_come_first() -> None:
    found = joined(
        pd.Categorical(["B", "A"], categories=["B", "A"]), pd.Categorical(["C", None], categories=["A", "C"])
    )
    assert found.cat.categories.tolist() == ["B", "A", "C"]
    assert found.tolist()[:3] == ["B", "A", "C"]
    assert found.isna().tolist() == [False, False, False, True]
    assert not found.cat.ordered


def test_an_order_stays_where_all_have_the_same() -> None:
    column = pd.Categorical(["low", "high"], categories=["low", "high"], ordered=True)
    assert joined(column, column).cat.ordered
    assert not joined(column, pd.Categorical(["high", "low"], categories=["high", "low"], ordered=True)).cat.ordered


@pytest.mark.parametrize(
    ("columns", "kind", "values"),
    [
        (([1, 2], [3, 4]), "int64", [1, 2, 3, 4]),
        ((np.array([1, 2], np.int8), np.array([300, 4], np.uint16)), "int32", [1, 2, 300, 4]),
        (([1, 2], None), "Int64", [1, 2, None, None]),
        (([2**60 + 1, 2], None), "Int64", [2**60 + 1, 2, None, None]),
        ((np.array([2**63 + 1, 2], np.uint64), None), "UInt64", [2**63 + 1, 2, None, None]),
        ((np.array([2**53 + 1, 2], np.uint64), None), "Int64", [2**53 + 1, 2, None, None]),
        ((np.array([2**53 + 1, 2], np.uint64), [-3, 2**60 + 1]), "int64", [2**53 + 1, 2, -3, 2**60 + 1]),
        ((np.array([2**63 + 1, 2], np.uint64), [3, 2**60 + 1]), "uint64", [2**63 + 1, 2, 3, 2**60 + 1]),
        ((pd.array([2**63 + 1, None], dtype="UInt64"), [3, 4]), "UInt64", [2**63 + 1, None, 3, 4]),
        ((pd.array([None, None], dtype="Int64"), [3, 4]), "Int64", [None, None, 3, 4]),
        (([2**53, 2], [0.5, 1]), "float64", [2.0**53, 2, 0.5, 1]),
        (([1, 2], [0.5, np.nan]), "float64", [1, 2, 0.5, None]),
        ((np.array([1, 2], np.float32), None), "float32", [1, 2, None, None]),
        (([True, False], [True, True]), "bool", [True, False, True, True]),
        (([True, False], None), "boolean", [True, False, None, None]),
        ((["a", "b"], ["c", "a"]), "object", ["a", "b", "c", "a"]),
        ((["a", "b"], None), "category", ["a", "b", None, None]),
        ((["a", None], pd.Categorical(["b", "a"])), "category", ["a", None, "b", "a"]),
        (([np.nan, np.nan], ["a", "b"]), "category", [None, None, "a", "b"]),
        (([np.nan, np.nan], None), "float64", [None] * 4),
        ((pd.array([1, None], dtype="Int64"), [3, 4]), "Int64", [1, None, 3, 4]),
        ((pd.Categorical([3, 1]), pd.Categorical([2, 3])), "category", [3, 1, 2, 3]),
        ((pd.to_datetime(["2020-01-01", "2021-01-01"]),) * 2, "datetime64[ns]", None),
    ],
)
def test_types_stay_and_what_is_missing_is_missing(columns: tuple, kind: str, values: list | None) -> None:
    found = joined(*columns)
    assert str(found.dtype) == kind
    if values is not None:
        assert [None if pd.isna(value) else value for value in found] == values


def test_types_that_do_not_fit_become_text_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = joined([1, 2], ["1", "x"], [1.0, np.nan], [True, False])
    assert found.astype(object).where(found.notna(), None).tolist() == ["1", "2", "1", "x", "1", None, "True", "False"]
    assert "the columns x hold other types" in caplog.text


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (np.array([2**63 + 1, 2], np.uint64), [-3, 4], [str(2**63 + 1), "2", "-3", "4"]),
        ([2**53 + 1, 2], [0.5, 3.0], [str(2**53 + 1), "2", "0.5", "3"]),
    ],
)
def test_numbers_that_no_type_holds_exactly_become_text_with_a_word(
    first: object, second: object, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert joined(first, second).tolist() == expected
    assert "numbers that are too large together, and become text" in caplog.text


def test_a_file_with_two_columns_of_one_name_is_named() -> None:
    twice = pd.DataFrame([[1, 2]], columns=["x", "x"], index=["a"])
    with pytest.raises(InputError, match="file1: obs repeats the columns x"):
        join_frames([pd.DataFrame({"x": [1]}, index=["b"]), twice], ["file0", "file1"])


def test_only_columns_that_are_asked_for_are_kept() -> None:
    obs = pd.DataFrame({"a": [1], "b": [2], "c": [3], "d": [4]})
    assert list(kept_columns(obs, "c, a", "b", "x")) == ["a", "b", "c"]
    assert kept_columns(obs, None, "b", "x") is obs
    with pytest.raises(InputError, match=r"no column 'e' \(ingest.columns\); it has a, b, c, d"):
        kept_columns(obs, "a,e", None, "x")
