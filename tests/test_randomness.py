import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scamac_scale.loader.plan import EpochPlan
from scamac_scale.loader.weighted import WeightedPlan
from scamac_scale.randomness import integer_seed, numpy_generator, plan_generator, torch_generator

PACKAGE = Path(__file__).parents[1] / "scamac_scale"
MAKERS = {"default_rng", "SeedSequence", "RandomState"}


def test_streams_depend_on_seed_purpose_and_keys() -> None:
    streams = [(0, "noise", 1, 2), (1, "noise", 1, 2), (0, "bank", 1, 2), (0, "noise", 2, 1), (0, "noise", 1)]
    draws = {tuple(numpy_generator(*stream).integers(0, 2**31, 4)) for stream in streams}
    assert len(draws) == len(streams)
    assert len({integer_seed(*stream) for stream in streams}) == len(streams)
    assert all(0 <= integer_seed(*stream) < 2**31 for stream in streams)


def test_the_same_keys_give_the_same_stream() -> None:
    np.testing.assert_array_equal(numpy_generator(3, "bank", 5).random(4), numpy_generator(3, "bank", 5).random(4))
    draws = [torch.rand(4, generator=torch_generator(3, "noise", 5, 1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_streams_are_the_same_in_another_process() -> None:
    code = "from scamac_scale.randomness import integer_seed; print(integer_seed(3, 'bank', 5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == integer_seed(3, "bank", 5)


@pytest.mark.slow
def test_streams_are_made_in_one_place() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in MAKERS)
        or (isinstance(node, ast.ImportFrom) and MAKERS & {alias.name for alias in node.names})
    }
    assert found == {"randomness.py"}


def test_streams_of_a_plan_are_numbered() -> None:
    for number, stream in enumerate(("block_order", "lane_order", "draws")):
        expected = np.random.default_rng([3, number, 5, 7]).random(4)
        np.testing.assert_array_equal(plan_generator(3, stream, 5, 7).random(4), expected)


@pytest.mark.parametrize(
    ("is_weighted", "expected"),
    [
        (False, "9ac33826f5a39ee51c6b9c7862b9d7a9d22f4f93610a7b21c3584d442827de5c"),
        (True, "5ddc893cbb34d91fd69ed5ae5e9e594889e7f1e737ca9165a8d57387a3e98017"),
    ],
)
def test_the_order_of_a_plan_is_that_of_earlier_versions(is_weighted: bool, expected: str) -> None:
    sizes = {"window_cells": 1024, "block_cells": 16}
    weights = np.arange(1, 5001) % 7 + 1.0
    plan = WeightedPlan(weights, 64, 3, **sizes) if is_weighted else EpochPlan(5000, 64, 3, **sizes)
    rows = np.concatenate([plan.share(step).rows for step in range(160)])  # two epochs
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == expected
