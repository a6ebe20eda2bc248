"""Settings of the network and of its objective."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.config.choices import (
    Activation,
    ChannelForm,
    Clustering,
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
    """Activation of the encoding and decoding layers, Eqs. (1) and (3)."""
    latent_activation: Activation = "linear"
    """Activation of the hidden layer and of the two projections, Eqs. (2), (6) and (7)."""
    output_activation: Activation = "linear"
    """Activation of the output layer, Eq. (4)."""
    negative_slope: float = 0.01
    """Slope of LeakyReLU below zero."""
    scales: tuple[Scale, ...] = ("encoding", "hidden", "decoding")
    """The layers that are fused to the latent; hidden alone is a plain autoencoder."""
    has_synergy: bool = True
    """Whether the scales attend (MSS, Eqs. 9 to 11); without it they go on as they are."""
    has_integration: bool = True
    """Whether the scales are weighed (MSI, Figure 3); without it all count alike."""
    spatial_form: SpatialForm = "landmark"
    """Spatial attention, Eq. (10), in training: landmark (a bank of cells) or batch (the cells of the batch, as printed)."""
    channel_form: ChannelForm = "atlas"
    """Whose mean of QᵀK serves channel attention, Eq. (11), in training: atlas (a running mean over all cells) or batch."""
    bank_cells: int = 256
    """Cells M in the bank of landmark attention."""
    bank_choice: Selection = "random"
    """How they are chosen: random, or kmeans (by faiss on the latents after pretraining; sparse regions get more than their share)."""
    integration_kernel: int = 3
    """Width of the convolution over the three scales (Figure 3); odd."""
    fusion: Fusion = "residual"
    """How Z is put together: residual (mean over scales of Z' plus the gated attention) or gated_sum."""

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
    """Eq. (5) as a mean over entries (mean), or summed over genes and averaged over cells (sum_genes)."""
    clustering: Clustering = "mean"
    """Eq. (12) as a mean over cells (mean) or summed (sum)."""
    clustering_weight: float = 0.01
    """Factor of Eq. (12)."""
    similarity: Similarity = "atlas"
    """Which cells Eq. (15) pairs with those of a batch: atlas (all cells), batch (those of the batch) or off."""
    similarity_refresh_steps: int | None = None
    """Gradient steps after which the sums over all cells for `similarity`=atlas are taken anew, which costs a sweep; null: after
    every round, with the sweep that is there anyway."""
    similarity_momentum: float = 0.1
    """Weight of each batch in these sums between two sweeps, 0 to 1, so that they follow the cells; 0 leaves them as swept."""
    similarity_target: SimilarityTarget = "consensus"
    """U of Eq. (15): consensus (multi-scale memberships of the consensus members) or membership (as printed)."""
    similarity_form: SimilarityForm = "auto"
    """How Eq. (15) within a batch is computed: direct, gram, or auto (the cheaper one); the value is the same."""
    similarity_scaling: SimilarityScaling = "pairs"
    """Eq. (15) over the number of pairs (pairs) or over the number of cells (paper)."""
    similarity_weight: float | None = None
    """Factor of Eq. (15); null measures it once, from `similarity_gradient_ratio`."""
    similarity_gradient_ratio: float = 10.0
    """Gradient norm of Eq. (15) at the hidden layer, as a multiple of the reconstruction's."""
    epsilon: float = 0.01
    """The epsilon of Eqs. (12) to (14)."""
    temperature: Temperature = "relative"
    """Of Eq. (14): relative (gamma times the mean gap between nearest and second center) or absolute (gamma)."""
    gamma: float = 0.1
    """See `temperature`; the paper has absolute 1."""

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
