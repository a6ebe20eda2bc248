"""What may be asked of the search for markers."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.config import Accept, MarkerTest, check_value
from scamac_scale.config.choices import require

REST = "rest"
"""The reference of all cells but those of the group."""


@dataclass(frozen=True, kw_only=True)
class MarkerOptions:
    """What may be asked of the search for markers.

    Attributes
    ----------
    groupby
        Column of obs whose values are the groups.
    method
        ``t-test``, or ``t-test_overestim_var``, in which the rest counts for no more cells than the group has.
    reference
        ``rest``, or a group that all others are compared with.
    n_genes
        Genes of each group in the table; None takes all, but no more than `MOST_ROWS` rows of all groups.
    key
        Of uns, where the table lies.
    accept
        As of `PredictOptions`.
    auc_genes
        Best genes of each group whose AUC is told.
    auc_cells
        Cells of the sample that AUC is of, at most; fewer where their values would take more than `MOST_VALUES`.
    seed
        Of the sample.

    Raises
    ------
    ConfigError
        If a name is not known, or a number is too small.
    """

    groupby: str = "scamac_cluster"
    method: MarkerTest = "t-test"
    reference: str = REST
    n_genes: int | None = None
    key: str = "rank_genes_groups"
    accept: tuple[Accept, ...] = ()
    auc_genes: int = 100
    auc_cells: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and numbers."""
        check_value(MarkerTest, self.method, "method")
        check_value(tuple[Accept, ...], self.accept, "accept")
        require(
            self.n_genes is None or self.n_genes >= 1,
            f"n_genes={self.n_genes}; it must be at least 1, or null for all.",
        )
        require(bool(self.key) and "/" not in self.key, f"key={self.key!r}; it names a part of uns, without a slash.")
        require(self.key != "scamac", "key='scamac' is where predict has what it says of itself; name another.")


MOST_ROWS = 2_000_000
"""Of the table, where nobody says how many genes of each group it has: 100 MB."""
MOST_VALUES = 16_000_000
"""Values above zero that the sample for AUC holds, 100 MB: 20,000 cells of 800 genes each."""
