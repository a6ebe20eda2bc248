"""Wrote the golden stores of layout version 1, once: ``python -m tests.store.golden.make``. Later versions must read them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.stores import counts, write

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write both profiles, and what they hold."""
    raw = counts(120, 30, seed=1)
    raw.data[7] = 300  # so that counts take two bytes
    types = pd.Categorical.from_codes(np.arange(120) % 3, ["B", "T", "naïve"])
    obs = pd.DataFrame({"cell_type": types, "depth": np.arange(120) / 4}, index=[f"cell{i}" for i in range(120)])
    for profile in ("fast", "small"):
        with tempfile.TemporaryDirectory() as folder:
            stored = write(Path(folder) / "a.zarr", raw, obs=obs, profile=profile, shuffle=True, chunk_values=16)
            shutil.make_archive(str(HERE / f"v1-{profile}"), "zip", stored.path)
    np.savez_compressed(HERE / "v1.npz", raw=raw.toarray(), expected=stored.expected)


if __name__ == "__main__":
    main()
