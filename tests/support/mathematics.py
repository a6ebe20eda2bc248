"""What the tests of the mathematics share: seeded tensors, exact comparison with the reference, settings of the laws."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""Against the float64 reference: the two add in another order and differ in the last few of 16 digits."""

LAWS = settings(deadline=None, max_examples=30, derandomize=True)
"""No deadline, since no test asserts a time; the same examples in every run."""


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def memberships(seed: int, n_cells: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.softmax(2 * normal(seed, n_cells, columns), dim=1).to(dtype)


def assert_exact(ours: torch.Tensor, reference: np.ndarray | float) -> None:
    torch.testing.assert_close(ours.detach().double(), torch.as_tensor(reference, dtype=torch.float64), **EXACT)


@st.composite
def matrix(draw: st.DrawFn, rows: int | None = None, columns: int | None = None, low: float = -10.0) -> torch.Tensor:
    """Float64 matrix of 1 to 8 rows and columns (unless given), with values from `low` to 10, zeros included."""
    shape = (rows or draw(st.integers(1, 8)), columns or draw(st.integers(1, 8)))
    values = st.floats(low, 10.0, allow_nan=False, allow_subnormal=False)
    return torch.from_numpy(draw(arrays(np.float64, shape, elements=values)))
