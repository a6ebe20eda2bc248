from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scamac_scale.cells.csr import CsrBlock, check_rows
from scamac_scale.errors import InputError, PlanError


def arrays(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "indptr": np.array([0, 2, 2, 3]),
        "indices": np.array([0, 3, 1], dtype=np.uint16),
        "data": np.ones(3, np.float32),
        "n_genes": 4,
    }
    return good | changes


def test_block_counts_its_cells() -> None:
    assert CsrBlock(**arrays()).n_cells == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.array([0, 4, 1])}, "outside 0 to 3"),
        ({"indices": np.array([0, -1, 1])}, "outside 0 to 3"),
        ({"indptr": np.array([0, 2, 1, 3])}, "never fall"),
        ({"indptr": np.array([1, 2, 2, 3])}, "start at 0"),
        ({"indptr": np.array([0, 2, 2, 9])}, "end at the number of values"),
        ({"indptr": np.array([0, 2, 2, 3], dtype=np.int32)}, "int64 row pointers"),
        ({"data": np.ones(3)}, "float32 values"),
        ({"data": np.ones(2, np.float32)}, r"expected \(B \+ 1,\)"),
        ({"indices": np.array([0.0, 3.0, 1.0])}, "integer"),
    ],
)
def test_block_refuses_what_would_be_written_out_of_bounds(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CsrBlock(**arrays(**changes))


@pytest.mark.parametrize(("rows", "named"), [([0, 10], "10"), ([-1, 3], "-1")])
def test_row_outside_the_source_is_named(rows: list[int], named: str) -> None:
    with pytest.raises(PlanError, match=f"Row {named} is not in the source, which has rows 0 to 9"):
        check_rows(np.array(rows), 10)


@pytest.mark.parametrize("rows", [np.array([0.5]), np.zeros((2, 2), int), np.array([True])])
def test_rows_that_are_no_list_of_whole_numbers_are_refused(rows: Any) -> None:
    with pytest.raises(PlanError, match="whole numbers"):
        check_rows(rows, 10)


def test_no_rows_are_fine() -> None:
    assert check_rows(np.array([]), 10).dtype == np.int64
