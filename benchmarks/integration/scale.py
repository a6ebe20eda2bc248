"""The correction alone on many simulated cells: time, peak memory, and the exponent of time in the number of cells.

Each run is a process of its own. Cells are a mixture in 32 dimensions; every batch shifts all cells, and every type a
little further, by random vectors.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from integration.children import SCRIPTS, Peers, call_script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WIDTH, TYPES = 32, 15
SHIFT, TYPE_SHIFT = 2.0, 0.5
"""Standard deviation over dimensions of the shift of a batch, and of that of a type in a batch; cells have 1."""
METHODS = {"ours": (), "pca50-harmony": ("harmonypy",)}
DRAWN = 100_000


def mixture(n_cells: int, n_batches: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Cells (N, 32) and their batches (N,), drawn in parts so that memory stays that of the result."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 4.0, (TYPES, WIDTH)).astype(np.float32)
    shifts = rng.normal(0, SHIFT, (n_batches, WIDTH)) + rng.normal(0, TYPE_SHIFT, (TYPES, n_batches, WIDTH))
    shifts = shifts.astype(np.float32)
    weights = rng.dirichlet(np.full(TYPES, 2.0))
    cells, batches = np.empty((n_cells, WIDTH), np.float32), np.empty(n_cells, np.int32)
    for start in range(0, n_cells, DRAWN):
        stop = min(start + DRAWN, n_cells)
        types = rng.choice(TYPES, stop - start, p=weights)
        batches[start:stop] = rng.integers(0, n_batches, stop - start)
        drawn = rng.standard_normal((stop - start, WIDTH), dtype=np.float32)
        cells[start:stop] = drawn + centers[types] + shifts[types, batches[start:stop]]
    return cells, batches


def run_case(method: str, n_cells: int, n_batches: int, seed: int, peers: Peers) -> dict[str, Any]:
    """One correction: what it took, and how far the batches lie apart before and after."""
    cells, batches = mixture(n_cells, n_batches, seed)
    arrays = {"components": cells, "batches": batches}
    if method == "ours":
        script = SCRIPTS.parent / "integration" / "run_correction.py"
        found, cost, about = call_script(Path(sys.executable), script, arrays, {"seed": seed, "threads": peers.threads})
    else:
        found, cost, about = peers.call("run_harmony", arrays, {"seed": seed})
    return {
        "seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
        "peak_bytes": cost.peak_bytes,
        "apart_before": apart(cells, batches),
        "apart_after": apart(found["latent"], batches),
        **about,
    }


def apart(points: NDArray[np.floating], batches: NDArray[np.int32]) -> float:
    """Share of the variance that lies between the means of the batches."""
    mean = points.mean(axis=0, dtype=np.float64)
    sizes = np.bincount(batches)
    sums = np.stack([np.bincount(batches, weights=points[:, axis]) for axis in range(points.shape[1])], axis=1)
    between = (sizes[:, None] * (sums / sizes[:, None] - mean) ** 2).sum()
    total = sum(float(((points[:, axis] - mean[axis]) ** 2).sum()) for axis in range(points.shape[1]))
    return round(float(between / total), 6)


def exponents(runs: Sequence[dict[str, Any]], name: str = "seconds") -> dict[tuple[str, int], float]:
    """Slope of log time over log N between the fewest and the most cells, by method and number of batches."""
    found = {}
    for method, n_batches in sorted({(run["method"], run["batches"]) for run in runs}):
        mine = sorted(
            (run["cells"], run[name])
            for run in runs
            if (run["method"], run["batches"]) == (method, n_batches) and name in run
        )
        if len(mine) > 1 and mine[-1][0] > mine[0][0]:
            found[method, n_batches] = math.log(mine[-1][1] / mine[0][1]) / math.log(mine[-1][0] / mine[0][0])
    return found
