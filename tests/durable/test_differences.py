from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.durable.differences import Difference, differences, plain, told

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
KEYS = st.text("abc", min_size=1, max_size=2)
NESTED = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=3)


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


@given(NESTED)
def test_nothing_differs_from_itself_with_tuples_for_lists(data: dict[str, Any]) -> None:
    assert list(differences(data, tuples(data))) == []
    assert plain(tuples(data)) == data


@given(NESTED, NESTED)
def test_what_differs_one_way_differs_the_other_way(first: dict[str, Any], second: dict[str, Any]) -> None:
    there = {(key, str(before), str(after)) for key, before, after in differences(first, second)}
    back = {(key, str(after), str(before)) for key, before, after in differences(second, first)}
    assert there == back


def test_each_value_is_named_by_its_path() -> None:
    before = {"loss": {"gamma": 0.1, "kind": "dense"}, "seed": 0, "old": 1}
    after = {"seed": 1, "loss": {"gamma": 0.2, "kind": "dense"}, "new": {"a": None, "b": (1, 2)}}
    assert list(differences(before, after)) == [
        Difference("seed", 0, 1),
        Difference("loss.gamma", 0.1, 0.2),
        Difference("new.b", None, [1, 2]),
        Difference("old", 1, None),
    ]


def test_a_value_in_place_of_a_part_is_told_as_a_whole() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": 2})) == [Difference("a", {"b": 1}, 2)]


def test_words_name_the_values_but_those_of_digests() -> None:
    found = list(differences({"model": "f0", "size": 1, "seed": 0}, {"model": "a1", "size": 2, "seed": 1}))
    assert told(found, digests=("model",)) == "another model, size=2 (it was 1), seed=1 (it was 0)"
    assert told(found[1:], most=1) == "size=2 (it was 1) and others"
    assert told(found[1:], most=2) == "size=2 (it was 1), seed=1 (it was 0)"
