"""scGMAI-like: an autoencoder fills in zeros, FastICA reduces, a Gaussian mixture clusters. Told K.

As published: widths 800-400-800 with softplus, Adam at .001, then FastICA and a mixture with full covariances. Here the
zeros alone are replaced by the reconstruction, training is bounded (`TRAINING`), and there are 20 components: "like" scGMAI.

References
----------
Yu et al., scGMAI: a Gaussian mixture model for clustering single-cell RNA-Seq data based on deep autoencoder, Briefings in
Bioinformatics 2021.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clustering_peers.networks import Bounds, train

if TYPE_CHECKING:
    from clustering_peers.cells import Cells, Found

WIDTHS = (800, 400, 800)
TRAINING = Bounds(epochs=300, max_steps=300)
N_COMPONENTS = 20
SETTINGS: dict[str, object] = {"widths": [*WIDTHS], "training": vars(TRAINING), "components": N_COMPONENTS}


def scgmai_like(cells: Cells, seed: int) -> Found:
    """Labels by the mixture, and the independent components."""
    from sklearn.decomposition import FastICA
    from sklearn.mixture import GaussianMixture

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(cells.values)
    widths = (values.shape[1], *WIDTHS, values.shape[1])
    parts = [part for before, after in itertools.pairwise(widths) for part in (nn.Linear(before, after), nn.Softplus())]
    network = nn.Sequential(*parts)

    def loss_of(rows: Tensor) -> Tensor:
        return nn.functional.mse_loss(network(values[rows]), values[rows])

    train(loss_of, torch.optim.Adam(network.parameters(), 0.001), len(values), TRAINING, generator)
    with torch.no_grad():
        filled = torch.cat([torch.where(part > 0, part, network(part)) for part in values.split(1024)]).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: the last state counts
        components = FastICA(N_COMPONENTS, whiten="unit-variance", random_state=seed).fit_transform(filled)
        labels = GaussianMixture(cells.n_clusters, random_state=seed).fit_predict(components)
    return np.asarray(labels, dtype=np.int64), components
