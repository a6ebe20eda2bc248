"""What cannot be fitted is refused here, before anything is read or written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from scamac_scale.config.choices import COUNT_LOSSES
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.loader.plan import LANES
from scamac_scale.ops.attention import BANK_FORMS
from scamac_scale.train.clusters.landmarks import landmark_count
from scamac_scale.train.clusters.selection import import_faiss
from scamac_scale.train.clusters.targets import has_similarity
from scamac_scale.train.objective import TERMS
from scamac_scale.train.schedule import batch_cells_for
from scamac_scale.train.start import check_pca_start

if TYPE_CHECKING:
    from scamac_scale.config import PhaseConfig, ScamacConfig, TrainConfig
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)

MIN_CELLS = 10
MIN_RANK_CELLS = 32
MAX_CONSENSUS_LANDMARKS = 10_000


def check_settings(config: ScamacConfig) -> None:
    """Refuse settings that are at odds with one another or with this machine.

    Parameters
    ----------
    config
        Of the run.

    Raises
    ------
    ConfigError
        Names the key, what came, and what to do.
    MissingExtraError
        If a setting needs a package that is not installed.
    """
    _check_terms(config.train.pretrain, "train.pretrain")
    for index, phase in enumerate(config.train.phases):
        _check_terms(phase, f"train.phases[{index}]")
        if config.loss.similarity == "off" and set(phase.terms) == {"similarity"}:
            raise ConfigError(
                f"train.phases[{index}] has no term but similarity, and loss.similarity='off'; remove the phase or name others."
            )
    _check_count_settings(config)
    if config.start.weights == "pca":
        check_pca_start(config.model)
    if config.n_clusters == "auto" and config.start.centers != "consensus":
        raise ConfigError(
            f"start.centers={config.start.centers!r} needs a number of clusters; set n_clusters, or use 'consensus'."
        )
    has_bank = config.model.has_synergy and config.model.spatial_form in BANK_FORMS
    if config.start.centers == "faiss_kmeans" or (has_bank and config.model.bank_choice == "kmeans"):
        import_faiss()
    if config.train.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.accelerator='cuda', but torch sees no CUDA device here; set it to 'cpu' or 'auto'.")


def check_counts(source: OpenSource, config: ScamacConfig) -> None:
    """Refuse a count likelihood where there are no counts, or where the decoder cannot know what is in them.

    Parameters
    ----------
    source
        N cells.
    config
        Of the run.

    Raises
    ------
    InputError, ConfigError
        If so.
    """
    if config.loss.reconstruction not in COUNT_LOSSES:
        return
    kind = source.gene_space.kind
    if kind != "counts":
        raise InputError(
            f"loss.reconstruction={config.loss.reconstruction!r} needs counts, and the values of this input are {kind!r}; name the "
            "matrix of raw counts (ingest.matrix), or take loss.reconstruction='mean'."
        )
    if source.tech_batches is not None:
        _check_decoder(config)


def _check_count_settings(config: ScamacConfig) -> None:
    """Refuse what a count likelihood cannot be fitted with, as far as the settings alone tell."""
    form = config.loss.reconstruction
    if form not in COUNT_LOSSES:
        return
    if config.model.output_activation != "linear":
        raise ConfigError(
            f"loss.reconstruction={form!r} needs a linear output; got model.output_activation="
            f"{config.model.output_activation!r}. Set it to 'linear'."
        )
    phases = (config.train.pretrain, *config.train.phases)
    if not any("reconstruction" in phase.terms for phase in phases):
        raise ConfigError(
            f"loss.reconstruction={form!r}, but no phase has the term reconstruction: the profile of every cell would stay the mean one. "
            "Name the term in train.pretrain.terms."
        )
    if config.batch_key not in (None, "none"):
        _check_decoder(config)


def warn_of_unused(config: ScamacConfig) -> None:
    """Say which settings that were changed have no effect beside the others."""
    given, default, form = config.input, type(config.input)(), config.loss.reconstruction
    if form not in COUNT_LOSSES:
        if given.target_share != default.target_share:
            logger.warning("input.target_share has no effect with loss.reconstruction=%s: nothing is held out", form)
    elif (given.noise_low, given.noise_high) != (default.noise_low, default.noise_high):
        logger.warning(
            "input.noise_low and input.noise_high have no effect with loss.reconstruction=%s: molecules are held out instead",
            form,
        )


def _check_decoder(config: ScamacConfig) -> None:
    if config.correction.acts_on != "none" and config.model.decoder_condition == "none":
        raise ConfigError(
            f"loss.reconstruction={config.loss.reconstruction!r} reconstructs counts, which hold the technical batches that the input has "
            "been freed of; tell the decoder of them: model.decoder_condition=bias."
        )


def _check_terms(phase: PhaseConfig, where: str) -> None:
    if not phase.terms:
        raise ConfigError(f"{where}.terms is empty; name at least one of {', '.join(TERMS)}.")


def check_size(n_cells: int, config: ScamacConfig) -> None:
    """Refuse too few cells, more clusters than cells, and more landmarks than a consensus can take.

    Parameters
    ----------
    n_cells
        N.
    config
        Of the run.

    Raises
    ------
    InputError, ConfigError
        If so.
    """
    if n_cells < MIN_CELLS:
        raise InputError(f"the input has {n_cells} cells; at least {MIN_CELLS} are needed.")
    if isinstance(config.n_clusters, int) and config.n_clusters > n_cells:
        raise ConfigError(
            f"n_clusters={config.n_clusters} exceeds the number of cells, {n_cells}; ask for fewer clusters."
        )
    n_landmarks = landmark_count(n_cells, config.start, config.n_clusters)
    needs_members = config.loss.similarity_target == "consensus" and has_similarity(config.loss, config.train)
    if n_landmarks > MAX_CONSENSUS_LANDMARKS and (config.start.centers == "consensus" or needs_members):
        raise ConfigError(
            f"n_clusters={config.n_clusters} and start.landmark_cells={config.start.landmark_cells} make {n_landmarks} landmarks, "
            f"more than the {MAX_CONSENSUS_LANDMARKS} of which the consensus can compare all pairs; lower them, or set "
            "start.centers='faiss_kmeans' and loss.similarity_target='membership'."
        )


def check_ranks(n_cells: int, train: TrainConfig, world: World, *, has_folder: bool) -> None:
    """Refuse more processes than a batch has work for.

    Parameters
    ----------
    n_cells
        N.
    train
        Of the run.
    world
        This rank, and how many there are.
    has_folder
        Whether the run has a folder.

    Raises
    ------
    ConfigError
        If a process would have fewer than `MIN_RANK_CELLS` cells of a batch, or several have no folder to meet in.
    """
    if world.size == 1:
        return
    if not has_folder:
        raise ConfigError(f"{world.size} processes need a run folder that all of them see; name one.")
    batch_cells = min(train.batch_cells or batch_cells_for(n_cells), n_cells)
    if batch_cells < MIN_RANK_CELLS * world.size:
        raise ConfigError(
            f"a batch of {batch_cells} cells is too small for {world.size} processes: each needs at least {MIN_RANK_CELLS}. Start at most "
            f"{max(1, batch_cells // MIN_RANK_CELLS)}, or set train.batch_cells to {MIN_RANK_CELLS * world.size} or more."
        )
    if world.size > LANES:
        raise ConfigError(
            f"{world.size} processes are more than the {LANES} that can share the cells of a batch; start fewer."
        )
