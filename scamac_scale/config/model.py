"""Settings of the network and of its objective."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.config.choices import (
    Activation,
    ChannelForm,
    Clustering,
    DecoderCondition,
    Fusion,
    Reconstruction,
    Scale,
    Selection,
    Similarity,
    SimilarityForm,
    SimilarityScaling,
    SimilarityTarget,
    SpatialForm,
    Temperature,
    check_names,
    require,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and forms of the network."""

    encoder_width: int = 256
    """Width H of the encoding and decoding layers."""
    latent_width: int = 32
    """Width D of the hidden layer and of the fused latent."""
    encoder_activation: Activation = "leaky_relu"
    """Activation of the encoding and decoding layers, Eqs. (1) and (3): leaky_relu or linear (none)."""
    latent_activation: Activation = "linear"
    """Activation of the hidden layer and of the two projections, Eqs. (2), (6) and (7): leaky_relu or linear (none)."""
    output_activation: Activation = "linear"
    """Activation of the output layer, Eq. (4): leaky_relu or linear (none)."""
    negative_slope: float = 0.01
    """Slope of leaky_relu below zero, above 0 and at most 1."""
    scales: tuple[Scale, ...] = ("encoding", "hidden", "decoding")
    """Layers that are fused to the latent: encoding, hidden, decoding; hidden alone is a plain autoencoder."""
    has_synergy: bool = True
    """Whether the scales attend to other cells (MSS, Eqs. 9 to 11); without it they go on as they are."""
    has_integration: bool = True
    """Whether the scales are weighed (MSI, Figure 3); without it all count alike."""
    spatial_form: SpatialForm = "landmark"
    """Spatial attention, Eq. (10), in training: landmark (over a bank of cells) or batch (over the cells of the batch,
    as printed)."""
    channel_form: ChannelForm = "atlas"
    """Mean of QᵀK that serves channel attention, Eq. (11), in training: atlas (a running mean over all cells) or batch
    (the mean of the batch)."""
    bank_cells: int = 256
    """Number M of cells in the bank of landmark attention."""
    bank_choice: Selection = "random"
    """How the cells of the bank are chosen: random, or kmeans (by faiss on the latents after pretraining; sparse
    regions get more than their share)."""
    integration_kernel: int = 3
    """Width of the convolution over the scales (Figure 3), in scales; odd."""
    decoder_condition: DecoderCondition = "none"
    """What the decoder is told of the technical batch of a cell, where there are any: none, bias (a bias of the output
    for each batch), one_hot (of the decoding layer, too) or embedding (both, by way of 8 numbers)."""
    fusion: Fusion = "residual"
    """How Z is put together: residual (mean over scales of Z' plus the gated attention) or gated_sum (sum over scales
    of the gated attention alone)."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "model.")
        for name in ("encoder_width", "latent_width", "bank_cells", "integration_kernel"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)}; it must be at least 1.")
        require(len(self.scales) > 0, "model.scales is empty; name at least one layer.")
        require(len(set(self.scales)) == len(self.scales), f"model.scales={self.scales}; a layer is named twice.")
        require(
            self.integration_kernel % 2 == 1,
            f"model.integration_kernel={self.integration_kernel}; it must be odd.",
        )
        require(
            0.0 < self.negative_slope <= 1.0,
            f"model.negative_slope={self.negative_slope}; it must lie above 0 and at most at 1.",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The terms of the objective and their weights."""

    reconstruction: Reconstruction = "mean"
    """Eq. (5): squared error, mean (over cells and genes) or sum_genes (summed over genes, averaged over cells); or
    poisson (deviance of counts that were held out of the input, see input.target_share)."""
    clustering: Clustering = "mean"
    """Eq. (12): mean (over cells) or sum (over cells, as printed)."""
    clustering_weight: float = 0.0
    """Factor of Eq. (12) in the objective; 0 reports it and trains without it."""
    similarity: Similarity = "atlas"
    """Which cells Eq. (15) pairs with those of a batch: atlas (all cells), batch (those of the batch) or off (none)."""
    similarity_refresh_steps: int | None = None
    """Gradient steps after which the sums over all cells behind loss.similarity=atlas are taken anew, which costs a
    sweep; null takes them once a round, with the sweep that is there anyway."""
    similarity_momentum: float = 0.1
    """Weight of each batch in the sums over all cells behind loss.similarity=atlas, 0 to 1, so that they follow the
    cells between two sweeps; 0 leaves them as swept."""
    similarity_target: SimilarityTarget = "consensus"
    """U of Eq. (15): consensus (multi-scale memberships of the consensus members) or membership (of the clusters, as
    printed)."""
    similarity_form: SimilarityForm = "auto"
    """How Eq. (15) within a batch is computed, with the same value: direct (pair by pair), gram (by Gram matrices) or
    auto (the cheaper one)."""
    similarity_scaling: SimilarityScaling = "pairs"
    """What Eq. (15) is divided by: pairs (the number of pairs) or paper (the number of cells)."""
    similarity_weight: float | None = None
    """Factor of Eq. (15) in the objective; null measures it once, from loss.similarity_gradient_ratio."""
    similarity_gradient_ratio: float = 3.0
    """Gradient norm of Eq. (15) at the hidden layer, as a multiple of that of the reconstruction; used where
    loss.similarity_weight is null."""
    epsilon: float = 0.01
    """The epsilon of Eqs. (12) to (14), in latent units."""
    temperature: Temperature = "relative"
    """Temperature of the memberships, Eq. (14): relative (loss.gamma times the mean gap between the nearest and the
    second center) or absolute (loss.gamma)."""
    gamma: float = 0.1
    """Factor of the temperature, or the temperature itself, as loss.temperature says; the paper has 1 (absolute)."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "loss.")
        for name in ("epsilon", "gamma", "similarity_gradient_ratio"):
            require(getattr(self, name) > 0, f"loss.{name}={getattr(self, name)}; it must be positive.")
        steps = self.similarity_refresh_steps
        require(
            steps is None or steps >= 1,
            f"loss.similarity_refresh_steps={steps}; it must be at least 1, or null for once a round.",
        )
        require(
            0.0 <= self.similarity_momentum <= 1.0,
            f"loss.similarity_momentum={self.similarity_momentum}; it is a share, 0 to 1.",
        )
        for name in ("clustering_weight", "similarity_weight"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"loss.{name}={value}; it must not be negative.")
