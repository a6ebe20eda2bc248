"""Landmarks and codes that somebody has forged and sealed are refused: kernels take them for places."""

import numpy as np
import pytest
import torch

from scamac_scale.train.clusters.landmarks import Landmarks
from scamac_scale.train.clusters.targets import _check_codes

CODES, WEIGHTS, COUNTS = np.array([[0, 1], [1, 0], [2, 2]]), np.array([1.0, 3.0]), np.array([4, 5, 1])


def test_what_a_consensus_leaves_is_taken() -> None:
    _check_codes(CODES, WEIGHTS, COUNTS, 10)


@pytest.mark.parametrize(
    ("codes", "weights", "counts"),
    [
        (CODES + 2**40, WEIGHTS, COUNTS),
        (CODES * (2**62 - 1), WEIGHTS, COUNTS),
        (CODES - 1, WEIGHTS, COUNTS),
        (CODES + 1, WEIGHTS, COUNTS),
        (CODES, np.array([1.0, np.inf]), COUNTS),
        (CODES, WEIGHTS, COUNTS + 1),
        (CODES.astype(np.int32), WEIGHTS, COUNTS),
    ],
)
def test_other_codes_are_refused(codes: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="consensus"):
        _check_codes(codes, weights, counts, 10)


@pytest.mark.parametrize(
    ("weights", "labels"), [([4, 6], [0, 2**40]), ([4, 7], [0, 1]), ([0, 10], [0, 1]), ([4, 6], [0, -1])]
)
def test_other_landmarks_are_refused(weights: list[int], labels: list[int]) -> None:
    x = torch.zeros(2, 5)
    Landmarks.from_plain([x, torch.tensor([4, 6]), torch.tensor([0, 1])], 10, 5)
    with pytest.raises(ValueError, match="landmarks"):
        Landmarks.from_plain([x, torch.tensor(weights), torch.tensor(labels)], 10, 5)
