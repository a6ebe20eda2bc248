"""The recipe of a fit: its stages in order, each a function of the tools and the state.

Scale of the input -> correction of technical batches, where there are some -> start of the weights -> pretraining -> landmarks labelled -> rounds of (steps, exact sweep) -> one fuzzy
sweep. A fit can be stopped and resumed between two stages, and inside long ones. To add a stage, write its function and name it in
`recipe`. Everything random is keyed by the seed, everything summed over all cells is a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.config.choices import COUNT_LOSSES
from scamac_scale.errors import StoreError
from scamac_scale.ops.similarity import similarity_from_means
from scamac_scale.train.clusters.centers import landmark_clusters, tend_clusters
from scamac_scale.train.clusters.labels import label_landmarks
from scamac_scale.train.clusters.landmarks import find_landmarks
from scamac_scale.train.clusters.selection import choose_bank, sample_rows
from scamac_scale.train.clusters.targets import has_similarity
from scamac_scale.train.correction.fit import Cells, fit_correction, start_correction
from scamac_scale.train.start import WEIGHT_STARTS, fit_input_scale, principal_components, start_at_profile
from scamac_scale.train.state import PHASE, PRETRAINING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from scamac_scale.config import ScamacConfig
    from scamac_scale.loader.feed import Batch
    from scamac_scale.ops.fuzzy import Clusters
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource
    from scamac_scale.train.run.folder import RunFolder
    from scamac_scale.train.run.watch import Watch
    from scamac_scale.train.state import FitState
    from scamac_scale.train.stepper import Stepper
    from scamac_scale.train.sweeps import Sweeps

DONE = "done"
"""In place of the next stage: none is left."""


@dataclass(frozen=True)
class Tools:
    """What the stages work with; none of it changes while a fit goes on.

    Attributes
    ----------
    config
        Of the run.
    source
        N cells.
    world
        This rank, and how many there are.
    watch
        Saves and stops.
    stepper
        Takes gradient steps.
    sweeps
        Sums over all cells.
    run
        Its folder; None keeps nothing.
    """

    config: ScamacConfig
    source: OpenSource
    world: World
    watch: Watch
    stepper: Stepper
    sweeps: Sweeps
    run: RunFolder | None


class Stage(NamedTuple):
    """One step of the recipe.

    Attributes
    ----------
    name
        In checkpoints; no two are alike.
    work
        Moves the state on; what it does can be done again from its start.
    part
        Of the fit, for which its time counts.
    needs
        Fields of the state that must have been found.
    is_saved
        Whether a checkpoint is written after it, whatever the time: the first one shows at once whether there is room for the next.
    """

    name: str
    work: Callable[[Tools, FitState], None]
    part: str
    needs: tuple[str, ...] = ()
    is_saved: bool = False


def recipe(config: ScamacConfig, *, has_tech_batches: bool = False) -> list[Stage]:
    """List all stages of a fit, in order; those for technical batches where the cells have some."""
    found: tuple[str, ...] = "landmarks", "clusters"
    if has_similarity(config.loss, config.train):
        found = *found, "target"
    corrections = [
        Stage("components", find_components, "correction"),
        Stage("correction", correct_input, "correction"),
    ]
    stages = [
        Stage("gene moments", scale_input, "gene moments"),
        *(corrections if has_tech_batches and config.correction.acts_on != "none" else []),
        Stage("start", start_weights, "start", is_saved=True),
        Stage("pretraining", pretrain, "pretraining"),
        Stage("bank", renew_bank, "pretraining"),
        Stage("landmarks", find_clusters, "landmarks"),
    ]
    for index in range(config.train.rounds):
        stages.append(Stage(f"round {index + 1}", partial(take_round, index=index), "rounds", found))
        if index + 1 < config.train.rounds:  # the last sweep ends the last round
            stages.append(Stage(f"sweep {index + 1}", partial(end_round, index=index), "rounds", found))
    return [
        *stages,
        Stage("last freeze", freeze, "last sweep", found),
        Stage("last sweep", sweep_last, "last sweep", found),
    ]


def stages_left(stages: Sequence[Stage], state: FitState) -> Sequence[Stage]:
    """Give the stages that a state has not seen.

    Raises
    ------
    StoreError
        If the state stands before a stage that is not in the recipe, or lacks what the stage needs.
    """
    names = [stage.name for stage in stages]
    if state.stage == DONE:
        return []
    if not state.stage:
        return stages
    if state.stage not in names:
        raise StoreError(
            f"the checkpoint stands before the stage {state.stage!r}, which a fit of these settings does not have (it has "
            f"{', '.join(names)}); go on with the version that wrote it, or start a new run."
        )
    left = stages[names.index(state.stage) :]
    missing = [name for name in left[0].needs if getattr(state, name) is None]
    if missing:
        raise StoreError(
            f"the checkpoint stands before the stage {state.stage!r} and lacks its {' and '.join(missing)}; start a new run."
        )
    return left


# ---------------------------------------------------------------------- the stages


def scale_input(tools: Tools, state: FitState) -> None:
    """Set the gene means and the scale of the input."""
    with tools.watch.sweep("gene moments") as (in_flight, tick):
        config, source = tools.config.input, tools.source
        fit_input_scale(state.network, source, config, tools.world, in_flight=in_flight, tick=tick)


def find_components(tools: Tools, state: FitState) -> None:
    """Find the principal components in which technical batches are corrected."""
    config, network, source = tools.config, state.network, tools.source
    rows = sample_rows(source.n_cells, config.start.pca_cells, config.seed, "pca")
    with tools.watch.sweep("components of the input") as (_, tick):
        mean, axes = principal_components(network, source, config.correction.components, rows, tools.world, tick)
    network.correction = start_correction(mean, axes, config.correction.sigma).to(network.gene_mean.device)


def correct_input(tools: Tools, state: FitState) -> None:
    """Find what technical batches add to the input; from here on all see it without that."""
    config, network, source = tools.config, state.network, tools.source
    correction = network.correction
    assert correction is not None
    device = network.gene_mean.device

    def components(batch: Batch) -> torch.Tensor:
        return correction.components(network.scale_input(batch.values.to(device)))

    folder = tools.run.path if tools.run else None
    cells = Cells(source, components, len(correction.mean), device, folder)
    with tools.watch.sweep("correction") as (in_flight, tick):
        correction.keep(*fit_correction(cells, config.correction, config.seed, tools.world, in_flight, tick))


def start_weights(tools: Tools, state: FitState) -> None:
    """Set the first weights, and a first bank of random cells."""
    config, network, source, world = tools.config, state.network, tools.source, tools.world
    with tools.watch.sweep("principal components") as (_, tick):
        WEIGHT_STARTS[config.start.weights](network, source, config.start.pca_cells, config.seed, world, tick)
        if config.loss.reconstruction in COUNT_LOSSES:
            start_at_profile(network, source, config.start.pca_cells, config.seed, world, tick)
    network.start_attention(choose_bank(source, network, "random", config.seed, world).to(network.gene_mean.device))


def pretrain(tools: Tools, state: FitState) -> None:
    """Take the steps before the centers are found."""
    tools.stepper.take(state, PRETRAINING, tools.sweeps, label="pretraining")


def renew_bank(tools: Tools, state: FitState) -> None:
    """Choose the cells of the bank by their latents, where the config says so."""
    network, choice = state.network, tools.config.model.bank_choice
    if network.has_bank and choice != "random":
        network.refresh_bank()  # for the latents by which the cells are chosen
        network.bank_cells.copy_(choose_bank(tools.source, network, choice, tools.config.seed, tools.world))


def freeze(tools: Tools, state: FitState) -> None:
    """Renew the bank, and Eq. (11)'s product over all cells."""
    tools.sweeps.freeze("last freeze")


def find_clusters(tools: Tools, state: FitState) -> None:
    """Find and label the landmarks; then the clusters, the target of Eq. (15), its sums over all cells and its weight."""
    config, network, source, world = tools.config, state.network, tools.source, tools.world
    path = tools.run.code_path if tools.run else None
    groups = find_landmarks(source, network, config, world, tools.watch, path)
    state.target, state.pairs = label_landmarks(groups, network, config, world)
    state.landmarks = groups.landmarks
    state.clusters = landmark_clusters(state.landmarks, network, config.loss)
    state.weights["clustering"] = config.loss.clustering_weight
    if state.pairs is not None:
        tools.stepper.log({"similarity_atlas": float(similarity_from_means(state.pairs))}, state.step - 1)
    if state.target is not None:
        weight = config.loss.similarity_weight
        state.weights["similarity"] = tools.stepper.similarity_weight(state) if weight is None else weight


def take_round(tools: Tools, state: FitState, index: int) -> None:
    """Take the steps of one round, phase after phase."""
    train = tools.config.train
    if state.phase == state.phase_step == 0:
        state.pairs_step = state.step
    for number in range(state.phase, len(train.phases)):
        state.phase = number
        tools.stepper.take(state, f"{PHASE}{number}", tools.sweeps, label=f"round {index + 1}/{train.rounds}")
    state.phase = 0


def end_round(tools: Tools, state: FitState, index: int) -> None:
    """Renew the bank, the centers and what Eq. (15) needs of all cells, in one sweep."""
    config = tools.config
    state.network.refresh_bank()
    label = f"sweep {index + 1}/{config.train.rounds}"
    target = state.target if config.loss.similarity == "atlas" else None
    clusters, state.pairs = tools.sweeps.fuzzy(_first_clusters(tools, state), label=label, target=target)
    if state.pairs is not None:
        tools.stepper.log(
            {"similarity_atlas": float(similarity_from_means(state.pairs))}, state.step - 1
        )  # of the round
    state.clusters = _tended(tools, state, clusters)
    if state.clusters is not clusters:
        state.pairs = None  # the sums are of the clusters before


def sweep_last(tools: Tools, state: FitState) -> None:
    """Update the centers once more, and sum Eq. (15) over all pairs, with nothing moving any more."""
    start = _first_clusters(tools, state)
    clusters, state.last_pairs = tools.sweeps.fuzzy(start, label="last sweep", target=state.target, is_final=True)
    state.clusters = _tended(tools, state, clusters)


def _first_clusters(tools: Tools, state: FitState) -> Clusters:
    """Clusters that a sweep starts from."""
    assert state.landmarks is not None
    assert state.clusters is not None
    if tools.config.train.carries_centers:
        return state.clusters
    return landmark_clusters(state.landmarks, state.network, tools.config.loss)


def _tended(tools: Tools, state: FitState, clusters: Clusters) -> Clusters:
    assert state.landmarks is not None
    splits, seed = tools.config.train.splits_heaviest, tools.config.seed
    return tend_clusters(clusters, state.landmarks, state.network, splits_heaviest=splits, seed=seed)
