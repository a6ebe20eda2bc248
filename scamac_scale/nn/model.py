"""The whole network: input scaling, autoencoder, projections, synergy, integration, latent, Figure 1.

Weights start as torch makes them; `train` sets better ones. Losses, centers and memberships live elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from scamac_scale.errors import ShapeError, choose
from scamac_scale.nn.autoencoder import MultiScaleAutoencoder
from scamac_scale.nn.fusion import FUSIONS, N_SCALES, ScaleProjection
from scamac_scale.nn.integration import Integration
from scamac_scale.nn.synergy import Bank, Synergy
from scamac_scale.ops.attention import BANK_FORMS
from scamac_scale.ops.checks import full_precision

if TYPE_CHECKING:
    from scamac_scale.config import InputConfig, ModelConfig


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

    Attributes
    ----------
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

    Raises
    ------
    ConfigError
        If a form is not known.

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

    def __init__(self, n_genes: int, config: ModelConfig, input: InputConfig) -> None:
        super().__init__()
        width, n_bank = config.latent_width, config.bank_cells
        self.autoencoder = MultiScaleAutoencoder(n_genes, config)
        self.projection = ScaleProjection(config)
        self.synergy = Synergy(config)
        self.integration = Integration(config.integration_kernel)
        self.synergy_norm = nn.LayerNorm(width)
        self.fusion = choose(FUSIONS, config.fusion, "model.fusion")(width)
        self.has_bank = config.spatial_form in BANK_FORMS
        self.is_unit_norm = input.unit_norm
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("bank_cells", torch.zeros(n_bank, n_genes))
        self.register_buffer("bank_k", torch.zeros(N_SCALES, n_bank, width))
        self.register_buffer("bank_v", torch.zeros(N_SCALES, n_bank, width))
        self.register_buffer("mean_product", torch.zeros(N_SCALES, width, width))

    def _cell_length(self, values: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        return length

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
        self._check_genes(values)
        values = values.to(self.gene_mean.dtype)
        factor: Tensor = self.input_scale
        if self.is_unit_norm:
            length = self._cell_length(values)
            factor = self.input_scale / length.masked_fill(length == 0, torch.inf)
        # One pass over (B, G) instead of three.
        return torch.addcmul(-self.gene_mean * self.input_scale, values, factor)

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

    def _check_genes(self, values: Tensor) -> None:
        if values.ndim != 2 or values.shape[1] != len(self.gene_mean):
            raise ShapeError(
                f"input came with shape {tuple(values.shape)}; the network expects (B, {len(self.gene_mean)}): choose "
                "the genes of the model first."
            )

    def _fuse(self, projected: Tensor, normalised: Tensor, is_frozen: bool) -> Tensor:
        bank = Bank(self.bank_k, self.bank_v) if self.has_bank else None
        synergy = self.synergy(normalised, bank, self.mean_product if is_frozen else None)
        with full_precision(projected):
            latent: Tensor = self.fusion(projected, self.synergy_norm(synergy), self.integration(synergy))
        return latent

    def forward(self, x: Tensor, frozen: bool = False) -> NetworkOutput:
        """All layers and the latent of a batch.

        Parameters
        ----------
        x
            (B, G), from `scale_input`, plus noise in training.
        frozen
            Take Eq. (11)'s product from `mean_product` rather than from this batch. With a bank, a cell's latent then
            does not depend on its batch mates.

        Returns
        -------
        NetworkOutput
            Latent and projections at least float32; the wide layers as autocast leaves them.

        Raises
        ------
        ShapeError
            If the number of genes differs.
        """
        self._check_genes(x)
        layers = self.autoencoder(x)
        projected = self.projection(layers.encoding, layers.hidden, layers.decoding)
        latent = self._fuse(projected, self.projection.normalise(projected), frozen)
        return NetworkOutput(
            layers.encoding, layers.hidden, layers.decoding, layers.output, projected=projected, latent=latent
        )

    def embed(self, x: Tensor, frozen: bool = True) -> Tensor:
        """Latent alone, without the output layer: half the work of `forward`.

        Parameters
        ----------
        x, frozen
            As in `forward`.

        Returns
        -------
        Tensor
            (B, D), equal to ``forward(x, frozen).latent``.
        """
        return self.embed_and_sum(x, frozen)[0]

    def embed_and_sum(self, x: Tensor, frozen: bool = True) -> tuple[Tensor, Tensor]:
        """Latent and the cells' part of Eq. (11) in one pass.

        Parameters
        ----------
        x, frozen
            As in `forward`.

        Returns
        -------
        tuple of Tensor
            ``embed(x, frozen)`` and ``channel_sum(x)``.
        """
        projected, normalised = self._scales(x)
        return self._fuse(projected, normalised, frozen), self.synergy.channel_sum(normalised)

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
        product: Tensor = self.synergy.channel_sum(self._scales(x)[1])
        return product

    def _scales(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check_genes(x)
        projected = self.projection(*self.autoencoder.scales(x))
        return projected, self.projection.normalise(projected)

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
