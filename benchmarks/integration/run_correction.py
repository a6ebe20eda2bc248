"""This program's correction alone, as a script of its own process: the same exchange as the peers'.

`correct` is the one place that names its function.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
from exchange import serve


def correct(components: Any, batches: Any, seed: int) -> Any:
    """Correct (N, P) components for (N,) codes of batches; (N, P)."""
    raise SystemExit(
        "the correction alone is not there yet: name its function in benchmarks/integration/run_correction.py"
    )


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, and run once on a few cells."""
    import torch

    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    correct(arrays["components"][:1000], arrays["batches"][:1000], settings["seed"])
    return arrays


def work(arrays: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The correction."""
    return {"latent": correct(arrays["components"], arrays["batches"], settings["seed"])}


if __name__ == "__main__":
    serve(("numpy", "torch"), prepare, work)
