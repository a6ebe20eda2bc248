"""Queries: as ``DataFrame.query`` answers them, and nothing that runs code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.query import chosen_by

N = 60
RNG = np.random.default_rng(0)
OBS = pd.DataFrame(
    {
        "donor": pd.Categorical(RNG.choice(["D1", "D2", "D7"], N)),
        "stage": pd.Categorical(RNG.choice(["low", "mid", "high"], N), categories=["low", "mid", "high"], ordered=True),
        "text": RNG.choice(["x", "y|z", "a & b"], N),
        "age": RNG.integers(20, 60, N),
        "score": np.where(RNG.random(N) < 0.2, np.nan, RNG.random(N)),
        "is_doublet": RNG.random(N) < 0.3,
        "maybe": pd.array(RNG.choice(np.array([True, False, None], object), N), dtype="boolean"),
        "cell type": RNG.choice(["B cell", "T cell"], N),
        "cluster": pd.Categorical(RNG.integers(0, 4, N)),
        "day": pd.to_datetime("2024-01-01") + pd.to_timedelta(RNG.integers(0, 9, N), "D"),
    },
    index=[f"cell{i}" for i in range(N)],
)


@pytest.mark.parametrize(
    "query",
    [
        'donor != "D7"',
        "donor == 'D7' and age > 30",
        "age > 30 & is_doublet",
        "age > 30 | donor == 'D1' & score < 0.5",
        "not is_doublet",
        "~is_doublet & (age <= 40)",
        "is_doublet",
        "30 < age <= 50",
        "30 < age",
        "donor in ['D1', 'D2']",
        "donor not in ('D1',)",
        "donor == ['D1', 'D7']",
        "donor != ['D1', 'D7']",
        "cluster in [0, 3]",
        "cluster != 2",
        "`cell type` == 'B cell'",
        "text == 'a & b'",
        "text == 'y|z' or text == \"x\"",
        "index == 'cell3'",
        "index in ['cell3', 'cell9']",
        "score == score",
        "score > 0.5",
        "score != 0.5",
        "score != score",
        "not score == 0.5",
        "age > -1",
        "stage >= 'mid'",
        "day > '2024-01-04'",
        "donor.isin(['D1'])",
        "age == 30 or age == 31 or age == 32",
        "is_doublet == True",
        "age > 3.5e1",
        "  donor == 'D1'  ",
    ],
)
def test_it_chooses_the_rows_that_pandas_does(query: str) -> None:
    found = OBS.index[chosen_by(query, OBS, "x")]
    assert found.tolist() == OBS.query(query.strip(), engine="python").index.tolist()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("score.isna()", OBS["score"].isna()),
        ("score.notnull() and age > 30", OBS["score"].notna() & (OBS["age"] > 30)),
        ("maybe", OBS["maybe"].fillna(False)),
        ("not score > 0.5", OBS["score"] <= 0.5),
        ("not maybe", ~OBS["maybe"].fillna(True)),
        ("maybe or not maybe", OBS["maybe"].notna()),
        (r"text == 'a\d' or age > 50", OBS["age"] > 50),
    ],
)
def test_what_is_not_known_is_not_taken(query: str, expected: pd.Series) -> None:
    np.testing.assert_array_equal(chosen_by(query, OBS, "x"), expected.to_numpy(dtype=bool))


def missing_in(kind: str) -> pd.DataFrame:
    """A column v of three kinds of cells (low, high, missing), stored in one of many ways; and one without missing values."""
    low, high = LOW_HIGH.get(kind, (1, 3))
    values = [low, high, None] * 4
    if kind in ("object", "text"):
        column: object = np.array(values, dtype=object)
    elif kind == "float":
        column = np.array([1, 3, np.nan] * 4)
    elif kind == "categorical":
        column = pd.Categorical(values, categories=[low, high], ordered=True)
    else:
        column = pd.array(values, dtype=kind)
    found = pd.DataFrame({"v": column, "all": [1, 1, 1] * 4, "w": column}, index=["c"] * 12)  # names may repeat
    assert found["v"].isna().sum() == 4
    return found


LOW_HIGH = {"categorical": ("a", "b"), "string": ("a", "b"), "text": ("a", "b"), "boolean": (False, True)}
KINDS = ["float", "object", "Int64", "UInt8", "Float32", "categorical", "string", "text", "boolean"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("query", "expected"),  # for low, high and missing
    [
        ("v == HIGH", "010"),
        ("not v == HIGH", "101"),
        ("v != HIGH", "101"),
        ("not v != HIGH", "010"),
        ("v in [HIGH]", "010"),
        ("not v in [HIGH]", "101"),
        ("v not in [HIGH]", "101"),
        ("not v.isin([HIGH])", "101"),
        ("v != [HIGH]", "101"),
        ("v > LOW", "010"),
        ("not v > LOW", "100"),
        ("LOW < v", "010"),
        ("not LOW < v", "100"),
        ("v >= HIGH", "010"),
        ("not v >= HIGH", "100"),
        ("v < HIGH", "100"),
        ("~(v < HIGH)", "010"),
        ("v <= LOW", "100"),
        ("not v <= LOW", "010"),
        ("not not v <= LOW", "100"),
        ("LOW <= v <= HIGH", "110"),
        ("not LOW <= v <= HIGH", "000"),
        ("v > LOW or v.isna()", "011"),
        ("v > LOW or all == 1", "111"),
        ("not (v > LOW and all == 1)", "100"),
        ("not (v > LOW and all == 2)", "111"),
        ("not (v > LOW or all == 2)", "100"),
        ("not (v > LOW or all == 1)", "000"),
        ("v == w", "110"),
        ("v != w", "001"),
        ("v <= w", "110"),
        ("not v <= w", "000"),
        ("not v.isna()", "110"),
    ],
)
def test_the_answer_for_a_missing_value_does_not_depend_on_how_it_is_stored(
    kind: str, query: str, expected: str
) -> None:
    low, high = LOW_HIGH.get(kind, (1, 3))
    found = chosen_by(query.replace("LOW", repr(low)).replace("HIGH", repr(high)), missing_in(kind), "x")
    assert "".join(str(int(mark)) for mark in found[:3]) == expected
    np.testing.assert_array_equal(found, np.tile(found[:3], 4))


@pytest.mark.parametrize(
    "column",
    [
        pd.array([True, False, None], dtype="boolean"),
        np.array([True, False, None], dtype=object),
        pd.Categorical([True, False, None]),
    ],
)
def test_marks_with_missing_ones_are_unknown_whichever_way(column: object, caplog: pytest.LogCaptureFixture) -> None:
    obs = pd.DataFrame({"v": column}, index=["a", "b", "c"])
    with caplog.at_level("INFO"):
        assert chosen_by("v", obs, "x").tolist() == [True, False, False]
    assert "of 1 cells values are missing" in caplog.text
    assert chosen_by("not v", obs, "x").tolist() == [False, True, False]
    assert chosen_by("v or not v", obs, "x").tolist() == [True, True, False]
    assert chosen_by("v == True", obs, "x").tolist() == [True, False, False]
    assert chosen_by("not v == True", obs, "x").tolist() == [False, True, True]
    assert chosen_by("(not v) == False", obs, "x").tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("donr == 'D1'", "no column 'donr'; it has donor, stage"),
        ("donor == D1", "no column 'D1'.*texts stand in quotes"),
        ("donor = 'D1'", "cannot be read"),
        ("donor ==", "cannot be read"),
        ("donor == 'D1", "cannot be read"),
        ("`cell type == 'x'", "a backtick is not closed"),
        ("donor", "not yes or no"),
        ("age", "gives int64"),
        ("1 < 2", "compares no column"),
        ("True", "names no column"),
        ("donor == 7", "holds text, so that 7 must stand in quotes"),
        ("age == '30'", "holds int64, so that '30' must not stand in quotes"),
        ("cluster in ['1']", "must not stand in quotes"),
        ("donor < 'D2'", "categories without an order"),
        ("donor is 'D1'", "is and is not are not taken"),
        ("'D1' in donor", "a list stands behind in"),
        ("age + 1 > 3", "not taken"),
        ("@evil", "cannot be read"),
        ("@__import__('os').system('x')", "cannot be read"),
        ("__import__('os').system('touch pwned')", "a call, and nothing is called"),
        ("donor.map(print)", "nothing is called"),
        ("donor.isin(open('x'))", "nothing is called"),
        ("donor.isin(['a'], level=1)", "nothing is called"),
        ("donor.str.contains('D')", "nothing is called"),
        ("donor.__class__", "not taken"),
        ("donor[0] == 'x'", "not taken"),
        ("(lambda: 1)()", "nothing is called"),
        ("[x for x in donor]", "not taken"),
        ("(age := 3) > 2", "not taken"),
        ("donor == f'{age}'", "not taken"),
        ("age > (3 if is_doublet else 4)", "not taken"),
        ("`__import__('os')` == 'x'", 'no column "__import__'),
        ("age > 3; import os", "cannot be read"),
        ("age > 3\nimport os", "cannot be read"),
        ("a" * 20_000, "more than 10,000 letters"),
        ("(" * 300 + "age > 3" + ")" * 300, "cannot be read|nested too deeply"),
        ("not " * 2000 + "is_doublet", "cannot be read|nested too deeply"),
        ("age > 1\0", "cannot be read"),
        ("age > b'x'", "not taken"),
        ("donor in [donor]", "stands in a list"),
        ("", "cannot be read"),
        ("   ", "cannot be read"),
    ],
)
def test_everything_else_is_refused_in_one_sentence(query: str, word: str, tmp_path: object) -> None:
    with pytest.raises(InputError, match=word) as refused:
        chosen_by(query, OBS, "atlas")
    assert str(refused.value).startswith("atlas: ingest.where")
    assert "\n" not in str(refused.value).replace(repr(query), "")
