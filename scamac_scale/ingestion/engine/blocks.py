"""What a pass over an input is: a function of one block of cells, and an engine that maps it over all blocks in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol, Self

from scipy import sparse

from scamac_scale.durable.faults import reach
from scamac_scale.ingestion.raw import blamed
from scamac_scale.progress import track

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from scamac_scale.ingestion.raw import RawMatrix

BlockFunction = Callable[[int, sparse.csr_matrix, int, Any], Any]
"""``function(block_index, block, start, common) -> result``: of a module, and pure. `block` (B, G) are the cells from `start` on,
not to be changed; `common` is the same for all blocks, and with the result it can be pickled; a result is far smaller than a block."""


class Engine(Protocol):
    """Maps functions over the blocks of an input; a context manager.

    Attributes
    ----------
    block_cells
        Cells of a block; the last one may be smaller.
    """

    block_cells: int

    # Any: what the function takes and gives
    def map(
        self, raw: RawMatrix, function: BlockFunction, common: Any, label: str, first: int = 0
    ) -> Generator[tuple[int, Any], None, None]:
        """Read all blocks, and give what a function makes of each, in their order.

        Parameters
        ----------
        raw
            What is read.
        function, common
            As `BlockFunction` says.
        label
            What is being done, for the progress report.
        first
            Cell to begin with, a multiple of `block_cells`.

        Yields
        ------
        start : int
            First cell of the block.
        result
            What the function gave.
        """

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs; the input may be closed afterwards."""


Block = tuple[int, int, int]
"""Index, first cell, the one after the last."""


def blocks_of(n_cells: int, block_cells: int, first: int = 0) -> list[Block]:
    """Cut cells from `first` on into blocks."""
    starts = range(first, n_cells, block_cells)
    return [(start // block_cells, start, min(start + block_cells, n_cells)) for start in starts]


def run_block(raw: RawMatrix, function: BlockFunction, common: Any, block: Block) -> Any:  # Any: as of `Engine.map`
    """Read a block and apply a function to it."""
    index, start, stop = block
    return function(index, raw.read_block(start, stop), start, common)


# Any: as of `Engine.map`
def reported(
    raw: RawMatrix, blocks: list[Block], label: str, results: Generator[Any, None, None]
) -> Generator[tuple[int, Any], None, None]:
    """Hand on the results of blocks, one for each and in order, and report progress; closes `results` at the end."""
    n_cells = blocks[-1][2] - blocks[0][1] if blocks else 0
    with closing(results), track(label, n_cells, "cells") as progress:
        for (_, start, stop), result in zip(blocks, results, strict=True):
            with blamed(raw.name, f"what follows cell {start}"):
                reach("ingest.read")
            yield start, result
            progress.advance(stop - start)
