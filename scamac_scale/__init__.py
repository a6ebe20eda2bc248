"""scAMAC single-cell clustering for atlases of any size: out of core, exact, streamed.

The public face is re-exported here and imported on first use, so that ``import scamac_scale`` is instant.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scamac_scale import tl
    from scamac_scale.api import ScAMAC, cluster, evaluate, ingest, inspect, markers, refine, report, resample, simulate
    from scamac_scale.config import IngestConfig, ScamacConfig
    from scamac_scale.progress import show_progress

__version__ = "0.1.0"

# Before torch loads OpenMP: threads that spin while they wait steal the cores of the reader threads and of neighbours.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "ScAMAC": "scamac_scale.api",
    "cluster": "scamac_scale.api",
    "evaluate": "scamac_scale.api",
    "ingest": "scamac_scale.api",
    "inspect": "scamac_scale.api",
    "markers": "scamac_scale.api",
    "refine": "scamac_scale.api",
    "report": "scamac_scale.api",
    "resample": "scamac_scale.api",
    "simulate": "scamac_scale.api",
    "IngestConfig": "scamac_scale.config",
    "ScamacConfig": "scamac_scale.config",
    "show_progress": "scamac_scale.progress",
}

__all__ = [
    "IngestConfig",
    "ScAMAC",
    "ScamacConfig",
    "cluster",
    "evaluate",
    "ingest",
    "inspect",
    "markers",
    "refine",
    "report",
    "resample",
    "show_progress",
    "simulate",
    "tl",
]


def __getattr__(name: str) -> Any:  # Any: the exported objects have nothing in common
    if name == "tl":
        return importlib.import_module("scamac_scale.tl")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'scamac_scale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
