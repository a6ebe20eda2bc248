"""A model as a fit leaves it, small and with random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import ModelConfig, ScamacConfig, TrainConfig
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.plain import sealed
from scamac_scale.fitted import DESCRIPTION_FILE, WEIGHTS_FILE, FittedModel
from scamac_scale.nn.correction import TechCorrection
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.fuzzy import Clusters
from tests.support.trees import some_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_CLUSTERS = 3
GENES = tuple(f"gene{index:03d}" for index in range(20))


def fitted_model(seed: int = 0, genes: tuple[str, ...] = GENES, **settings: object) -> FittedModel:
    """20 genes of the tiny atlas, 3 clusters."""
    config = ScamacConfig(
        model=ModelConfig(encoder_width=16, latent_width=8, bank_cells=12, **settings),
        train=TrainConfig(accelerator="cpu"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ScamacNetwork(len(genes), config.model, config.input).eval()
        network.bank_cells.normal_()
        network.refresh_bank()
        centers = torch.randn(N_CLUSTERS, config.model.latent_width)
    space = GeneSpace(kind="counts", target_sum=1000.0, filtered=genes, chosen=genes)
    return FittedModel(
        network,
        Clusters(centers, 0.5, config.loss.epsilon),
        space,
        config,
        {"versions": {"torch": "2"}, "is_count_estimated": True},
    )


def with_correction(model: FittedModel) -> FittedModel:
    """The same with a random correction of three donors and two chips: 2 layers, 4 soft clusters, 5 components."""
    n_genes = len(model.genes.chosen)
    draw = torch.Generator().manual_seed(5)
    correction = TechCorrection(n_genes, 5, n_layers=2, n_clusters=4, n_levels=5, sigma=model.config.correction.sigma)
    for name, buffer in correction.named_buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=draw) * (0.1 if name == "beta" else 1.0))
    correction.axes.copy_(torch.linalg.qr(correction.axes)[0])
    correction.sizes.abs_()
    model.network.correction = correction
    model.tech_levels = {"donor": ("ann", "bob", "cat"), "chip": ("10", "11")}
    return model


def with_tree(model: FittedModel, n_landmarks: int = 40) -> FittedModel:
    """The same with a random tree over landmarks around its centers."""
    draw = torch.Generator().manual_seed(7)
    model.tree = some_tree(n_landmarks)
    centers = model.clusters.centers[torch.from_numpy(model.tree.labels(n_landmarks)) % N_CLUSTERS]
    model.landmarks = centers + 0.3 * torch.randn(centers.shape, generator=draw)
    return model


def seal_again(path: Path, change: Callable[[Any], Any] = lambda content: content) -> None:
    """Change the description of a model folder, and seal that and whatever its tensors are by now."""
    weights = (path / WEIGHTS_FILE).read_bytes()
    content = json.loads((path / DESCRIPTION_FILE).read_text())
    content["weights"] = {"bytes": len(weights), "sha256": sha256_of(weights)}
    (path / DESCRIPTION_FILE).write_text(sealed(change(content)))
