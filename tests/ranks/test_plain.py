"""What ranks send one another comes back to the last bit, and runs nothing, whatever came instead."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scamac_scale
from scamac_scale import errors
from scamac_scale.errors import ScamacError, error_from_plain, error_to_plain
from scamac_scale.ranks import plain
from scamac_scale.ranks.plain import pack, unpack
from tests.support.stranger import Bomb

TENSORS = [
    torch.arange(7).to(dtype)[1:] for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64)
]
ARRAYS = [
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6.0).reshape(2, 3)[:, ::-1],
    np.zeros((0, 3), np.float32),
    np.float32(0.1),
    np.array([True, False]),
]
VALUES: list[Any] = [
    *(None, True, 7, -(2**70), 0.1 + 0.2, 5e-324, math.inf, -0.0, "", 'a "word" \udcff \U0001f9ec'),
    *([], (), {}, [1, (2, [3.5, None])], {1: "a", "1": "b", None: 0.5, 2.5: ("list", "dict")}),
    ["dict", ["tensor", 1]],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_data_comes_back(value: Any) -> None:
    found = unpack(pack(value))
    assert repr(found) == repr(value)  # types, order and the sign of zero, too


def test_not_a_number_comes_back() -> None:
    assert math.isnan(unpack(pack(math.nan)))


@pytest.mark.parametrize("value", [*TENSORS, torch.tensor(0.1), torch.zeros(2, 0), torch.arange(6.0).reshape(2, 3).T])
def test_tensors_come_back(value: torch.Tensor) -> None:
    found = unpack(pack([value, {"again": value}]))
    torch.testing.assert_close(found[0], value, rtol=0, atol=0)
    torch.testing.assert_close(found[1]["again"], value, rtol=0, atol=0)
    found[0].zero_()  # memory of its own


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype}{value.shape}")
def test_arrays_come_back_in_the_order_in_which_they_lie(value: Any) -> None:
    found = unpack(pack((value,)))[0]
    assert type(found) is type(value)
    np.testing.assert_array_equal(found, value, strict=True)
    assert found.flags.f_contiguous == value.flags.f_contiguous


@pytest.mark.parametrize(
    "value",
    [
        Bomb(Path("bomb")),
        object(),
        {1, 2},
        b"bytes",
        Path("x"),
        {(1, 2): 3},
        np.array(["a"]),
        np.array([None]),
        1j,
        torch.zeros(2).to_sparse(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_is_sent(value: Any) -> None:
    with pytest.raises((TypeError, NotImplementedError, RuntimeError)):
        pack([value])


def test_a_long_text_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_TEXT_BYTES", 100)
    with pytest.raises(ValueError, match="more than ranks send one another"):
        pack(["x" * 100])
    monkeypatch.undo()
    sent = pack(["x" * 100])
    monkeypatch.setattr(plain, "MAX_TEXT_BYTES", 100)
    with pytest.raises(ValueError, match="longer than it says"):
        unpack(sent)


def packed(text: str, content: bytes = b"") -> torch.Tensor:
    """As `pack` does it, with any text."""
    head = len(text).to_bytes(8, "little") + text.encode()
    return torch.frombuffer(bytearray(head + bytes(-len(head) % 16) + content), dtype=torch.uint8)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "{}",
            '{"a": 1}',
            "[]",
            "[1]",
            '["pickle", "gASV"]',
            '["dict", 7]',
            '["dict", [[], 1]]',
            '["dict", [1, 2, 3]]',
        ),
        *('["tensor", "float32", [4], 0]', '["tensor", "float32", [-1], 0]', '["tensor", "float32", [1e9], 0]'),
        *(
            '["tensor", "float32", [1152921504606846976], 0]',
            '["tensor", "object", [1], 0]',
            '["tensor", "float32", 1, 0]',
        ),
        *(
            '["array", "|O", [1], 0, "C"]',
            '["array", "<f4", [1], 8, "X"]',
            '["array", "<f4", [1], -4, "C"]',
            '["array"]',
        ),
        *('["scalar", 7]', "[" * 100_000, '["list", ' * 50_000, "1" * 5000),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_such_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind: it is told as a lost rank
        unpack(packed(text, bytes(8)))


def test_damaged_bytes_give_other_values_or_are_refused() -> None:
    sent = pack({"a": TENSORS, "b": ARRAYS, "c": VALUES})
    rng = random.Random(0)
    for _ in range(300):
        spoiled = sent.clone()[: rng.choice([len(sent), rng.randrange(len(sent))])]
        for _ in range(rng.randrange(4)):
            if len(spoiled):
                spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        try:
            unpack(spoiled)
        except ValueError:
            continue


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ScamacError)]
)
def test_every_error_travels(kind: type[ScamacError]) -> None:
    error = kind("what came, and what to do")
    error.exit_code = 77
    if isinstance(error, OSError):
        error.errno = 28
    found = error_from_plain(unpack(pack(error_to_plain(error))))
    assert type(found) is kind
    assert (str(found), found.exit_code) == (str(error), 77)
    assert getattr(found, "errno", None) == getattr(error, "errno", None)


def test_an_error_of_another_name_is_one_of_ours() -> None:
    found = error_from_plain({"kind": "SystemExit", "message": ["x"], "exit_code": 0, "errno": "x"})
    assert type(found) is ScamacError
    assert found.exit_code == 2
    assert type(error_from_plain({})) is ScamacError

    class Special(errors.StoreError):
        pass

    assert type(error_from_plain(error_to_plain(Special("x")))) is errors.StoreError


# ---------------------------------------------------------------------- nothing else


def test_nothing_that_another_rank_sends_is_unpickled() -> None:
    forbidden = re.compile(
        r"(gather|scatter|broadcast|recv|send)_object(_list)?\(|pickle\.loads?\(|Unpickler|weights_only=False|allow_pickle=True|import (dill|cloudpickle)"
    )
    found = [
        f"{path.name}: {match[0]}"
        for path in sorted(Path(scamac_scale.__file__).parent.rglob("*.py"))
        if path.parent.name != "workers"  # dask runs what its client sends, as docs/dask.md says
        for match in forbidden.finditer(path.read_text())
    ]
    assert found == []
    ranks = Path(scamac_scale.__file__).parent / "ranks"
    assert not any("pickle" in path.read_text().replace("unpickle", "") for path in ranks.rglob("*.py"))
    assert not any("torch.load" in path.read_text() for path in ranks.rglob("*.py"))
