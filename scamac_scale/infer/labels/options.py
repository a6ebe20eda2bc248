"""What may be asked of labels that are carried over."""

from __future__ import annotations

from dataclasses import dataclass

from scamac_scale.config.choices import require


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What may be asked of labels that are carried over.

    Attributes
    ----------
    label
        Column of obs of the reference.
    unknown
        Share of held-out cells of the reference that are called unknown, 0 to .5; 0 labels all cells.
    unlabelled
        Labels of the reference that mean none.
    held_out
        Columns of obs of the reference, with commas between them: cells are held out with all others of the same values. None takes the
        technical batches of the fit.

    Raises
    ------
    ConfigError
        If the share lies elsewhere, or a name is empty.
    """

    label: str
    unknown: float = 0.05
    unlabelled: tuple[str, ...] = ()
    held_out: str | None = None

    def __post_init__(self) -> None:
        """Check values."""
        require(bool(self.label), "the label column has no name; name a column of obs of the reference.")
        require(0 <= self.unknown <= 0.5, f"unknown={self.unknown}; the share lies between 0 and 0.5.")
