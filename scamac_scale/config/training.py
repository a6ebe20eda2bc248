"""Settings of the fit: how it begins, its phases, rounds and devices."""

from __future__ import annotations

from dataclasses import dataclass, field

from scamac_scale.config.choices import (
    Accelerator,
    CenterStart,
    Optimizer,
    Precision,
    Schedule,
    Selection,
    Sums,
    Term,
    WeightStart,
    check_names,
    require,
)


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One stretch of gradient steps."""

    terms: tuple[Term, ...] = ("reconstruction", "layers")
    """Terms of the objective: reconstruction and layers (the two of Eq. 5), similarity (Eq. 15), clustering (Eq.
    12)."""
    steps: int = 100
    """Length of the phase in gradient steps, whatever the number of cells; of no use where epochs is given."""
    epochs: float | None = None
    """Length of the phase in passes over the cells instead; null takes steps."""
    min_steps: int = 0
    """Least number of gradient steps where epochs is given, however few the cells."""
    max_steps: int | None = None
    """Largest number of gradient steps where epochs is given, however many the cells; null sets no limit."""
    optimizer: Optimizer = "adamw"
    """Rule of the gradient steps: adamw (Adam with decoupled weight decay), adam or sgd."""
    learning_rate: float | None = None
    """Step size; null takes 1e-3 at 256 cells a batch, growing with the batch."""
    schedule: Schedule = "constant"
    """Course of the learning rate: constant, or cosine (falls to zero at the last step of the last round)."""
    is_noisy: bool = True
    """Whether uniform noise is added to the input, or molecules are held out of it where loss.reconstruction is poisson."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self)
        require(self.steps >= 0, f"steps={self.steps}; it must not be negative.")
        require(self.epochs is None or self.epochs >= 0, f"epochs={self.epochs}; it must not be negative, or null.")
        require(
            self.epochs is not None or (self.min_steps == 0 and self.max_steps is None),
            f"min_steps={self.min_steps} and max_steps={self.max_steps} bound a length in epochs, but epochs is null; set steps instead, or "
            "epochs.",
        )
        require(
            self.max_steps is None or self.max_steps >= self.min_steps,
            f"max_steps={self.max_steps} lies below min_steps={self.min_steps}.",
        )
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"learning_rate={self.learning_rate}; it must be positive, or null for the default.",
        )


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """How the weights and the centers begin."""

    weights: WeightStart = "pca"
    """First weights: pca (the linear autoencoder of the principal components), kaiming (random) or identity (as the
    published code)."""
    pca_cells: int = 100_000
    """Number of cells from which the principal components are taken; a random sample where the atlas has more."""
    centers: CenterStart = "consensus"
    """How the first centers are found on the landmarks: consensus (of several clusterings), ward, kmeans,
    faiss_kmeans (needs the extra cpu or gpu) or random."""
    landmark_cells: int = 1000
    """Least number of landmarks, groups of like cells on which the centers are found; more for many cells (four for each
    square root of a cell, at most 8,000) and for many clusters (ten for each)."""
    landmark_choice: Selection = "kmeans"
    """How the centers of the landmarks are found on a sample of latents: kmeans or random (cells of the sample)."""
    components: tuple[int, ...] = (10, 20, 40)
    """Numbers of principal components, one for each space in which the members of the consensus cluster."""
    cut_height: float | None = None
    """Height at which a first consensus tree is cut when the number of clusters is not given, 0 to 1; null takes the number on which
    clusterings agree and whose clusters lie apart."""
    finds_rare: bool = False
    """Whether small groups of landmarks with a gap around them are clusters of their own, at most 2 % of the cells each: some of a
    number of clusters that is given, more than one that is not. An experiment: tried on two atlases only."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "start.")
        require(self.landmark_cells >= 2, f"start.landmark_cells={self.landmark_cells}; it must be at least 2.")
        require(self.pca_cells >= 2, f"start.pca_cells={self.pca_cells}; it must be at least 2.")
        require(len(self.components) > 0, "start.components is empty; name at least one number.")
        require(min(self.components) >= 1, f"start.components={self.components}; each must be at least 1.")
        height = self.cut_height
        require(height is None or 0 < height < 1, f"start.cut_height={height}; it lies between 0 and 1, or is null.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: batches, rounds, devices."""

    batch_cells: int | None = None
    """Cells in a global batch; null takes 256 up to 5,000 cells, then more with the root of their number, 1,024 from 80,000
    on."""
    pretrain: PhaseConfig = field(default_factory=PhaseConfig)
    """Gradient steps before the centers are found."""
    rounds: int = 2
    """Number of rounds, each of which takes the phases and then an exact sweep over all cells."""
    phases: tuple[PhaseConfig, ...] = field(
        default_factory=lambda: (
            PhaseConfig(terms=("reconstruction", "layers", "similarity", "clustering"), steps=100, schedule="cosine"),
        )
    )
    """The phases of one round, in order."""
    carries_centers: bool = False
    """Whether the swept centers are carried from round to round to the end; otherwise they restart from the
    landmarks."""
    splits_heaviest: bool = False
    """Whether a cluster that a sweep leaves empty takes half of the heaviest one; otherwise it keeps its center."""
    accelerator: Accelerator = "auto"
    """Device of the fit: cpu, cuda, or auto (cuda where there is one)."""
    precision: Precision = "auto"
    """Precision of the wide layers: 32-true (float32), bf16-mixed (bfloat16) or auto (bfloat16 where the device has
    it)."""
    sums: Sums = "blocks"
    """How gradients are summed: blocks (of the global batch, by a fixed tree: the same bits on 1, 2, 4 or 8 processes)
    or ranks (each process takes its share at once: faster at small batches, rounded otherwise on another number of
    processes)."""
    checkpoint_every_s: float = 300.0
    """Seconds between two checkpoints."""
    checkpoint_every_steps: int | None = None
    """Gradient steps between two checkpoints, if that is sooner than train.checkpoint_every_s; null leaves it to the
    time."""
    timeout_s: float = 60.0
    """Seconds that processes wait for one another in steps and sweeps."""
    setup_timeout_s: float = 1800.0
    """Seconds that processes wait for one another at the start, and while one of them finds the clusters or saves."""
    log_every_s: float = 10.0
    """Seconds between plain progress lines where there is no terminal."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_names(self, "train.")
        require(
            self.batch_cells is None or self.batch_cells >= 1,
            f"train.batch_cells={self.batch_cells}; it must be at least 1, or null for the default.",
        )
        require(self.rounds >= 0, f"train.rounds={self.rounds}; it must not be negative.")
        for name in ("checkpoint_every_s", "checkpoint_every_steps", "timeout_s", "setup_timeout_s"):
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name}={value}; it must be positive.")
