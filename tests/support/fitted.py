"""A model as a fit leaves it, small and with random weights."""

from __future__ import annotations

import torch

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import ModelConfig, ScamacConfig, TrainConfig
from scamac_scale.fitted import FittedModel
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ops.fuzzy import Clusters

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
