"""What may be asked of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scamac_scale.cells.tech_batches import split_key
from scamac_scale.config import Accept, Attention, check_value
from scamac_scale.config.choices import require

if TYPE_CHECKING:
    from collections.abc import Sequence

OWN, MEAN = "own", "mean"
"""Technical batches that reconstructions may be in, beside a named one: that of each cell, and the mean of all."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What may be asked of a prediction.

    Attributes
    ----------
    is_denoised
        Also write the reconstruction, log-normalised units, N x G float32.
    denoised_batch
        Technical batch in which cells are reconstructed: ``own``, ``mean``, or the name of one of the fit (with commas between the levels of
        several columns).
    attention
        ``trained``: the spatial attention of training (over its bank, or the block of cells). ``atlas``: over all cells of the source, Eq.
        (10) as printed; O(N^2) time, and 12 bytes per scale, latent column and cell of disk beside the output.
    batch_key
        Columns of obs that stand for those of the fit, with commas between them; None takes the same names.
    accept
        In what cells may differ from those of the fit: ``values`` (of another kind, base or total of logarithms), ``totals`` (over fewer
        genes), ``versions`` (of Ensembl identifiers).

    Raises
    ------
    ConfigError
        If `attention` or a name in `accept` is not known, a batch is named without a reconstruction, or the batch key is empty.
    """

    is_denoised: bool = False
    denoised_batch: str = OWN
    attention: Attention = "trained"
    batch_key: str | None = None
    accept: tuple[Accept, ...] = ()

    def __post_init__(self) -> None:
        """Check names."""
        check_value(Attention, self.attention, "attention")
        check_value(tuple[Accept, ...], self.accept, "accept")
        require(
            self.is_denoised or self.denoised_batch == OWN,
            f"denoised_batch={self.denoised_batch!r}, but no reconstruction is asked for; add denoised.",
        )
        require(
            self.batch_key is None or bool(split_key(self.batch_key)),
            f"batch_key={self.batch_key!r} names no column of obs; leave it out for the columns of the fit.",
        )

    def to_plain(self) -> dict[str, Any]:
        """Give what tells one prediction from another, by the names that users know."""
        return {
            "attention": self.attention,
            "denoised": self.is_denoised,
            "denoised_batch": self.denoised_batch,
            "batch_key": self.batch_key,
        }


def accepted_names(
    names: str | Sequence[str],
) -> tuple[Any, ...]:  # Any: `PredictOptions` refuses what it does not know
    """Take names from a text with commas between them, or as they are."""
    return tuple(filter(None, map(str.strip, names.split(",")))) if isinstance(names, str) else tuple(names)
