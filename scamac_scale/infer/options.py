"""What may be asked of a prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scamac_scale.cells.tech_batches import split_key
from scamac_scale.config import Accept, Attention, check_value, whole
from scamac_scale.config.choices import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scamac_scale.infer.labels.rule import Labelling

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
    n_clusters
        Clusters K into which the tree of the model is cut, in place of those of the fit.
    cut
        Height at which it is cut instead, 0 to 1: 1 - the share of clusterings in which two groups of landmarks are together.
    levels
        Numbers of clusters of coarser and finer cuts beside the clusters, each a column of obs.
    labels
        Labels that are carried over to the cells; None for none.

    Raises
    ------
    ConfigError
        If `attention` or a name in `accept` is not known, a batch is named without a reconstruction, the batch key is empty, or no tree can be
        cut so.
    """

    is_denoised: bool = False
    denoised_batch: str = OWN
    attention: Attention = "trained"
    batch_key: str | None = None
    accept: tuple[Accept, ...] = ()
    n_clusters: int | None = None
    cut: float | None = None
    levels: tuple[int, ...] = ()
    labels: Labelling | None = None

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
        _check_cuts(self.n_clusters, self.cut, self.levels)

    def to_plain(self) -> dict[str, Any]:
        """Give what tells one prediction from another, by the names that users know."""
        found = {
            "attention": self.attention,
            "denoised": self.is_denoised,
            "denoised_batch": self.denoised_batch,
            "batch_key": self.batch_key,
            **({} if self.labels is None else {"labels": self.labels.belongs}),
        }
        cuts = {"n_clusters": self.n_clusters, "cut": self.cut, "levels": list(self.levels) or None}
        return found | {name: value for name, value in cuts.items() if value is not None}


def _check_cuts(n_clusters: int | None, cut: float | None, levels: tuple[int, ...]) -> None:
    """Refuse cuts that no tree has."""
    require(
        n_clusters is None or cut is None,
        f"n_clusters={n_clusters} and cut={cut} both say where the tree is cut; give one of them.",
    )
    require(
        n_clusters is None or _is_count(n_clusters),
        f"n_clusters={n_clusters!r}; it must be a whole number of at least 1.",
    )
    is_number = isinstance(cut, int | float) and not isinstance(cut, bool)
    require(cut is None or (is_number and 0 <= cut <= 1), f"cut={cut!r}; it is a height from 0 to 1.")
    named = ",".join(map(str, levels))
    require(all(map(_is_count, levels)), f"levels={named}; each must be a whole number of at least 1.")
    require(len(set(levels)) == len(levels), f"levels={named}; name each number once.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def counts_of(levels: str | int | Sequence[int]) -> tuple[int, ...]:
    """Take numbers from a text with commas between them, or as they are.

    Raises
    ------
    ConfigError
        If one is no whole number.
    """
    if isinstance(levels, str):
        parts = [part.strip() for part in levels.split(",") if part.strip()]
        require(
            all(part.lstrip("+-").isdecimal() for part in parts),
            f"levels={levels!r}; name whole numbers with commas between them, such as 5,20.",
        )
        return tuple(map(int, parts))
    return tuple(whole(level) for level in (levels if isinstance(levels, Iterable) else [levels]))


def accepted_names(
    names: str | Sequence[str],
) -> tuple[Any, ...]:  # Any: `PredictOptions` refuses what it does not know
    """Take names from a text with commas between them, or as they are."""
    return tuple(filter(None, map(str.strip, names.split(",")))) if isinstance(names, str) else tuple(names)
