"""The whole network: input scaling, autoencoder, projections, synergy, integration, latent, Figure 1.

Weights start as torch makes them; `train` sets better ones. Losses, centers and memberships live elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from scamac_scale.errors import ShapeError
from scamac_scale.nn.autoencoder import MultiScaleAutoencoder
from scamac_scale.nn.fusion import FUSIONS, ScaleProjection
from scamac_scale.nn.integration import Integration
from scamac_scale.nn.layers import LayerNorm
from scamac_scale.nn.synergy import Bank, Synergy
from scamac_scale.ops.attention import BANK_FORMS
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.config import InputConfig, ModelConfig
    from scamac_scale.nn.correction import TechCorrection


CHANNEL_FORMS = {"atlas": True, "batch": False}
"""Whose mean of q^T k serves Eq. (11) in training: the running mean over the atlas (``atlas``) or that of the batch, as printed
for a batch that is all cells. Inference takes the mean over all cells in either case."""

CHANNEL_MOMENTUM = 0.1
"""Weight of a batch in the running mean of q^T k; a sweep over all cells replaces it after every round."""


class NetworkOutput(NamedTuple):
    """What one forward pass gives.

    Attributes
    ----------
    encoding
        (B, H), Z_a.
    hidden
        (B, D), Z_b.
    decoding
        (B, H), Z_c.
    output
        (B, G), X', in the units of the scaled input.
    projected
        (S, B, D), Z': the three layers at width D.
    latent
        (B, D), Z.
    """

    encoding: Tensor
    hidden: Tensor
    decoding: Tensor
    output: Tensor
    projected: Tensor
    latent: Tensor


class Layers(NamedTuple):
    """What comes before the attention; see `NetworkOutput`.

    Attributes
    ----------
    normalised
        (S, B, D), Y of Eq. (8).
    """

    encoding: Tensor
    hidden: Tensor
    decoding: Tensor
    output: Tensor
    projected: Tensor
    normalised: Tensor

    def output_with(self, latent: Tensor) -> NetworkOutput:
        """Add the latent."""
        return NetworkOutput(self.encoding, self.hidden, self.decoding, self.output, self.projected, latent)


def _check_genes(values: Tensor, n_genes: int) -> None:
    if values.ndim < 2 or values.shape[-1] != n_genes:
        raise ShapeError(
            f"input came with shape {tuple(values.shape)}; the network expects (B, {n_genes}): choose the genes of the model first."
        )


class ScamacNetwork(nn.Module):
    """Network of scAMAC with all that inference needs in its buffers.

    Parameters
    ----------
    n_genes
        G.
    config
        Sizes and forms.
    input
        How log-normalised values become input.
    level_counts
        Levels of each covariate of the technical batches of the cells.

    Attributes
    ----------
    config
        As given.
    gene_mean
        (G,), mean of each gene after unit norm, before scaling; zeros until set.
    input_scale
        (), factor of the centered values; 1 until set.
    bank_cells
        (M, G), scaled input of the cells of the bank; zeros until set.
    bank_k, bank_v
        (S, M, D), their keys and values as of the last `refresh_bank`.
    mean_product
        (S, D, D), mean over all cells of q^T k, Eq. (11); zeros until set.
    has_synergy, has_integration, has_bank
        Parts that the config asks for.
    mixes_batch
        Whether the latent of a cell depends on its batch mates, at inference, too.
    channel_momentum
        Weight of a batch in the running `mean_product`.
    follows_product
        Whether a gradient step takes Eq. (11)'s product from the running mean over the atlas.
    correction
        Of the technical batches in the scaled input; None where there is none.

    References
    ----------
    scAMAC Figure 1.
    """

    gene_mean: Tensor
    input_scale: Tensor
    bank_cells: Tensor
    bank_k: Tensor
    bank_v: Tensor
    mean_product: Tensor

    def __init__(self, n_genes: int, config: ModelConfig, input: InputConfig, level_counts: Sequence[int] = ()) -> None:
        super().__init__()
        self.config = config
        width, n_bank, n_scales = config.latent_width, config.bank_cells, len(config.scales)
        self.autoencoder = MultiScaleAutoencoder(n_genes, config, level_counts)
        self.projection = ScaleProjection(config)
        self.synergy = Synergy(config)
        self.integration = Integration(config.integration_kernel)
        self.synergy_norm = LayerNorm(width)
        self.fusion = FUSIONS[config.fusion](width)
        self.has_synergy, self.has_integration = config.has_synergy, config.has_integration
        self.has_bank = config.has_synergy and config.spatial_form in BANK_FORMS
        self.mixes_batch = config.has_synergy and not self.has_bank
        self.is_unit_norm = input.unit_norm
        self.channel_momentum = CHANNEL_MOMENTUM
        self.follows_product = CHANNEL_FORMS[config.channel_form]
        self.correction: TechCorrection | None = None
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("bank_cells", torch.zeros(n_bank, n_genes))
        self.register_buffer("bank_k", torch.zeros(n_scales, n_bank, width))
        self.register_buffer("bank_v", torch.zeros(n_scales, n_bank, width))
        self.register_buffer("mean_product", torch.zeros(n_scales, width, width))

    @torch.no_grad()
    def scale_input(self, values: Tensor) -> Tensor:
        """Turn log-normalised values into input of the network.

        Parameters
        ----------
        values
            (B, G), log-normalised, on the device of the network.

        Returns
        -------
        Tensor
            (B, G), each cell at length 1 (config; an empty cell stays 0), minus `gene_mean`, times `input_scale`. No
            gradient.

        Raises
        ------
        ShapeError
            If the number of genes differs.
        """
        _check_genes(values, len(self.gene_mean))
        values = values.to(self.gene_mean.dtype)
        factor: Tensor = self.input_scale
        if self.is_unit_norm:
            length: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
            factor = self.input_scale / length.masked_fill(length == 0, torch.inf)
        # One pass over (B, G) instead of three.
        return torch.addcmul(-self.gene_mean * self.input_scale, values, factor)

    def cell_input(self, values: Tensor, levels: Tensor | None) -> Tensor:
        """Turn log-normalised values into input, without what technical batches add to them where a correction is known.

        Parameters
        ----------
        values
            (B, G), on the device of the network.
        levels
            (B, C) int64, levels of the technical batches of the cells, on any device; None where there are none.

        Returns
        -------
        Tensor
            (B, G). No gradient.
        """
        x = self.scale_input(values)
        return x if self.correction is None else self.correction(x, levels)

    def unscale(self, output: Tensor, norm: Tensor) -> Tensor:
        """Turn output of the network back into log-normalised values.

        Parameters
        ----------
        output
            (B, G), from `forward`.
        norm
            (B, 1), Euclidean length of each cell's log-normalised values; not used where cells are not scaled to
            length 1.

        Returns
        -------
        Tensor
            (B, G), the inverse of `scale_input`; not clamped.
        """
        values = output / self.input_scale + self.gene_mean
        return values * norm if self.is_unit_norm else values

    def layers(self, x: Tensor, levels: Tensor | None = None) -> Layers:
        """Run all layers before the attention; a block axis may stand in front.

        Parameters
        ----------
        x
            (B, G), from `cell_input`, plus noise in training.
        levels
            (B, C), for a decoder that is told of technical batches; None where it is not.

        Returns
        -------
        Layers
            The output in these technical batches, the rest as of none.
        """
        _check_genes(x, len(self.gene_mean))
        found = self.autoencoder(x, levels)
        projected = self.projection(found.encoding, found.hidden, found.decoding)
        normalised = self.projection.normalise(projected)
        return Layers(found.encoding, found.hidden, found.decoding, found.output, projected, normalised)

    def fuse(
        self,
        projected: Tensor,
        normalised: Tensor,
        product: Tensor,
        *,
        spatial: Tensor | None = None,
        mates: Bank | None = None,
    ) -> Tensor:
        """Attention, integration and latent.

        Parameters
        ----------
        projected, normalised
            (S, B, D), of `layers`.
        product
            (S, D, D), mean of q^T k, Eq. (11).
        spatial
            (S, B, D), result of Eq. (10) for these cells, where it is known.
        mates
            Keys and values of the cells that attend to one another, where there is no bank; None takes those of these cells.

        Returns
        -------
        Tensor
            (B, D), Z; at least float32.
        """
        synergy = normalised
        if self.has_synergy:
            bank = Bank(self.bank_k, self.bank_v) if self.has_bank else None
            synergy = self.synergy(normalised, product, bank, spatial, mates)
        with full_precision(projected):
            gate = self.integration(synergy) if self.has_integration else projected.new_ones(projected.shape[:-1])
            latent: Tensor = self.fusion(projected, self.synergy_norm(synergy), gate)
        return latent

    def followed_product(self, batch: Tensor) -> Tensor:
        """Mean of q^T k in a gradient step: the running mean over the atlas in value, that of the batch in gradient."""
        return self.mean_product + (batch - batch.detach()) if self.follows_product else batch

    @torch.no_grad()
    def follow_product(self, batch: Tensor) -> None:
        """Move the running mean of q^T k towards that of a batch."""
        if self.follows_product:
            self.mean_product.lerp_(batch, self.channel_momentum)

    def forward(
        self, x: Tensor, frozen: bool = False, spatial: Tensor | None = None, levels: Tensor | None = None
    ) -> NetworkOutput:
        """All layers and the latent of a batch.

        Parameters
        ----------
        x
            (B, G), from `scale_input`, plus noise in training.
        frozen
            Take Eq. (11)'s product from `mean_product` as it is. Otherwise its value is `mean_product` and its gradient that of
            the batch (or all of it is the batch's: config).
        spatial
            (S, B, D), result of Eq. (10) for these cells, where it is known.
        levels
            (B, C), as of `layers`.

        Returns
        -------
        NetworkOutput
            Latent and projections at least float32; the wide layers as autocast leaves them. With a bank or `spatial`, and
            unless the product is the batch's, a cell's latent does not depend on its batch mates.

        Raises
        ------
        ShapeError
            If the number of genes differs.
        """
        found = self.layers(x, levels)
        product = self.mean_product
        if self.has_synergy and not frozen:
            product = self.followed_product(self.synergy.channel_sum(found.normalised) / len(x))
        return found.output_with(self.fuse(found.projected, found.normalised, product, spatial=spatial))

    def embed_and_sum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frozen latent, without the output layer, and the cells' part of Eq. (11) in one pass.

        Parameters
        ----------
        x
            (B, G), from `scale_input`.

        Returns
        -------
        tuple of Tensor
            ``forward(x, frozen=True).latent`` and ``channel_sum(x)``; half the work of `forward`.
        """
        projected, normalised = self._scales(x)
        return self.fuse(projected, normalised, self.mean_product), self.synergy.channel_sum(normalised).double()

    def embed(self, x: Tensor, spatial: Tensor | None = None) -> Tensor:
        """``forward(x, frozen=True, spatial=spatial).latent``, (B, D), without the output layer: half the work."""
        return self.fuse(*self._scales(x), self.mean_product, spatial=spatial)

    def channel_sum(self, x: Tensor) -> Tensor:
        """Sum over cells of q^T k; divide by all cells and keep as `mean_product`.

        Parameters
        ----------
        x
            (B, G), from `scale_input`.

        Returns
        -------
        Tensor
            (S, D, D) float64.
        """
        product: Tensor = self.synergy.channel_sum(self._scales(x)[1]).double()
        return product

    def spatial_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the queries, keys and values of Eq. (10).

        Parameters
        ----------
        x
            (B, G), from `scale_input`.

        Returns
        -------
        tuple of Tensor
            Three of (S, B, D).
        """
        normalised = self._scales(x)[1]
        bank = self.synergy.project_bank(normalised)
        return self.synergy.queries(normalised), bank.k, bank.v

    def _scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _check_genes(x, len(self.gene_mean))
        projected = self.projection(*self.autoencoder.scales(x))
        return projected, self.projection.normalise(projected)

    @torch.no_grad()
    def start_attention(self, cells: Tensor) -> None:
        """Set the bank, and a first estimate of Eq. (11)'s mean product from the same cells.

        Parameters
        ----------
        cells
            (M, G), from `scale_input`.
        """
        self.bank_cells.copy_(cells)
        self.refresh_bank()
        self.mean_product.copy_(self.channel_sum(self.bank_cells) / len(cells))

    @torch.no_grad()
    def refresh_bank(self) -> None:
        """Re-encode the cells of the bank with the present weights, without noise or gradient; leaves autocast.

        Notes
        -----
        Nothing to do where the spatial form has no bank.
        """
        if not self.has_bank:
            return
        with full_precision(self.bank_cells):
            bank = self.synergy.project_bank(self._scales(self.bank_cells)[1])
        self.bank_k.copy_(bank.k)
        self.bank_v.copy_(bank.v)
