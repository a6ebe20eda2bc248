"""scDeepCluster-like and DESC-like: an autoencoder, then self-training on centers in its latent.

scDeepCluster (told K): widths 256-64-32, noise of deviation 2.5 on the scaled input, count likelihood pretraining, k-means
centers, then likelihood + KL(P || Q) by Adadelta until < .1 % of the cells change. Here the likelihood is a negative
binomial with one dispersion per gene, without zero inflation, the noise is on the input only, and training is bounded
(`PRETRAINING`, `SELF_TRAINING`): it is "like" scDeepCluster.

DESC (finds its K): widths 64-32 (16 alone below 500 cells), each layer pretrained on what the one before gives with a
fifth of its input dropped, then all together; centers from communities at resolution .8 on 10 neighbours in the latent;
KL(P || Q) until < .5 % of the cells change. Here Leiden stands for Louvain, Adam for SGD, training is bounded, the input
the scaled log values: "like" DESC.

References
----------
Tian et al., Clustering single-cell RNA-seq data with a model-based deep learning approach, Nature Machine Intelligence
2019. Li et al., Deep learning enables accurate clustering with batch effect removal in single-cell RNA-seq analysis, Nature
Communications 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clustering_peers.networks import Bounds, SelfTraining, layers, train

if TYPE_CHECKING:
    from clustering_peers.cells import Cells, Found

WIDTHS = (256, 64, 32)
NOISE = 2.5
PRETRAINING = Bounds(epochs=300, max_steps=600)
SELF_TRAINING = Bounds(epochs=100, max_steps=300)
TOLERANCE = 0.001
SCDEEPCLUSTER_SETTINGS: dict[str, object] = {
    "widths": [*WIDTHS],
    "noise": NOISE,
    "likelihood": "negative binomial, a dispersion per gene",
    "pretraining": vars(PRETRAINING),
    "self_training": vars(SELF_TRAINING),
    "tolerance": TOLERANCE,
}

DESC_WIDTHS = (64, 32)
DESC_SMALL = (500, (16,))
DESC_DROPOUT = 0.2
DESC_PRETRAINING = Bounds(epochs=300, max_steps=400)
DESC_SELF_TRAINING = Bounds(epochs=300, max_steps=400)
DESC_TOLERANCE = 0.005
DESC_NEIGHBORS = 10
DESC_RESOLUTION = 0.8
DESC_SETTINGS: dict[str, object] = {
    "widths": [*DESC_WIDTHS],
    "widths_below_500_cells": [*DESC_SMALL[1]],
    "dropout": DESC_DROPOUT,
    "pretraining_of_a_layer": vars(DESC_PRETRAINING),
    "self_training": vars(DESC_SELF_TRAINING),
    "tolerance": DESC_TOLERANCE,
    "n_neighbors": DESC_NEIGHBORS,
    "resolution": DESC_RESOLUTION,
}


def negative_binomial(counts: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Mean negative log likelihood; (B, G), (B, G), (G,)."""
    theta = log_dispersion.exp()
    log_sum = torch.log(theta + mean)
    found = (
        torch.lgamma(theta)
        + torch.lgamma(counts + 1.0)
        - torch.lgamma(counts + theta)
        - theta * (log_dispersion - log_sum)
        - counts * (torch.log(mean) - log_sum)
    )
    return found.mean()


def scdeepcluster_like(cells: Cells, seed: int) -> Found:
    """Labels by self-training from k-means centers, and the latent."""
    from sklearn.cluster import KMeans

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    values, counts = torch.as_tensor(cells.scaled()), torch.as_tensor(cells.counts)
    sizes = torch.as_tensor(np.maximum(cells.totals, 1.0) / np.median(cells.totals))[:, None]
    n_genes = values.shape[1]
    encoder = layers((n_genes, *WIDTHS), ends_linear=True)
    decoder = layers((*WIDTHS[::-1], n_genes), ends_linear=True)
    log_dispersion = nn.Parameter(torch.zeros(n_genes))

    def encode(rows: Tensor | None) -> Tensor:
        if rows is None:
            clean: Tensor = encoder(values)
            return clean
        noisy: Tensor = encoder(values[rows])
        return noisy

    def likelihood(rows: Tensor) -> Tensor:
        noise = NOISE * torch.randn(len(rows), n_genes, generator=generator)
        mean = sizes[rows] * decoder(encoder(values[rows] + noise)).clamp(-12.0, 13.0).exp()
        return negative_binomial(counts[rows], mean, log_dispersion)

    parameters = [*encoder.parameters(), *decoder.parameters(), log_dispersion]
    train(likelihood, torch.optim.Adam(parameters, 0.001, amsgrad=True), len(values), PRETRAINING, generator)
    with torch.no_grad():
        start = KMeans(cells.n_clusters, n_init=20, random_state=seed).fit(encode(None).numpy())
    training = SelfTraining(SELF_TRAINING, TOLERANCE, likelihood)
    labels = training.run(
        encode,
        parameters,
        start.cluster_centers_,
        lambda moving: torch.optim.Adadelta(moving, lr=1.0, rho=0.95),
        generator,
    )
    with torch.no_grad():
        return labels.numpy(), encode(None).numpy()


def pretrained_layers(values: Tensor, widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """The encoder, layer by layer, then as a whole, against the mean squared error."""
    inputs, encoders, decoders = values, [], []
    for index, (before, after) in enumerate(zip((values.shape[1], *widths), widths, strict=False)):
        is_last = index == len(widths) - 1
        encoder: nn.Module = nn.Linear(before, after) if is_last else nn.Sequential(nn.Linear(before, after), nn.ReLU())
        decoder: nn.Module = (
            nn.Linear(after, before) if index == 0 else nn.Sequential(nn.Linear(after, before), nn.ReLU())
        )
        fit_autoencoder(inputs, encoder, decoder, generator)
        with torch.no_grad():
            inputs = encoder(inputs)
        encoders.append(encoder)
        decoders.insert(0, decoder)
    whole = nn.Sequential(*encoders)
    fit_autoencoder(values, whole, nn.Sequential(*decoders), generator)
    return whole


def fit_autoencoder(inputs: Tensor, encoder: nn.Module, decoder: nn.Module, generator: torch.Generator) -> None:
    """Reconstruct the whole input from a part of it."""

    def loss_of(rows: Tensor) -> Tensor:
        part = nn.functional.dropout(inputs[rows], DESC_DROPOUT)
        return nn.functional.mse_loss(decoder(encoder(part)), inputs[rows])

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.001)
    train(loss_of, optimizer, len(inputs), DESC_PRETRAINING, generator)


def desc_like(cells: Cells, seed: int) -> Found:
    """Labels by self-training from the means of Leiden communities, and the latent."""
    from clustering_peers.communities import leiden_of

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(cells.scaled())
    widths = DESC_SMALL[1] if len(values) < DESC_SMALL[0] else DESC_WIDTHS
    encoder = pretrained_layers(values, widths, generator)

    def encode(rows: Tensor | None) -> Tensor:
        latent: Tensor = encoder(values if rows is None else values[rows])
        return latent

    with torch.no_grad():
        latent = encode(None).numpy()
    found = leiden_of(latent, DESC_RESOLUTION, seed, n_neighbors=DESC_NEIGHBORS)
    centers = np.stack([latent[found == cluster].mean(axis=0) for cluster in np.unique(found)])
    training = SelfTraining(DESC_SELF_TRAINING, DESC_TOLERANCE)
    labels = training.run(
        encode, encoder.parameters(), centers, lambda moving: torch.optim.Adam(moving, 0.001), generator
    )
    with torch.no_grad():
        return labels.numpy(), encode(None).numpy()
