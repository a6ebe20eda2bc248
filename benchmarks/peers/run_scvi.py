"""scVI at its defaults: CSR counts (`data`, `indices`, `indptr`, `shape`) and `batches` to `latent` (N, 10).

Settings: seed, threads; is_denoised: also `denoised` (N, G), its profile of each cell times the total of the cell; epochs, or
null for its own choice; cpu_seconds, a budget: the epochs are those that fit into it,
by the time of one epoch after a first one that is not counted. The warm-up of the KL term stays at its 400 epochs.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from exchange import serve


def prepare(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Import, find the epochs, and run one epoch on all cells."""
    import anndata
    import scvi
    import torch
    from scipy import sparse

    for name in ("lightning.pytorch", "pytorch_lightning", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    scvi.settings.seed = settings["seed"]
    counts = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"]))
    adata = anndata.AnnData(counts)
    adata.obs["batch"] = arrays["batches"].astype(str)
    train(adata, 1)
    epochs = settings.get("epochs")
    if settings.get("cpu_seconds"):
        began = time.process_time()
        train(adata, 1)
        epochs = max(1, round(settings["cpu_seconds"] / (time.process_time() - began)))
    scvi.settings.seed = settings["seed"]
    return adata, epochs


def train(adata: Any, epochs: int | None) -> Any:
    """Set up and train a model on the CPU."""
    import scvi

    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def fit(prepared: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and take the latent, and what else was asked for."""
    adata, epochs = prepared
    model = train(adata, epochs)
    found = {"latent": np.asarray(model.get_latent_representation(), dtype=np.float32)}
    if settings.get("is_denoised"):
        profiles = model.get_normalized_expression(library_size=1, return_numpy=True)
        found["denoised"] = (profiles * np.asarray(adata.X.sum(axis=1)).reshape(-1, 1)).astype(np.float32)
    return {**found, "about": {"epochs": len(model.history["elbo_train"])}}


if __name__ == "__main__":
    serve(("scvi-tools", "torch", "numpy"), prepare, fit)
