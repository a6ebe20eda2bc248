"""Which technical batch a cell is from: what obs may hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scamac_scale.cells.tech_batches import UNKNOWN, TechBatches, find_tech_batches, split_key
from scamac_scale.errors import InputError

INDEX = [f"cell{row}" for row in range(6)]


def obs(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=INDEX)


DONOR = ["b", "a", "b", "c", "a", "b"]


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (DONOR, ("a", "b", "c"), [1, 0, 1, 2, 0, 1]),
        (pd.Categorical(DONOR, ["c", "b", "a", "nobody"]), ("a", "b", "c"), [1, 0, 1, 2, 0, 1]),
        ([11, 9, 11, 9, 9, 11], ("11", "9"), [0, 1, 0, 1, 1, 0]),
        ([11.0, 9.0, 11.0, 9.0, 9.0, 11.0], ("11", "9"), [0, 1, 0, 1, 1, 0]),
        ([True, False, True, True, True, True], ("False", "True"), [1, 0, 1, 1, 1, 1]),
        (pd.Categorical([2, 1, 2, 1, 1, 2]), ("1", "2"), [1, 0, 1, 0, 0, 1]),
    ],
    ids=["names", "categories", "numbers", "whole floats", "booleans", "categories of numbers"],
)
def test_levels_are_numbered_in_the_order_of_their_names(
    values: object, names: tuple[str, ...], codes: list[int]
) -> None:
    found = find_tech_batches(obs(donor=values), ("donor",))
    assert found.names == (names,)
    assert found.codes.dtype == np.int32
    np.testing.assert_array_equal(found.codes[:, 0], codes)


def test_levels_of_several_columns_are_numbered_through() -> None:
    found = find_tech_batches(obs(donor=DONOR, chip=[1, 0, 1, 0, 1, 0]), ("donor", "chip"))
    assert found.counts == (3, 2)
    np.testing.assert_array_equal(found.levels[:, 0], found.codes[:, 0])
    np.testing.assert_array_equal(found.levels[:, 1], found.codes[:, 1] + 3)
    np.testing.assert_array_equal(found.joint(), [3, 0, 3, 4, 1, 2])  # b1 a0 b1 c0 a1 b0, of a0 a1 b0 b1 c0


def test_combinations_of_one_column_are_its_levels() -> None:
    found = find_tech_batches(obs(donor=DONOR), ("donor",))
    np.testing.assert_array_equal(found.joint(), found.codes[:, 0])


def test_a_level_that_is_not_known_has_no_number() -> None:
    found = find_tech_batches(obs(donor=DONOR), ("donor",), (("a", "b"),))
    np.testing.assert_array_equal(found.codes[:, 0], [1, 0, 1, UNKNOWN, 0, 1])


def test_cells_of_new_batches_have_numbers_past_all_levels() -> None:
    new = np.array([-1, 0, 1, -1, -1, 0], dtype=np.int32)
    codes = np.array([[0, 1], [-1, 0], [0, -1], [1, 1], [2, 0], [-1, -1]], dtype=np.int32)
    found = TechBatches(("donor", "chip"), (("a", "b", "c"), ("0", "1")), codes, new)
    np.testing.assert_array_equal(found.levels, [[0, 4], [5, 5], [6, 6], [1, 4], [2, 3], [5, 5]])


@pytest.mark.parametrize(
    ("key", "columns"),
    [(None, ()), ("", ()), ("donor", ("donor",)), (" donor , chip", ("donor", "chip")), ("donor,,", ("donor",))],
)
def test_a_key_is_read_as_columns(key: str | None, columns: tuple[str, ...]) -> None:
    assert split_key(key) == columns


REFUSED = {
    "a missing column": ("lab", r"has no column 'lab' \(batch key\); it has donor, depth, hole, gap, name"),
    "measurements": ("depth", r"'depth' holds measurements \(0\.5, \.\.\.\)"),
    "missing values": (
        "hole",
        r"2 of 6 cells have no value in the batch column 'hole', the first is 'cell1' \(number 1\)",
    ),
    "missing categories": ("gap", r"1 of 6 cells have no value in the batch column 'gap', the first is 'cell5'"),
    "a level per cell": ("name", r"every cell has a value of its own in the batch column 'name' \('a', 'b', \.\.\.\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_column_that_tells_no_batch_is_refused(case: str) -> None:
    column, message = REFUSED[case]
    cells = obs(
        donor=DONOR,
        depth=[1.0, 2.0, 0.5, 1.0, 1.0, 2.0],
        hole=["a", None, "a", np.nan, "b", "b"],
        gap=pd.Categorical(["a", "b", "a", "b", "b", None]),
        name=list("abcdef"),
    )
    for columns in ((column,), ("donor", column)):
        with pytest.raises(InputError, match=f"the input: .*{message}|the input {message}"):
            find_tech_batches(cells, columns, where="the input")


def test_measurements_in_categories_are_refused() -> None:
    with pytest.raises(InputError, match="holds measurements"):
        find_tech_batches(obs(depth=pd.Categorical([0.5, 1.0, 0.5, 1.0, 1.0, 0.5])), ("depth",))


def test_one_cell_may_have_a_level_of_its_own_and_new_cells_each_one() -> None:
    assert find_tech_batches(obs(donor=DONOR)[:1], ("donor",)).names == (("b",),)
    found = find_tech_batches(obs(name=list("abcdef")), ("name",), (("a",),))
    assert (found.codes == UNKNOWN).sum() == 5
