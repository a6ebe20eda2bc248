"""What the methods of benchmarks/imputation.py make of thinned counts: ours, baselines, ALRA here, MAGIC and scVI as peers, a prototype.

Every method takes the same counts (N, G) and gives expected counts (N, G) at the same depth. Those that work on logarithms
are brought back by expm1 and the total of each cell. MAGIC and scVI run in environments of their own, see
benchmarks/peers/install_denoising.sh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from record import Cost, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from integration.children import Peers
    from numpy.typing import NDArray
    from scipy import sparse

    from scamac_scale.config.choices import Reconstruction

ALRA = {"scale": 1e4, "values": 100, "noise_from": 80, "p_value": 1e-10, "power": 10, "quantile": 0.001}
"""As published: singular values looked at, from which on they are noise, how unlikely the gap after the last one that is
kept must be, power iterations of the randomised decomposition (2 of them where the rank is chosen)."""
PCA_RANKS = (1, 2, 3, 5, 8, 12, 16, 24, 32, 48)


class Denoised(NamedTuple):
    """What a method gives.

    Attributes
    ----------
    counts
        (N, G) expected counts, non-negative.
    cost
        Of the fit and the prediction; imports and compilers of a peer left out.
    about
        What it chose itself, versions.
    """

    counts: NDArray[np.floating]
    cost: Cost
    about: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a method may use.

    Attributes
    ----------
    counts
        (N, G) thinned counts of the genes that are scored, without stored zeros.
    seed
        Of every method.
    peers
        Environment by package.
    cpu_seconds
        That ours took; None until it has run.
    """

    counts: sparse.csr_matrix
    seed: int
    peers: dict[str, Peers]
    cpu_seconds: float | None = None

    @property
    def totals(self) -> NDArray[np.float64]:
        """(N, 1) counts of each cell."""
        return np.asarray(self.counts.sum(axis=1), dtype=np.float64).reshape(-1, 1)


def log_values(counts: sparse.csr_matrix, scale: float | None = None) -> tuple[NDArray[np.float64], float]:
    """Log-normalised counts (N, G) and the total they are scaled to; None takes the median total."""
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    scale = float(np.median(totals[totals > 0])) if scale is None else scale
    return np.log1p(counts.toarray().astype(np.float64) * (scale / np.maximum(totals, 1.0))), scale


def to_counts(values: NDArray[np.floating], totals: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Undo `log_values`."""
    return np.expm1(np.asarray(values, dtype=np.float64)) * (totals / scale)


def pca_reconstructions(values: NDArray[Any], ranks: Sequence[int]) -> list[NDArray[np.float64]]:
    """Exact PCA reconstructions (N, G) of these ranks, clamped at 0; rank 0 is the mean of each gene."""
    from scipy.linalg import eigh

    mean = values.mean(axis=0, dtype=np.float64)
    centered = values - mean
    n_genes = mean.size
    ends = [max(0, n_genes - max(ranks)), n_genes - 1]
    axes = eigh(centered.T @ centered, subset_by_index=ends)[1][:, ::-1]
    return [np.maximum(mean + centered @ axes[:, :rank] @ axes[:, :rank].T, 0.0) for rank in ranks]


def scamac(work: Work, reconstruction: Reconstruction = "mean") -> Denoised:
    """This program at its defaults, told nothing: `predict(denoised=True)`."""
    import anndata

    from scamac_scale import ScAMAC
    from scamac_scale.config import LossConfig, ScamacConfig

    with measure() as cost:
        cells = anndata.AnnData(work.counts.astype(np.float32))
        cells.var_names = [f"gene{column}" for column in range(cells.n_vars)]
        config = ScamacConfig(seed=work.seed, loss=LossConfig(reconstruction=reconstruction))
        model = ScAMAC(config=config).fit(cells)
        genes = model.fitted.genes
        if len(genes.chosen) != cells.n_vars or genes.target_sum is None:
            raise SystemExit(f"the model keeps {len(genes.chosen)} of {cells.n_vars} genes; all were expected.")
        found = model.predict(cells, denoised=True)[:, cells.var_names].layers["scamac_denoised"]
        counts = to_counts(found, work.totals, genes.target_sum)
    return Denoised(counts, cost, {"n_clusters": model.fitted.n_clusters})


def nothing(work: Work) -> Denoised:
    """The counts themselves."""
    return Denoised(work.counts.toarray().astype(np.float64), Cost(), {})


def gene_means(work: Work) -> Denoised:
    """Each gene's share of all counts times the total of the cell: one profile for all cells."""
    with measure() as cost:
        profile = np.asarray(work.counts.sum(axis=0), dtype=np.float64).reshape(1, -1)
        counts = work.totals * (profile / profile.sum())
    return Denoised(counts, cost, {})


def thin(
    counts: sparse.csr_matrix, share: float, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Deal the molecules out to two parts.

    Parameters
    ----------
    counts
        (N, G) whole numbers; not changed.
    share
        Chance of a molecule to come into the second part, 0 to 1.
    rng
        Draws.

    Returns
    -------
    csr_matrix, csr_matrix
        The parts, without stored zeros; they add up to the counts.
    """
    whole = counts.data.astype(np.int64)
    drawn = rng.binomial(whole, share)
    parts = []
    for values in (whole - drawn, drawn):
        part = counts.copy()
        part.data = values.astype(counts.dtype)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def pca(work: Work) -> Denoised:
    """PCA of the log values; its rank is the one with the least Poisson loss when the counts are thinned once more."""
    from scamac_scale.metrics.imputation import thinned_scores

    with measure() as cost:
        kept, test = thin(work.counts, 0.1, np.random.default_rng(work.seed))
        values, scale = log_values(kept)
        totals = np.asarray(kept.sum(axis=1), dtype=np.float64).reshape(-1, 1)
        ranks = [rank for rank in PCA_RANKS if rank < min(values.shape)]
        losses = [
            thinned_scores(test.toarray(), to_counts(found, totals, scale), float(totals.sum()))["poisson"]
            for found in pca_reconstructions(values, ranks)
        ]
        rank = ranks[int(np.argmin(losses))]
        values, scale = log_values(work.counts)
        counts = to_counts(pca_reconstructions(values, [rank])[0], work.totals, scale)
    return Denoised(counts, cost, {"rank": rank})


def alra_rank(values: NDArray[np.float64], seed: int) -> int:
    """Number of singular values before the last gap that those of the noise do not explain."""
    from scipy.stats import norm
    from sklearn.utils.extmath import randomized_svd

    n_values = min(ALRA["values"], min(values.shape) - 1)
    noise_from = min(ALRA["noise_from"], n_values - 20)
    singular = randomized_svd(values, int(n_values), n_iter=2, random_state=seed)[1]
    gaps = np.diff(singular)
    noise = gaps[int(noise_from) - 2 :]
    unlikely = norm.cdf(gaps, noise.mean(), noise.std(ddof=1)) < ALRA["p_value"]
    return int(np.flatnonzero(unlikely).max(initial=0)) + 1


def alra_values(values: NDArray[np.float64], rank: int, seed: int) -> NDArray[np.float64]:
    """Low rank, small values set to 0, nonzero ones of each gene brought to the mean and deviation they had; (N, G).

    Parameters
    ----------
    values
        (N, G) log values.
    rank
        Of the decomposition, which is not centered.
    seed
        Of the randomised decomposition.

    References
    ----------
    G. Linderman et al., Zero-preserving imputation of single-cell RNA-seq data, Nature Communications 13, 192, 2022.
    """
    from sklearn.utils.extmath import randomized_svd

    left, singular, right = randomized_svd(values, rank, n_iter=int(ALRA["power"]), random_state=seed)
    low = (left * singular) @ right
    low[low <= np.abs(np.quantile(low, ALRA["quantile"], axis=0))] = 0
    mean, deviation = _nonzero_moments(values)
    own_mean, own_deviation = _nonzero_moments(low)
    can_scale = np.isfinite(deviation) & np.isfinite(own_deviation) & (own_deviation > 0)
    factor = np.where(can_scale, deviation / np.where(can_scale, own_deviation, 1.0), 1.0)
    shift = np.where(can_scale, mean - own_mean * factor, 0.0)
    found: NDArray[np.float64] = np.maximum(np.where(low != 0, low * factor + shift, 0.0), 0.0)
    return np.where((values > 0) & (found == 0), values, found)


def _nonzero_moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Mean and standard deviation (n - 1) of the nonzeros of each column; NaN where they are fewer than two.
    number = (values != 0).sum(axis=0).astype(np.float64)
    number[number < 2] = np.nan
    mean = values.sum(axis=0) / number
    spread = ((values - mean) ** 2 * (values != 0)).sum(axis=0)
    return mean, np.sqrt(spread / (number - 1))


def alra(work: Work) -> Denoised:
    """ALRA as published."""
    with measure() as cost:
        values, scale = log_values(work.counts, ALRA["scale"])
        rank = alra_rank(values, work.seed)
        counts = to_counts(alra_values(values, rank, work.seed), work.totals, scale)
    return Denoised(counts, cost, {"rank": rank})


def _call(work: Work, package: str, script: str, settings: dict[str, Any]) -> Denoised:
    csr = work.counts.astype(np.float32)
    arrays = {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr, "shape": np.array(csr.shape)}
    arrays["batches"] = np.zeros(csr.shape[0], dtype="U1")
    found, cost, about = work.peers[package].call(script, arrays, {"seed": work.seed, **settings})
    return Denoised(found["denoised"].astype(np.float64), cost, about)


def magic(work: Work) -> Denoised:
    """MAGIC of the square roots of the shares, as Open Problems runs it."""
    return _call(work, "magic-impute", "run_magic", {"t": 3, "decay": 1})


def scvi_equal(work: Work) -> Denoised:
    """scVI's profiles times the totals of the cells; as many epochs as fit into the CPU seconds that ours took."""
    return _call(work, "scvi-tools", "run_scvi", {"is_denoised": True, "cpu_seconds": work.cpu_seconds})


def scvi(work: Work) -> Denoised:
    """The same with scVI's own number of epochs, up to 400."""
    return _call(work, "scvi-tools", "run_scvi", {"is_denoised": True})


def scamac_poisson(work: Work) -> Denoised:
    """This program with ``loss.reconstruction=poisson``, and else at its defaults."""
    return scamac(work, "poisson")


def nb_prototype(work: Work) -> Denoised:
    """counts.py, negative binomial with a dispersion per gene; at most the CPU seconds that ours took."""
    from counts import denoise  # it imports this module

    return denoise(work)


DENOISERS: dict[str, Callable[[Work], Denoised]] = {
    "scamac": scamac,
    "scamac-poisson": scamac_poisson,
    "none": nothing,
    "gene-mean": gene_means,
    "pca": pca,
    "alra": alra,
    "magic": magic,
    "scvi-equal": scvi_equal,
    "scvi": scvi,
    "prototype-nb": nb_prototype,
}
"""Ours is the first: the time that it takes is a budget of others."""
PACKAGES = {"magic": "magic-impute", "scvi-equal": "scvi-tools", "scvi": "scvi-tools"}
"""What a peer needs in its environment."""
TITLES = {
    "scamac": "scAMAC, squared error",
    "scamac-poisson": "scAMAC, Poisson",
    "none": "no denoising",
    "gene-mean": "gene mean",
    "pca": "PCA, rank by thinning",
    "alra": "ALRA",
    "magic": "MAGIC",
    "scvi-equal": "scVI, CPU time of ours",
    "scvi": "scVI, its own epochs",
    "prototype-nb": "prototype, negative binomial",
}
