"""Every setting of the program: frozen dataclasses, one per part.

A config is data: numbers, names and booleans. Names of choices are keys of the dicts that list them (``SPATIAL_FORMS``,
``STARTS`` and so on), which report an unknown name together with the known ones. Nothing here imports torch, so that the
command line can read these classes at once. The defaults are the recipe for all data; ``configs/paper.yaml`` holds the
sizes and readings of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scamac_scale.errors import ConfigError


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a raw file becomes a training store."""

    kind: str = "auto"
    """What the values are: counts, linear (RPKM, TPM), log (already logged), or auto (detected on the full pass)."""
    matrix: str = "X"
    """Where the values lie: X, raw, or the name of a layer."""
    n_genes: int = 2000
    """Highly variable genes to keep; all that pass the filter where there are fewer."""
    min_cell_fraction: float = 0.05
    """A gene is kept if at least this share of the cells expresses it, 0 to 1."""
    target_sum: float | None = None
    """Total that every cell is scaled to; null takes the median total, as scanpy does."""
    block_cells: int = 4096
    """Cells read and written at a time; memory grows with it."""
    profile: str = "fast"
    """How the store is written: fast (not compressed) or small (half of the space, twice the reading time)."""
    shuffle: bool = True
    """Write the cells in random order, so that neighbours on disk are strangers; results come in the order of the input."""
    seed: int = 0
    """Of the random order."""
    shuffle_bytes: int = 2**28
    """Bytes of memory for the shuffle; with fewer, the cells go through more files on disk."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.n_genes >= 1, f"ingest.n_genes={self.n_genes}; it must be at least 1.")
        _require(
            0.0 <= self.min_cell_fraction <= 1.0,
            f"ingest.min_cell_fraction={self.min_cell_fraction}; it is a share of cells, 0 to 1.",
        )
        _require(
            self.target_sum is None or self.target_sum > 0,
            f"ingest.target_sum={self.target_sum}; it must be positive, or null for the median.",
        )
        _require(self.block_cells >= 1, f"ingest.block_cells={self.block_cells}; it must be at least 1.")
        _require(self.seed >= 0, f"ingest.seed={self.seed}; it must not be negative.")
        _require(self.shuffle_bytes >= 1, f"ingest.shuffle_bytes={self.shuffle_bytes}; it must be at least 1.")


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

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(
            self.gene_sd is None or self.gene_sd > 0,
            f"input.gene_sd={self.gene_sd}; it must be positive, or null to leave the scale alone.",
        )
        _require(
            self.noise_low <= self.noise_high,
            f"input.noise_low={self.noise_low} lies above input.noise_high={self.noise_high}.",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and forms of the network."""

    encoder_width: int = 256
    """Width H of the encoding and decoding layers."""
    latent_width: int = 32
    """Width D of the hidden layer and of the fused latent."""
    encoder_activation: str = "leaky_relu"
    """Activation of the encoding and decoding layers, Eqs. (1) and (3)."""
    latent_activation: str = "linear"
    """Activation of the hidden layer and of the two projections, Eqs. (2), (6) and (7)."""
    output_activation: str = "linear"
    """Activation of the output layer, Eq. (4)."""
    negative_slope: float = 0.01
    """Slope of LeakyReLU below zero."""
    scales: tuple[str, ...] = ("encoding", "hidden", "decoding")
    """The layers that are fused to the latent; hidden alone is a plain autoencoder."""
    has_synergy: bool = True
    """Whether the scales attend (MSS, Eqs. 9 to 11); without it they go on as they are."""
    has_integration: bool = True
    """Whether the scales are weighed (MSI, Figure 3); without it all count alike."""
    spatial_form: str = "landmark"
    """Spatial attention, Eq. (10), in training: landmark (a bank of cells) or batch (the cells of the batch, as printed)."""
    channel_form: str = "atlas"
    """Whose mean of QᵀK serves channel attention, Eq. (11), in training: atlas (a running mean over all cells) or batch."""
    bank_cells: int = 256
    """Cells M in the bank of landmark attention."""
    bank_choice: str = "random"
    """How they are chosen: random, or kmeans (by faiss on the latents after pretraining; sparse regions get more than their share)."""
    integration_kernel: int = 3
    """Width of the convolution over the three scales (Figure 3); odd."""
    fusion: str = "residual"
    """How Z is put together: residual (mean over scales of Z' plus the gated attention) or gated_sum."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("encoder_width", "latent_width", "bank_cells", "integration_kernel"):
            _require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)}; it must be at least 1.")
        _require(len(self.scales) > 0, "model.scales is empty; name at least one layer.")
        _require(len(set(self.scales)) == len(self.scales), f"model.scales={self.scales}; a layer is named twice.")
        _require(
            self.integration_kernel % 2 == 1,
            f"model.integration_kernel={self.integration_kernel}; it must be odd.",
        )
        _require(
            0.0 < self.negative_slope <= 1.0,
            f"model.negative_slope={self.negative_slope}; it must lie above 0 and at most at 1.",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The terms of the objective and their weights."""

    reconstruction: str = "mean"
    """Eq. (5) as a mean over entries (mean), or summed over genes and averaged over cells (sum_genes)."""
    clustering: str = "mean"
    """Eq. (12) as a mean over cells (mean) or summed (sum)."""
    clustering_weight: float = 0.01
    """Factor of Eq. (12)."""
    similarity: str = "atlas"
    """Which cells Eq. (15) pairs with those of a batch: atlas (all cells), batch (those of the batch) or off."""
    similarity_refresh_steps: int | None = None
    """Gradient steps after which the sums over all cells for `similarity`=atlas are taken anew, which costs a sweep; null: after
    every round, with the sweep that is there anyway."""
    similarity_momentum: float = 0.1
    """Weight of each batch in these sums between two sweeps, 0 to 1, so that they follow the cells; 0 leaves them as swept."""
    similarity_target: str = "consensus"
    """U of Eq. (15): consensus (multi-scale memberships of the consensus members) or membership (as printed)."""
    similarity_form: str = "auto"
    """How Eq. (15) within a batch is computed: direct, gram, or auto (the cheaper one); the value is the same."""
    similarity_scaling: str = "pairs"
    """Eq. (15) over the number of pairs (pairs) or over the number of cells (paper)."""
    similarity_weight: float | None = None
    """Factor of Eq. (15); null measures it once, from `similarity_gradient_ratio`."""
    similarity_gradient_ratio: float = 10.0
    """Gradient norm of Eq. (15) at the hidden layer, as a multiple of the reconstruction's."""
    epsilon: float = 0.01
    """The epsilon of Eqs. (12) to (14)."""
    temperature: str = "relative"
    """Of Eq. (14): relative (gamma times the mean gap between nearest and second center) or absolute (gamma)."""
    gamma: float = 0.1
    """See `temperature`; the paper has absolute 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("epsilon", "gamma", "similarity_gradient_ratio"):
            _require(getattr(self, name) > 0, f"loss.{name}={getattr(self, name)}; it must be positive.")
        steps = self.similarity_refresh_steps
        _require(
            steps is None or steps >= 1,
            f"loss.similarity_refresh_steps={steps}; it must be at least 1, or null for once a round.",
        )
        _require(
            0.0 <= self.similarity_momentum <= 1.0,
            f"loss.similarity_momentum={self.similarity_momentum}; it is a share, 0 to 1.",
        )
        for name in ("clustering_weight", "similarity_weight"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"loss.{name}={value}; it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One stretch of gradient steps."""

    terms: tuple[str, ...] = ("reconstruction", "layers")
    """Terms of the objective: reconstruction, layers (both of Eq. 5), similarity, clustering."""
    epochs: float = 10
    """Passes over the cells."""
    min_steps: int = 0
    """At least so many steps, however few the cells."""
    max_steps: int | None = None
    """At most so many steps, however many the cells; null sets no limit."""
    optimizer: str = "adamw"
    """adamw, adam or sgd."""
    learning_rate: float | None = None
    """Step size; null takes 1e-3 at 256 cells a batch, growing with the batch."""
    schedule: str = "constant"
    """constant or cosine (to zero at the last step of the last round)."""
    is_noisy: bool = True
    """Whether uniform noise is added to the input."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.epochs >= 0, f"epochs={self.epochs}; it must not be negative.")
        _require(
            self.max_steps is None or self.max_steps >= self.min_steps,
            f"max_steps={self.max_steps} lies below min_steps={self.min_steps}.",
        )
        _require(
            self.learning_rate is None or self.learning_rate > 0,
            f"learning_rate={self.learning_rate}; it must be positive, or null for the default.",
        )


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """How the weights and the centers begin."""

    weights: str = "pca"
    """pca (the linear PCA autoencoder), kaiming, or identity (as the published code)."""
    pca_cells: int = 100_000
    """Cells of the covariance; a random sample of so many where the atlas has more."""
    centers: str = "consensus"
    """consensus, ward, kmeans, faiss_kmeans (extra cpu or gpu) or random."""
    landmark_cells: int = 1000
    """Cells on which the centers are found."""
    landmark_choice: str = "random"
    """How they are chosen: random, or kmeans (by faiss on latents; sparse regions get more than their share)."""
    components: tuple[int, ...] = (10, 20, 40)
    """Principal components of the spaces that the consensus members cluster in."""
    cut_height: float = 0.6
    """Where the consensus tree is cut when the number of clusters is not given, 0 to 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.landmark_cells >= 2, f"start.landmark_cells={self.landmark_cells}; it must be at least 2.")
        _require(self.pca_cells >= 2, f"start.pca_cells={self.pca_cells}; it must be at least 2.")
        _require(len(self.components) > 0, "start.components is empty; name at least one number.")
        _require(min(self.components) >= 1, f"start.components={self.components}; each must be at least 1.")
        _require(0 < self.cut_height < 1, f"start.cut_height={self.cut_height}; it lies between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How cells come from disk."""

    cache: str = "auto"
    """Where all cells are kept after one reading: none, host, device, or auto (host if they fit `cache_bytes`). The batches
    are the same."""
    cache_bytes: int = 2**30
    """Bytes that cache=auto may take."""
    window_bytes: int = 2**28
    """Most that the cells which are mixed with one another may take, in bytes as float32 CSR; memory is three such windows,
    or half of that from a store of counts."""
    threads: int | None = None
    """Reader threads; null takes the cores, at most 4."""
    ahead: int = 2
    """Windows that are read beyond the one in use."""
    densify: str = "auto"
    """Where sparse rows become dense: host, device, or auto (measured at the start of a run on a GPU)."""
    balance_by: str | None = None
    """Column of obs whose classes training sees equally often; null takes the cells as they are."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.cache_bytes >= 0, f"loader.cache_bytes={self.cache_bytes}; it must not be negative.")
        _require(self.window_bytes >= 1, f"loader.window_bytes={self.window_bytes}; it must be at least 1.")
        _require(
            self.threads is None or self.threads >= 1,
            f"loader.threads={self.threads}; it must be at least 1, or null for the number of cores.",
        )
        _require(self.ahead >= 1, f"loader.ahead={self.ahead}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: batches, rounds, devices."""

    batch_cells: int | None = None
    """Cells in a global batch; null takes 256 below 20,000 cells, 1,024 to 100,000, 4,096 above."""
    pretrain: PhaseConfig = field(default_factory=lambda: PhaseConfig(epochs=10, min_steps=100, max_steps=2000))
    """Before the centers are found."""
    rounds: int = 4
    """Rounds of (phases, exact sweep)."""
    phases: tuple[PhaseConfig, ...] = field(
        default_factory=lambda: (
            PhaseConfig(
                terms=("reconstruction", "layers", "similarity", "clustering"),
                epochs=3,
                min_steps=50,
                max_steps=1000,
                schedule="cosine",
            ),
        )
    )
    """The phases of one round, in order."""
    carries_centers: bool = False
    """Carry the swept centers from round to round to the end; otherwise they restart from the landmarks."""
    splits_heaviest: bool = False
    """Whether a cluster that a sweep leaves empty takes half of the heaviest one; otherwise it keeps its center."""
    accelerator: str = "auto"
    """cpu, cuda or auto (cuda where there is one)."""
    precision: str = "auto"
    """32-true, bf16-mixed, or auto (bf16 where the device has it)."""
    sums: str = "blocks"
    """How gradients are summed: blocks (of the global batch, by a fixed tree: the same bits on 1, 2, 4 or 8 processes) or ranks (each
    process takes its share at once: faster at small batches, rounded otherwise on another number of processes)."""
    checkpoint_every_s: float = 300.0
    """Seconds between two checkpoints."""
    checkpoint_every_steps: int | None = None
    """Gradient steps between two checkpoints, if that is sooner; null leaves it to the time."""
    timeout_s: float = 60.0
    """Seconds that processes wait for one another in steps and sweeps."""
    setup_timeout_s: float = 1800.0
    """And elsewhere: at the start, and while one of them finds the clusters or saves."""
    log_every_s: float = 10.0
    """Seconds between plain progress lines where there is no terminal."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(
            self.batch_cells is None or self.batch_cells >= 1,
            f"train.batch_cells={self.batch_cells}; it must be at least 1, or null for the default.",
        )
        _require(self.rounds >= 0, f"train.rounds={self.rounds}; it must not be negative.")
        for name in ("checkpoint_every_s", "checkpoint_every_steps", "timeout_s", "setup_timeout_s"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"train.{name}={value}; it must be positive.")


@dataclass(frozen=True, kw_only=True)
class ScamacConfig:
    """One whole run."""

    n_clusters: int | str = "auto"
    """Number of clusters K, or auto."""
    seed: int = 0
    """Every random choice derives from it."""
    input: InputConfig = field(default_factory=InputConfig)
    """What the network sees."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Sizes and forms of the network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The objective."""
    start: StartConfig = field(default_factory=StartConfig)
    """Weights and centers at the beginning."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How cells come from disk."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""

    def __post_init__(self) -> None:
        """Check the number of clusters."""
        if isinstance(self.n_clusters, str):
            _require(
                self.n_clusters == "auto",
                f"n_clusters={self.n_clusters!r}; it must be a whole number or 'auto'.",
            )
        else:
            _require(
                type(self.n_clusters) is int,
                f"n_clusters={self.n_clusters!r}; it must be a whole number or 'auto'.",
            )
            _require(self.n_clusters >= 1, f"n_clusters={self.n_clusters}; it must be at least 1.")
        _require(type(self.seed) is int, f"seed={self.seed!r}; it must be a whole number.")
        _require(self.seed >= 0, f"seed={self.seed}; it must not be negative.")


def config_from_dict(values: dict[str, Any]) -> ScamacConfig:
    """Rebuild settings from plain data.

    Parameters
    ----------
    values
        As ``dataclasses.asdict`` gives them.

    Returns
    -------
    ScamacConfig
        Checked anew.
    """

    def phase(fields: dict[str, Any]) -> PhaseConfig:
        return PhaseConfig(**{**fields, "terms": tuple(fields["terms"])})

    start = {**values["start"], "components": tuple(values["start"]["components"])}
    train = {
        **values["train"],
        "pretrain": phase(values["train"]["pretrain"]),
        "phases": tuple(phase(fields) for fields in values["train"]["phases"]),
    }
    return ScamacConfig(
        n_clusters=values["n_clusters"],
        seed=values["seed"],
        input=InputConfig(**values["input"]),
        model=ModelConfig(**{**values["model"], "scales": tuple(values["model"]["scales"])}),
        loss=LossConfig(**values["loss"]),
        start=StartConfig(**start),
        loader=LoaderConfig(**values["loader"]),
        train=TrainConfig(**train),
    )
