"""What tells one run from another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale import ScAMAC

if TYPE_CHECKING:
    from pathlib import Path


def fingerprint(run: Path, store: Path) -> dict[str, str]:
    """SHA-256 of weights, latents, labels and memberships."""
    found = ScAMAC.load(run / "model").predict(store)
    arrays = {
        "latent": found.obsm["X_scAMAC"],
        "membership": found.obsm["scamac_membership"],
        "labels": found.obs["scamac_cluster"].to_numpy().astype(np.int64),
    }
    digests = {name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in arrays.items()}
    return {"weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(), **digests}
