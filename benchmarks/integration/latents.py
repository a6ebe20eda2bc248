"""The methods: each gives a latent, labels of its own, or both, and tells what it took.

This program's forms are changes of its settings, by dotted names (`FORMS`): one more form is one more line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import baselines
import numpy as np
from record import Cost, measure

from integration.cells import SHUFFLED, BatchedCells

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from integration.children import Peers
    from scamac_scale.config import ScamacConfig

FORMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-bias": {"model.decoder_condition": "bias"},
    "ours-one_hot": {"model.decoder_condition": "one_hot"},
    "ours-embedding": {"model.decoder_condition": "embedding"},
    "ours-none": {"correction.acts_on": "none"},
    "ours-nokey": {"batch_key": None},
    "ours-shuffled": {"batch_key": SHUFFLED},
}
"""Changes of the default recipe, by which the batch key is the column of the set and the number of clusters is told."""

TITLES = {
    "ours": "scAMAC",
    "ours-bias": "scAMAC, bias",
    "ours-one_hot": "scAMAC, one-hot",
    "ours-embedding": "scAMAC, embedding",
    "ours-none": "scAMAC, not corrected",
    "ours-nokey": "scAMAC, no key",
    "ours-shuffled": "scAMAC, shuffled",
    "pca50": "PCA50",
    "pca50-corrected": "PCA50 + our correction",
    "pca50-harmony": "PCA50 + Harmony",
    "scvi": "scVI",
    "scvi-equal": "scVI, equal CPU",
    "bbknn-leiden": "BBKNN + Leiden",
}


@dataclass
class Found:
    """What a method gave.

    Attributes
    ----------
    latent
        (N, d), or None.
    labels
        (N,) of its own, or None.
    cost
        Everything from the raw values on.
    about
        What else is worth recording.
    """

    latent: NDArray[np.floating] | None
    labels: NDArray[np.int64] | None
    cost: Cost
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the methods are told.

    Attributes
    ----------
    peers
        Their environment.
    scvi_epochs
        Of `scvi`; None is its default.
    cpu_of_ours
        Set to CPU seconds of ours, for `scvi-equal`.
    """

    peers: Peers
    scvi_epochs: int | None = None
    cpu_of_ours: Callable[[str], float | None] = lambda name: None


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes
    ----------
    run
        (cells, seed, options) to what it gives.
    packages
        Of the peers' environment.
    settings
        Recorded beside the results.
    """

    run: Callable[[BatchedCells, int, Options], Found]
    packages: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def components_of(cells: BatchedCells) -> tuple[NDArray[np.float32], Cost]:
    """(N, 50) principal components without regard to batches."""
    adata, cost = cells.prepared()
    return np.asarray(adata.obsm["X_pca"], dtype=np.float32), cost


def run_pca(cells: BatchedCells, seed: int, options: Options) -> Found:
    """The components."""
    components, cost = components_of(cells)
    return Found(components, None, cost)


def run_corrected(cells: BatchedCells, seed: int, options: Options) -> Found:
    """The components, corrected as ours corrects its input: what is missing to ours is what the network adds."""
    from integration.run_correction import correct

    components, before = components_of(cells)
    with measure() as cost:
        found = correct(components, cells.batches, seed)
    return Found(found, None, before + cost)


def run_harmony(cells: BatchedCells, seed: int, options: Options) -> Found:
    """The components, corrected by Harmony."""
    components, before = components_of(cells)
    arrays = {"components": components, "batches": cells.batches}
    found, cost, about = options.peers.call("run_harmony", arrays, {"seed": seed})
    about |= {"own_seconds": round(cost.seconds, 3), "own_cpu_seconds": round(cost.cpu_seconds, 3)}
    return Found(found["latent"], None, before + cost, about)


def run_scvi(cells: BatchedCells, seed: int, options: Options, *, is_equal: bool = False) -> Found:
    """The latent of scVI on raw counts of the genes of the components."""
    counts = cells.counts()
    if baselines.value_kind(counts.data) != "counts":
        raise ValueError(f"{cells.name}: scVI needs counts, and X holds other values.")
    budget = options.cpu_of_ours(cells.name) if is_equal else None
    if is_equal and budget is None:
        raise ValueError(f"{cells.name}: no run of ours to take the CPU seconds from; run method ours first.")
    arrays = {
        "data": counts.data,
        "indices": counts.indices,
        "indptr": counts.indptr,
        "shape": np.array(counts.shape),
        "batches": cells.batches,
    }
    settings = {"seed": seed, "epochs": None if is_equal else options.scvi_epochs, "cpu_seconds": budget}
    found, cost, about = options.peers.call("run_scvi", arrays, settings)
    return Found(found["latent"], None, cost, about | {"cpu_budget_s": budget})


def run_bbknn(cells: BatchedCells, seed: int, options: Options) -> Found:
    """Labels of Leiden on the graph of BBKNN, at the resolution that gives K."""
    components, before = components_of(cells)
    low, high = baselines.TUNING_RANGE
    settings = {"seed": seed, "n_clusters": cells.n_types, "low": low, "high": high, "steps": baselines.TUNING_STEPS}
    arrays = {"components": components, "batches": cells.batches}
    found, cost, about = options.peers.call("run_bbknn", arrays, settings)
    return Found(None, found["labels"].astype(np.int64), before + cost, about)


def form_config(changes: dict[str, Any], column: str, n_clusters: int, seed: int) -> ScamacConfig:
    """The default recipe with the batch key, K told, and one of `FORMS`."""
    from scamac_scale.config import ScamacConfig, config_from_dict

    values = asdict(ScamacConfig(n_clusters=n_clusters, seed=seed, batch_key=column))
    for name, value in changes.items():
        *parts, last = name.split(".")
        place = values
        for part in parts:
            place = place[part]
        if last not in place:
            raise ValueError(f"no setting {name!r}")
        place[last] = value
    return config_from_dict(values)


def fit_ours(cells: BatchedCells, changes: dict[str, Any], seed: int) -> Any:
    """A fitted model of one of `FORMS`; cells in memory."""
    from scamac_scale import ScAMAC
    from scamac_scale.config import IngestConfig

    config = form_config(changes, cells.column, cells.n_types, seed)
    if config.batch_key == SHUFFLED:
        cells.shuffle(seed)
    return ScAMAC(config=config).fit(cells.adata, ingest=IngestConfig(batch_key=config.batch_key))


def predict_ours(model: Any, cells: BatchedCells) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Latent and labels of cells that a model of `fit_ours` knows or does not know."""
    found = model.predict(cells.adata)
    labels = found.obs["scamac_cluster"].cat.codes.to_numpy().astype(np.int64)
    return np.asarray(found.obsm["X_scAMAC"], dtype=np.float32), labels


def ours(changes: dict[str, Any]) -> Method:
    """One of `FORMS` as a method."""

    def run(cells: BatchedCells, seed: int, options: Options) -> Found:
        with measure() as cost:
            latent, labels = predict_ours(fit_ours(cells, changes, seed), cells)
        return Found(latent, labels, cost)

    return Method(run, settings={"changes": changes})


def warm_up(names: Sequence[str]) -> None:
    """Import and compile what these methods use here, on a few cells."""
    baselines.warm_up(256, has_graph=False)
    if any(name in FORMS for name in names):
        import anndata

        from scamac_scale import ScAMAC

        rng = np.random.default_rng(0)
        types = rng.gamma(0.5, 2.0, (3, 200))
        cells = anndata.AnnData(rng.poisson(types[np.arange(300) % 3]).astype(np.float32))
        ScAMAC(3, seed=0).fit(cells).predict(cells)


HARMONY = ("harmonypy",)
SCVI = {"genes": "raw counts of the genes of PCA50, chosen without batches", "settings": "defaults; batch_key; CPU"}

METHODS: dict[str, Method] = {
    **{name: ours(changes) for name, changes in FORMS.items()},
    "pca50": Method(run_pca, settings=baselines.PREPARATION),
    "pca50-corrected": Method(run_corrected, settings=baselines.PREPARATION),
    "pca50-harmony": Method(run_harmony, HARMONY, {**baselines.PREPARATION, "harmony": "defaults; random_state=seed"}),
    "scvi": Method(run_scvi, ("scvi-tools",), SCVI),
    "scvi-equal": Method(
        lambda cells, seed, options: run_scvi(cells, seed, options, is_equal=True),
        ("scvi-tools",),
        {**SCVI, "epochs": "as many as fit into the mean CPU seconds of ours on the set, by the time of one epoch"},
    ),
    "bbknn-leiden": Method(
        run_bbknn,
        ("bbknn", "scanpy", "igraph"),
        {
            **baselines.PREPARATION,
            "bbknn": "defaults",
            "resolution": f"bisected to the true K, {baselines.TUNING_STEPS} steps",
        },
    ),
}
"""By name, ours first. K is told to all; no labels are seen."""


def packages_of(names: Sequence[str]) -> list[str]:
    """Peers that some methods need, each once."""
    return list(dict.fromkeys(package for name in names for package in METHODS[name].packages))
