from __future__ import annotations

import datetime as dt
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from scamac_scale.errors import InputError
from scamac_scale.store.obs import storable_frame
from scamac_scale.store.reader import StoreReader
from tests.support.stores import counts, write

if TYPE_CHECKING:
    from pathlib import Path

DAYS = [dt.date(2024, 1, day) for day in range(1, 7)]

SAME: dict[str, Any] = {
    "text": ["a", "b", "", "d", "é", "f"],
    "category": pd.Categorical(["a", None, "b", "a", "a", "b"]),
    "ordered": pd.Categorical([1, 2, 3, 1, 2, 3], ordered=True),
    "flags": pd.Categorical([True, False] * 3),
    "unused": pd.Categorical(["a"] * 6, categories=["b", "a", "c"]),
    "all missing": pd.Categorical([None] * 6, categories=["a"]),
    "float": [1.0, np.nan, 3, 4, 5, np.inf],
    "half": np.arange(6, dtype=np.float16),
    "int8": np.arange(6, dtype=np.int8),
    "uint64": np.arange(6, dtype=np.uint64) + 2**63,
    "bool": [False] * 6,
    "zero": [0] * 6,
    "nullable integer": pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
    "nullable bool": pd.array([True, None] * 3, dtype="boolean"),
}
CHANGED: dict[str, tuple[Any, Any]] = {
    "text with missing": (["a", np.nan, None, "b", "a", "b"], pd.Categorical(["a", None, None, "b", "a", "b"])),
    "string": (pd.array(["a", None] * 3, dtype="string"), pd.Categorical(["a", None] * 3)),
    "string in full": (pd.array(["a", "b"] * 3, dtype="string"), ["a", "b"] * 3),
    "nothing": ([None] * 6, [np.nan] * 6),
    "bool objects": (np.array([True, False] * 3, object), [True, False] * 3),
    "bool and missing": ([True, None] * 3, pd.array([True, None] * 3, dtype="boolean")),
    "integers and missing": (np.array([1, None] * 3, object), pd.array([1, None] * 3, dtype="Int64")),
    "float objects": (np.array([1.5, None] * 3, object), [1.5, np.nan] * 3),
    "nullable float": (pd.array([1.5, None] * 3, dtype="Float64"), [1.5, np.nan] * 3),
    "mixed": (["a", 1, "a", 1, None, 2.5], pd.Categorical(["a", "1", "a", "1", None, "2.5"])),
    "dates": (DAYS, [f"2024-01-0{day}" for day in range(1, 7)]),
    "times": (pd.to_datetime(DAYS), [f"2024-01-0{day} 00:00:00" for day in range(1, 7)]),
    "times with missing": (
        pd.to_datetime([DAYS[0], None] * 3),
        pd.Categorical(["2024-01-01 00:00:00", None] * 3),
    ),
    "intervals": (pd.cut(np.arange(6), [-1, 2, 6]), pd.Categorical(["(-1, 2]"] * 3 + ["(2, 6]"] * 3, ordered=True)),
    "categories of two types": (pd.Categorical(["1", 1, None] * 2), pd.Categorical(["1", "1", None] * 2)),
    "sparse": (pd.arrays.SparseArray([0, 0, 1, 0, 0, 2]), [0, 0, 1, 0, 0, 2]),
    "bytes": (["\xe9".encode(), b"a", b"a ", b"1.5", b"b", b"\xe9"], ["\xe9", "a", "a ", "1.5", "b", "\\xe9"]),
    "bytes with missing": ([b"a", None] * 3, pd.Categorical(["a", None] * 3)),
    "categories of bytes": (pd.Categorical([b"a", b"b", None] * 2), pd.Categorical(["a", "b", None] * 2)),
}


def read_back(tmp_path: Path, obs: pd.DataFrame) -> pd.DataFrame:
    return StoreReader(write(tmp_path / "a.zarr", counts(len(obs), 4), obs=obs).path).obs


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    columns = SAME | {name: given for name, (given, _) in CHANGED.items()}
    obs = pd.DataFrame(columns, index=pd.Index([f"c{i}" for i in range(6)], name="barcode"))
    return read_back(tmp_path_factory.mktemp("obs"), obs)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.slow
def test_usual_column_reads_back_as_it_was(stored: pd.DataFrame, name: str) -> None:
    pd.testing.assert_series_equal(stored[name], pd.Series(SAME[name], index=stored.index, name=name))


@pytest.mark.parametrize("name", CHANGED)
def test_unusual_column_reads_back_as_its_nearest_type(stored: pd.DataFrame, name: str) -> None:
    expected = pd.Series(CHANGED[name][1], index=stored.index, name=name)
    pd.testing.assert_series_equal(stored[name], expected)


def test_order_and_names_stay(stored: pd.DataFrame) -> None:
    assert list(stored.columns) == [*SAME, *CHANGED]
    assert stored.index.name == "barcode"
    assert stored.index.tolist() == [f"c{i}" for i in range(6)]


def test_repeated_cell_names_are_kept(tmp_path: Path) -> None:
    assert read_back(tmp_path, pd.DataFrame(index=["a", "a", "b"])).index.tolist() == ["a", "a", "b"]


def test_names_that_anndata_cannot_write_are_changed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    obs = pd.DataFrame({"a/b": [1], "_index": [2], 3: [4]}, index=pd.Index([7], name="a/b"))
    with caplog.at_level(logging.WARNING):
        frame = storable_frame(obs)
    assert list(frame.columns) == ["a_b", "index", "3"]
    assert frame.index.tolist() == ["7"]
    assert frame.index.name is None
    assert "column 'a/b' of the input is stored as 'a_b'" in caplog.text


def test_columns_of_one_name_are_refused() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    with pytest.raises(InputError, match="repeat a"):
        storable_frame(frame)
