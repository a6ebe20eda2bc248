"""Settings of what is read: raw files, the input of the network, and how cells come from disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scamac_scale.config.choices import Cache, Densify, Flavor, Join, Kind, Profile, check_names, require


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a raw file becomes a training store."""

    kind: Kind = "auto"
    """What the values are: counts, linear (RPKM, TPM), log (already logged), or auto (detected while all cells are
    read)."""
    matrix: str = "X"
    """Where the values lie: X, raw, or the name of a layer; of a 10x file X, or one of its genomes."""
    n_genes: int = 2000
    """Number of highly variable genes to keep; all genes that pass the filter where there are fewer."""
    min_cell_fraction: float = 0.05
    """A gene is kept if at least this share of the cells expresses it, 0 to 1."""
    target_sum: float | None = None
    """Total that every cell is scaled to; null takes the median total, as scanpy does."""
    block_cells: int = 4096
    """Cells read and written at a time; memory grows with it."""
    profile: Profile = "fast"
    """How the store is written: fast (not compressed) or small (half of the space, twice the reading time)."""
    batch_key: str | None = None
    """Columns of obs that tell which technical batch (donor, chip, technology) a cell is from, with commas between
    them: genes are ranked in each batch as scanpy does, and train takes the same columns. Null has no batches."""
    shuffle: bool = True
    """Write the cells in random order, so that neighbours on disk are strangers; results come in the order of the input."""
    seed: int = 0
    """Seed of the random order in which the cells are written."""
    shuffle_bytes: int = 2**28
    """Memory for the shuffle, in bytes; with fewer, the cells go through more files on disk."""
    flavor: Flavor = "seurat"
    """How genes are chosen, as scanpy does it under the same name: seurat and cell_ranger by dispersions (any values),
    seurat_v3, seurat_v3_paper (need the extra loess) and pearson_residuals by variances of counts."""
    genes: str | None = None
    """Genes to take, in place of a choice: a text file with one name on each line, or var:COLUMN for those that a
    boolean column of var marks. Null chooses them."""
    min_cells: int | None = None
    """A gene is kept if at least so many cells express it; takes the place of min_cell_fraction. Null takes the share."""
    gene_column: str | None = None
    """Column of var that names the genes, such as feature_name or gene_ids; repeated names are made unique. Null takes the index of var."""
    # several inputs, and some cells of them
    join: Join = "inner"
    """Genes of several inputs: inner takes those that all have, outer those that any has, with zeros where an input lacks one."""
    columns: str | None = None
    """Columns of obs to keep, with commas between them, beside those of the batch key; null keeps all."""
    where: str | None = None
    """Cells to take, by columns of obs, in pandas' query syntax: donor != "D7" and not is_doublet. Null takes all."""
    cells: str | None = None
    """File with the cells to take, one name a line, or input and name with a tab between them. Null takes all."""
    min_genes: int | None = None
    """Leave out cells with fewer genes above zero; null leaves out none."""
    max_mito: float | None = None
    """Leave out cells with more than this percentage of their counts in mitochondrial genes, 0 to 100; null leaves out none."""
    mito_prefix: str = "MT-"
    """How names of mitochondrial genes begin, in capital or small letters."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "ingest.")
        require(self.n_genes >= 1, f"ingest.n_genes={self.n_genes}; it must be at least 1.")
        require(
            0.0 <= self.min_cell_fraction <= 1.0,
            f"ingest.min_cell_fraction={self.min_cell_fraction}; it is a share of cells, 0 to 1.",
        )
        require(
            self.target_sum is None or self.target_sum > 0,
            f"ingest.target_sum={self.target_sum}; it must be positive, or null for the median.",
        )
        require(self.block_cells >= 1, f"ingest.block_cells={self.block_cells}; it must be at least 1.")
        require(self.seed >= 0, f"ingest.seed={self.seed}; it must not be negative.")
        require(self.shuffle_bytes >= 1, f"ingest.shuffle_bytes={self.shuffle_bytes}; it must be at least 1.")
        require(self.batch_key != "none", "ingest.batch_key='none'; leave it out, or name columns of obs.")
        require(
            self.batch_key is None or any(map(str.strip, self.batch_key.split(","))),
            f"ingest.batch_key={self.batch_key!r} names no column of obs; null has no batches.",
        )
        require(
            self.min_cells is None or self.min_cells >= 0,
            f"ingest.min_cells={self.min_cells}; it is a number of cells, and must not be negative.",
        )
        require(
            self.min_cells is None or self.min_cell_fraction == _DEFAULT_FRACTION,
            f"ingest.min_cells={self.min_cells} and ingest.min_cell_fraction={self.min_cell_fraction} are two filters of genes; "
            "give one of them.",
        )
        require(
            self.genes is None or self.genes.strip() not in ("", "var:"),
            f"ingest.genes={self.genes!r} names no genes; it takes a text file, or var:COLUMN.",
        )
        require(
            self.genes is None or self.flavor == "seurat",
            f"ingest.genes={self.genes} names the genes, and ingest.flavor={self.flavor} would choose others; give one of them.",
        )
        require(
            self.gene_column is None or bool(self.gene_column.strip()),
            "ingest.gene_column='' names no column of var; null takes its index.",
        )
        self._check_cells()

    def _check_cells(self) -> None:
        """Check what says which cells and columns are taken."""
        require(
            self.columns is None or any(map(str.strip, self.columns.split(","))),
            f"ingest.columns={self.columns!r} names no column of obs; null keeps all.",
        )
        require(self.where is None or bool(self.where.strip()), "ingest.where is empty; null takes all cells.")
        require(self.cells is None or bool(self.cells.strip()), "ingest.cells is empty; null takes all cells.")
        require(
            self.min_genes is None or self.min_genes >= 1,
            f"ingest.min_genes={self.min_genes}; it must be at least 1, or null to leave out no cell.",
        )
        require(
            self.max_mito is None or 0.0 <= self.max_mito <= 100.0,
            f"ingest.max_mito={self.max_mito}; it is a percentage of the counts of a cell, 0 to 100.",
        )
        require(bool(self.mito_prefix.strip()), "ingest.mito_prefix is empty; all genes would be mitochondrial.")

    def to_plain(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; what came later is left out at its default, as it was written before, to the byte."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


_OF_CELLS = ("gene_column", "join", "columns", "where", "cells", "min_genes", "max_mito", "mito_prefix")
_DEFAULT_FRACTION = IngestConfig.min_cell_fraction
_LATER = {name: getattr(IngestConfig, name) for name in ("batch_key", "flavor", "genes", "min_cells", *_OF_CELLS)}
"""Settings that stores of earlier versions do not have, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What the network sees: log-normalised values, rescaled, plus noise in training."""

    unit_norm: bool = True
    """Scale each cell to Euclidean length 1."""
    center: bool = True
    """Subtract the mean of each gene."""
    gene_sd: float | None = 0.5
    """Multiply everything by one number so that the mean standard deviation of a gene is this; null leaves it."""
    noise_low: float = -0.5
    """Lower bound of the uniform noise added in training; the published code has 0."""
    noise_high: float = 0.5
    """Upper bound of the uniform noise added in training; the published code has 1. Noise of mean 0 leaves clean cells,
    which inference sees, where training saw them."""
    target_share: float = 0.2
    """Share of the molecules of a cell that is held out of the input and is the target, drawn anew in each step; used in
    place of the noise where loss.reconstruction is poisson."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(
            self.gene_sd is None or self.gene_sd > 0,
            f"input.gene_sd={self.gene_sd}; it must be positive, or null to leave the scale alone.",
        )
        require(
            self.noise_low <= self.noise_high,
            f"input.noise_low={self.noise_low} lies above input.noise_high={self.noise_high}.",
        )
        require(
            0.0 < self.target_share < 1.0,
            f"input.target_share={self.target_share}; it is a share of the molecules, above 0 and below 1.",
        )


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How cells come from disk."""

    cache: Cache = "auto"
    """Where all cells are kept after one reading, with the same batches: none, host, device, or auto (host if they fit
    loader.cache_bytes)."""
    cache_bytes: int = 2**30
    """Memory that loader.cache=auto may take, in bytes."""
    window_bytes: int = 2**28
    """Size of the window of cells that are mixed with one another, in bytes as float32 CSR; memory is three such
    windows, or half of that from a store of counts."""
    threads: int | None = None
    """Number of reader threads; null takes the cores, at most 4."""
    ahead: int = 2
    """Number of windows that are read beyond the one in use."""
    densify: Densify = "auto"
    """Where sparse rows become dense: host, device, or auto (on a GPU the faster one, measured at the start of a run;
    else host)."""
    balance_by: str | None = None
    """Column of obs whose classes training sees equally often; null takes the cells as they are."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "loader.")
        require(self.cache_bytes >= 0, f"loader.cache_bytes={self.cache_bytes}; it must not be negative.")
        require(self.window_bytes >= 1, f"loader.window_bytes={self.window_bytes}; it must be at least 1.")
        require(
            self.threads is None or self.threads >= 1,
            f"loader.threads={self.threads}; it must be at least 1, or null for the number of cores.",
        )
        require(self.ahead >= 1, f"loader.ahead={self.ahead}; it must be at least 1.")
