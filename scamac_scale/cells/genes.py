"""The genes of a model: which are counted for a cell's total, which are kept, and how values become the network's input.

Plain data that every part may import; it is saved with a store and with a model. The formula itself lives in
``normalisation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.errors import InputError, StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("counts", "linear", "log")


@dataclass(frozen=True)
class ValueRecord:
    """What the values of the cells of a fit looked like, to compare others with.

    Attributes
    ----------
    seen
        Kind that the evidence tells, whatever was said: counts, linear, log, or ``mixed`` for cells of several kinds.
    base
        Of the logarithm, for ``log``; None where it is not known.
    total
        That all cells sum to, before the logarithm if there is one; None where they do not agree.
    is_sure
        Whether there was evidence for the kind of the values, and not a guess.
    means
        (filtered genes) mean over all cells of the share of the total, or for ``log`` of what it is the logarithm of; empty where it
        is not known.
    """

    seen: str
    base: float | None = None
    total: float | None = None
    is_sure: bool = True
    means: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, object], n_filtered: int) -> ValueRecord:
        """Read plain values; raises ValueError or TypeError where they cannot be right."""
        base, total, means = _number(values["base"]), _number(values["total"]), values["means"]
        if not isinstance(means, (list, tuple)) or len(means) not in (0, n_filtered):
            raise ValueError("the means of genes are not one for each filtered gene")
        numbers = tuple(_number(mean) or 0.0 for mean in means)
        if (base is not None and base <= 1) or (total is not None and total <= 0) or min(numbers, default=0.0) < 0:
            raise ValueError("base, total and means of genes must be positive")
        return cls(str(values["seen"]), base, total, bool(values["is_sure"]), numbers)


@dataclass(frozen=True)
class InputRecord:
    """What the input of a fit held, and how much of it the filters took away.

    Attributes
    ----------
    n_inputs
        Files, or values in memory, that were given.
    n_genes
        Genes of the input; of several inputs, those after the join.
    n_cells, n_taken
        Cells of the input, and those of them that are in the fit.
    left_out
        Cells that each filter left out, by its setting: ``where``, ``cells``, ``min_genes``, ``max_mito``. A cell counts for the first
        of them that leaves it out.
    n_empty
        Cells of the fit without counts in the genes that pass; they stay.
    min_cells
        Cells that a gene had to be in; None where genes passed because they were named, too.
    """

    n_inputs: int
    n_genes: int
    n_cells: int
    n_taken: int
    left_out: Mapping[str, int]
    n_empty: int
    min_cells: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> InputRecord:
        """Read plain values; raises KeyError, ValueError or TypeError where they cannot be right."""
        left_out, least = values["left_out"], values["min_cells"]
        if not isinstance(left_out, Mapping):
            raise TypeError(f"left_out is {type(left_out).__name__}")
        found = cls(
            n_inputs=_count(values["n_inputs"]),
            n_genes=_count(values["n_genes"]),
            n_cells=_count(values["n_cells"]),
            n_taken=_count(values["n_taken"]),
            left_out={str(name): _count(number) for name, number in left_out.items()},
            n_empty=_count(values["n_empty"]),
            min_cells=None if least is None else _count(least),
        )
        if max(found.n_taken + sum(found.left_out.values()), found.n_empty) > found.n_cells:
            raise ValueError("the input has fewer cells than were taken of it, left out or empty")
        return found


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise TypeError(f"expected a number of cells or genes, got {value!r}")
    return int(value)


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class GeneSpace:
    """What turns the raw values of a cell into the values of the chosen genes.

    Attributes
    ----------
    kind
        ``counts`` (whole numbers), ``linear`` (RPKM, TPM) or ``log`` (already logged).
    target_sum
        Total that every cell is scaled to; None for ``log``, which is taken as it is.
    filtered
        Genes that pass the cell filter, in input order; a cell's total is the sum over them.
    chosen
        Highly variable genes, in input order; columns of the store, inputs of the network. A subset of `filtered`.
    values
        What the values looked like; None where it is not known, as in stores and models of earlier versions. It does not change what
        becomes of a cell, and two gene spaces that differ in it alone are equal.
    input
        What the input held, and what the filters took away; None where it is not known. It changes as little.

    Raises
    ------
    InputError
        If the parts do not fit each other.

    Notes
    -----
    ``counts`` and ``linear``: ``log1p(x * target_sum / total)`` with the total over `filtered`; a cell with total 0 stays
    zeros. ``log``: ``x``.
    """

    kind: str
    target_sum: float | None
    filtered: tuple[str, ...]
    chosen: tuple[str, ...]
    values: ValueRecord | None = field(default=None, compare=False)
    input: InputRecord | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} of a gene space; it is one of {', '.join(KINDS)}.")
        if (self.target_sum is None) != (self.kind == "log"):
            raise InputError(
                f"target_sum={self.target_sum} with kind={self.kind!r}; counts and linear values need one, log values none."
            )
        if self.target_sum is not None and not 0.0 < self.target_sum < float("inf"):
            raise InputError(f"target_sum={self.target_sum} of a gene space; it must be positive and finite.")
        if not self.chosen:
            raise InputError("a gene space without chosen genes; it needs at least one.")
        for role, names in (("filtered", self.filtered), ("chosen", self.chosen)):
            repeated = duplicates(names)
            if repeated:
                raise InputError(
                    f"{role} genes of a gene space repeat {', '.join(repeated[:10])}; names must be unique."
                )
        strange = set(self.chosen) - set(self.filtered)
        if strange:
            raise InputError(f"{len(strange)} chosen genes are not among the filtered ones, such as {min(strange)!r}.")

    def to_dict(self, *, has_input: bool = False) -> dict[str, object]:
        """Return plain values that JSON can hold; `from_dict` reads them back.

        Parameters
        ----------
        has_input
            Whether `input` is among them. Cells are told from others by what is left.
        """
        plain: dict[str, object] = {
            "kind": self.kind,
            "target_sum": self.target_sum,
            "filtered": list(self.filtered),
            "chosen": list(self.chosen),
        }
        if self.values is not None:
            plain["values"] = {**asdict(self.values), "means": list(self.values.means)}
        if has_input and self.input is not None:
            plain["input"] = asdict(self.input)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> GeneSpace:
        """Read what `to_dict` wrote.

        Parameters
        ----------
        values
            The keys of `to_dict`; sequences may be lists, tuples or arrays of strings.

        Returns
        -------
        GeneSpace
            Equal to the one that was written.

        Raises
        ------
        StoreError
            If a key is missing or a value cannot be used.
        """
        try:
            target_sum, filtered, chosen = values["target_sum"], values["filtered"], values["chosen"]
            if isinstance(target_sum, bool) or not isinstance(target_sum, (int, float, np.number, type(None))):
                raise TypeError(f"target_sum is {type(target_sum).__name__}")
            record, names = values.get("values"), _strings(filtered)
            if not isinstance(record, (Mapping, type(None))):
                raise TypeError(f"values is {type(record).__name__}")
            origin = values.get("input")
            if not isinstance(origin, (Mapping, type(None))):
                raise TypeError(f"input is {type(origin).__name__}")
            return cls(
                kind=str(values["kind"]),
                target_sum=None if target_sum is None else float(target_sum),
                filtered=names,
                chosen=_strings(chosen),
                values=None if record is None else ValueRecord.from_dict(record, len(names)),
                input=None if origin is None else InputRecord.from_dict(origin),
            )
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise StoreError(f"the saved gene space is damaged: {error}; write the store or model again.") from error


def _strings(values: object) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"expected a list of gene names, got {type(values).__name__}")
    strange = next((value for value in values if not isinstance(value, str)), None)
    if strange is not None:
        raise TypeError(f"expected gene names, got a {type(strange).__name__}")
    return tuple(str(value) for value in values)


def duplicates(names: Sequence[str]) -> list[str]:
    """Find names that occur more than once.

    Parameters
    ----------
    names
        Gene names.

    Returns
    -------
    list of str
        Each repeated name once, in order of its second occurrence.
    """
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name in names:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    return list(repeated)


def locate_genes(wanted: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Find genes by name.

    Parameters
    ----------
    wanted
        Genes to look for, such as ``GeneSpace.chosen``.
    names
        Genes of the input, unique.

    Returns
    -------
    ndarray
        (len(wanted),) position of each wanted gene in `names`, -1 where it is missing.
    """
    position = {name: i for i, name in enumerate(names)}
    return np.array([position.get(name, -1) for name in wanted], dtype=np.int64)
