"""Contrastive-sc-like: two dropped-out views of a cell attract, all others repel; k-means on the latent. Told K.

As published: 500 variable genes, scaled; three layers 200-40-60 with batch normalisation, 90 % of the input dropped; the
latent has length 1; normalised temperature-scaled cross entropy at .07; Adam at .4 (sic), decaying as a cosine of 500 epochs of which 30 are run;
batches of 200 cells. Here the 500 genes are the most variable of those that all peers get. Written from the paper's
description, hence "like".

References
----------
Ciortan and Defrance, Contrastive self-supervised clustering of scRNA-seq data, BMC Bioinformatics 2021.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clustering_peers.networks import epoch_rows

if TYPE_CHECKING:
    from clustering_peers.cells import Cells, Found

N_GENES = 500
WIDTHS = (200, 40, 60)
DROPOUT = 0.9
TEMPERATURE = 0.07
EPOCHS = 30
DECAY_EPOCHS = 500
RATE = 0.4
BATCH_CELLS = 200
SETTINGS: dict[str, object] = {
    "genes": N_GENES,
    "widths": [*WIDTHS],
    "dropout": DROPOUT,
    "temperature": TEMPERATURE,
    "epochs": EPOCHS,
    "rate": RATE,
    "batch_cells": BATCH_CELLS,
}


def normalised_layers(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers, batch normalisation and ReLU between them; the last one linear."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*parts[:-2])


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent of two views; (B, D) each."""
    views = nn.functional.normalize(torch.cat([first, second]))
    alike = views @ views.T / TEMPERATURE
    alike.fill_diagonal_(-math.inf)
    partner = torch.arange(len(views)).roll(len(first))
    return nn.functional.cross_entropy(alike, partner)


def contrastive_like(cells: Cells, seed: int) -> Found:
    """Labels by k-means, and the latent."""
    from sklearn.cluster import KMeans

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    variable = np.sort(np.argsort(-cells.values.var(axis=0), kind="stable")[:N_GENES])
    values = torch.as_tensor(cells.scaled()[:, variable])
    encoder = normalised_layers((values.shape[1], *WIDTHS))
    optimizer = torch.optim.Adam(encoder.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=DECAY_EPOCHS)
    for _ in range(EPOCHS):
        for rows in epoch_rows(len(values), BATCH_CELLS, generator):
            if len(rows) < 2:
                continue  # one cell has no variance, and nothing to repel
            first, second = (encoder(nn.functional.dropout(values[rows], DROPOUT)) for _ in range(2))
            optimizer.zero_grad()
            contrastive_loss(first, second).backward()
            optimizer.step()
        schedule.step()
    encoder.eval()
    with torch.no_grad():
        latent = nn.functional.normalize(encoder(values)).numpy()
    labels = KMeans(cells.n_clusters, n_init=10, random_state=seed).fit_predict(latent)
    return labels.astype(np.int64), latent
