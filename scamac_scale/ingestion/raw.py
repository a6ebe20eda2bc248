"""Raw values of cells by genes, whatever they lie in: what every opener hands out.

Nothing here knows a file format; ``open.py`` makes these.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scamac_scale.cells.genes import duplicates
from scamac_scale.durable.faults import reach
from scamac_scale.errors import InputError, MemoryLimitError, PlanError, ScamacError
from scamac_scale.ingestion.orientation import refuse_genes_as_rows
from scamac_scale.progress import track
from scamac_scale.remote.stamps import Stamp, check_unchanged, looks_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import pandas as pd
    from scipy import sparse

    from scamac_scale.ingestion.rows import Rows
    from scamac_scale.remote.place import BucketPlace

IN_MEMORY = "the AnnData in memory"
"""What an input without a path is called."""
FILE, FILE_ROW = "scamac_file", "scamac_file_row"
"""Columns of obs, where cells are of several inputs or not all are taken: the input of a cell, and its row there."""
REASON_LETTERS = 300
"""Of what a library says that are told; some print the whole array."""


def nothing() -> None:
    """Do nothing: closes what needs no closing."""


def closing(*held: Any) -> Callable[[], None]:  # Any: what may have a method close
    """Make one function that closes all that can be closed.

    Parameters
    ----------
    held
        Rows, files, groups; those without ``close`` are let be.
    """
    closes = [item.close for item in held if hasattr(item, "close")]

    def close() -> None:
        for one in closes:
            one()

    return close


@contextlib.contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Turn what a library raises on a damaged file into one `InputError`.

    Parameters
    ----------
    name
        The file.
    what
        What was being read.

    Raises
    ------
    InputError
        Instead of whatever h5py, zarr and anndata raise; errors of this package pass.
    MemoryLimitError
        If there is not enough memory.
    """
    try:
        yield
    except ScamacError:
        raise
    except MemoryError as error:
        raise MemoryLimitError(
            f"{name}: {what} cannot be read, there is not enough memory for it; lower ingest.block_cells, use a machine with "
            "more memory, or, if the file cannot be that large, write it again: it is damaged."
        ) from error
    except Exception as error:  # a damaged file raises anything inside a library
        raise InputError(
            f"{name}: {what} cannot be read ({reason(error)}); the file is damaged, write it again."
        ) from error


def reason(error: Exception) -> str:
    """Tell what an error of a library says, in one line and not at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= REASON_LETTERS else f"{text[:REASON_LETTERS]} ..."


@dataclass(frozen=True)
class Recipe:
    """How another process opens the same `RawMatrix`; can be pickled.

    Attributes
    ----------
    function
        Of a module: ``function(*args) -> RawMatrix``.
    args
        Plain data: absolute paths, names, other recipes.
    files
        Files and folders that it reads, as absolute paths.
    stamps
        Of `files`, from before they were opened first, once `stamped`: what was changed since is refused.
    """

    function: Callable[..., RawMatrix]
    args: tuple[Any, ...] = ()  # Any: plain data
    files: tuple[str, ...] = ()
    stamps: tuple[Stamp, ...] = ()

    @classmethod
    def of_others(cls, function: Callable[..., RawMatrix], args: tuple[Any, ...], others: Iterable[Recipe]) -> Recipe:
        """Make a recipe that opens others: their files, as they were looked at."""
        found = tuple(others)
        stamps = tuple(stamp for recipe in found for stamp in recipe.stamps)
        return cls(function, args, tuple(file for recipe in found for file in recipe.files), stamps)

    def stamped(self) -> Recipe:
        """Look at all files, unless that was done: before they are opened, for `open` refuses to find them otherwise."""
        return self if self.stamps else replace(self, stamps=looks_at(self.files))

    def open(self) -> RawMatrix:
        """Open the input again.

        Raises
        ------
        InputError
            If a file cannot be seen, was changed, or whatever the function refuses.
        """
        for stamp in self.stamps:
            stamp.check()
        raw = self.function(*self.args)
        try:
            for stamp in self.stamps:  # it may have been replaced in between
                stamp.check()
        except BaseException:
            raw.close()
            raise
        return raw


@dataclass(frozen=True, eq=False)
class Part:
    """One of several inputs behind a `RawMatrix`, as it was when it was opened.

    Attributes
    ----------
    name, path, matrix, gene_names, noted_base
        As of its own `RawMatrix`.
    n_cells, n_stored
        Cells and stored values of the whole input.
    n_taken
        Cells of it that the `RawMatrix` has; they follow those of the part before.
    taken
        SHA-256 of their rows in the input; None where all are taken.
    """

    name: str
    path: Path | BucketPlace | None
    matrix: str
    gene_names: tuple[str, ...]
    noted_base: float | None
    n_cells: int
    n_stored: int
    n_taken: int
    taken: str | None = None

    @property
    def n_genes(self) -> int:
        """Genes of the input."""
        return len(self.gene_names)


@dataclass(frozen=True, eq=False)
class RawMatrix:
    """Raw values of N cells by G genes, read by blocks of cells; a context manager.

    Attributes
    ----------
    name
        What it is called in messages: the path, or that it is in memory.
    path
        Where it lies; None in memory.
    matrix
        ``X``, ``raw`` or the layer.
    gene_names
        (G,) unique names.
    rows
        The storage; use `read_block`.
    read_obs
        Reads the annotation of the cells; use `obs`.
    close
        Closes the file.
    noted_base
        Base of the logarithm that ``uns["log1p"]`` notes, as scanpy does; None where it notes none.
    recipe
        How another process opens the same; None where none can (values in memory).
    read_vars
        Reads the annotation of the genes: name and table of each file that the cells come from, indexed by the gene names in use;
        none where a format has no such tables.
    parts
        The inputs that its cells are from, where these are several or not all cells are taken; else none.
    left_out
        Cells that each filter has left out, by its setting; a cell counts for the first that leaves it out.
    """

    name: str
    path: Path | BucketPlace | None
    matrix: str
    gene_names: tuple[str, ...]
    rows: Rows
    read_obs: Callable[[], pd.DataFrame]
    close: Callable[[], None] = nothing
    noted_base: float | None = None
    recipe: Recipe | None = None
    read_vars: Callable[[], list[tuple[str, pd.DataFrame]]] = list
    parts: tuple[Part, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there are genes, and that they are named once each."""
        if self.n_genes != len(self.gene_names):
            raise InputError(
                f"{self.name}: {self.matrix} has {self.n_genes} columns, but {len(self.gene_names)} genes are named; "
                "the file is damaged, write it again."
            )
        if not self.n_genes:
            raise InputError(
                f"{self.name}: {self.matrix} has no genes, its shape is {self.rows.shape}; give a matrix of cells by genes."
            )
        repeated = duplicates(self.gene_names)
        if repeated:
            more = f" and {len(repeated) - 10} more" if len(repeated) > 10 else ""
            raise InputError(
                f"{self.name}: gene names must be unique, these are not: {', '.join(repeated[:10])}{more}; call "
                "adata.var_names_make_unique(), or sum the columns of a gene, and write the file again."
            )

    @property
    def n_cells(self) -> int:
        """Cells N."""
        return self.rows.shape[0]

    @property
    def n_cells_given(self) -> int:
        """Cells of all inputs, also those that are not taken."""
        return sum(part.n_cells for part in self.parts) if self.parts else self.n_cells

    @property
    def n_genes(self) -> int:
        """Genes G."""
        return self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values that `read_block` returns: as stored, in native byte order."""
        return self.rows.dtype

    @property
    def n_stored(self) -> int:
        """Values stored on disk or in memory: nonzeros of a sparse matrix, N G of a dense one."""
        return self.rows.n_stored

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells, names as its index, read at first use; not to be changed."""
        with blamed(self.name, "the annotation of the cells (obs)"):
            obs = self.read_obs()
        if len(obs) != self.n_cells:
            raise InputError(
                f"{self.name}: obs names {len(obs)} cells, but {self.matrix} has {self.n_cells}; the file is damaged, "
                "write it again."
            )
        if not self.parts:  # each of several was looked at alone
            refuse_genes_as_rows(obs.index, self.gene_names, self.name)
        return obs

    def forget_obs(self) -> None:
        """Let go of `obs`, which takes some 150 bytes for each cell; it is read again if it is asked for again."""
        vars(self).pop("obs", None)

    def cell_named(self, cell: int) -> str:
        """Name a cell in a message, given its number; and where it is from, if that may be several inputs or not all of one."""
        name = repr(str(self.obs.index[cell]))
        if not self.parts:
            return name
        return f"{name} (row {self.obs[FILE_ROW].iloc[cell]} of {self.obs[FILE].iloc[cell]})"

    def read_block(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read a run of cells.

        Parameters
        ----------
        start, stop
            First cell, and the one after the last.

        Returns
        -------
        csr_matrix
            (stop - start, G) values as stored, not to be changed; indices checked and sorted within each row. Explicit
            zeros are kept.

        Raises
        ------
        PlanError
            If the cells do not exist.
        InputError
            If the file is damaged there.

        Notes
        -----
        Only this run is read, except from a matrix that is in memory anyway. Threads may read at once.
        """
        if not 0 <= start <= stop <= self.n_cells:
            raise PlanError(f"cells {start} to {stop} of {self.name} do not exist; it has {self.n_cells}.")
        with blamed(self.name, f"cells {start} to {stop}"):
            return self.rows.read(start, stop)

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        """Looks at its files before they were opened; none of values in memory."""
        return () if self.recipe is None else self.recipe.stamps

    def check_unchanged(self) -> None:
        """Look at its files again; raises InputError if one was changed while it was read."""
        check_unchanged(self.stamps)

    def __enter__(self) -> RawMatrix:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def read_blocks(
    raw: RawMatrix, block_cells: int, label: str, first: int = 0
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Read cells in order, block by block, and report progress.

    Parameters
    ----------
    raw
        What is read.
    block_cells
        Cells in a block; the last one may be smaller.
    label
        What is being done, for the progress report.
    first
        Cell to begin with.

    Yields
    ------
    start : int
        First cell of the block.
    block : csr_matrix
        (cells, G), see `RawMatrix.read_block`.
    """
    with track(label, raw.n_cells - first, "cells") as progress:
        for start in range(first, raw.n_cells, block_cells):
            block = raw.read_block(start, min(start + block_cells, raw.n_cells))
            with blamed(raw.name, f"what follows cell {start}"):
                reach("ingest.read")
            yield start, block
            progress.advance(block.shape[0])
