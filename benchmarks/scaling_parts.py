"""Parts of `scaling.py` on tensors alone: Eq. (15), Eq. (10), and attention over an atlas on disk.

Random inputs; no number depends on what they hold. Memory is what a call takes beyond its inputs, which all forms share.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from record import measure

from scamac_scale.infer.attention import KEY_BLOCK, QUERY_CELLS, READ_CELLS, AtlasAttention
from scamac_scale.losses.similarity import atlas_similarity, direct_similarity, gram_similarity
from scamac_scale.ops.attention import attention_parts, batch_attention, landmark_attention
from scamac_scale.ops.similarity import (
    Codes,
    gram_matrices,
    pair_means,
    similarity_from_means,
    unit_rows,
)
from scamac_scale.sweep import SWEEP_CELLS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    Call = Callable[[], Tensor]

CELLS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 100_000)
BATCHES = (256, 512, 1024, 2048, 4096, 8192)
ATTENTION_CELLS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
ATLAS_CELLS, ATLAS_QUERIES = 1_000_000, 10_000
WIDTH, N_CLUSTERS, N_SCALES, N_BANK = 32, 50, 3, 256
TILE_CELLS = 1024
BATCH_CELLS = 1024
MEMBER_SIZES = np.repeat([50, 30], [36, 12])
"""Clusters of the 48 members of a consensus of 50 clusters; the last twelve are those of Leiden."""
ROUND_S = 0.02
"""A call that takes less is repeated within a round."""


@dataclass(frozen=True)
class Limits:
    """How often a call is timed, and when a form has grown too large to be tried.

    Attributes
    ----------
    rounds
        Timed calls, after one that warms up and shows the memory.
    seconds, n_bytes
        Predicted time and memory of a call beyond which it is extrapolated.
    """

    rounds: int
    seconds: float
    n_bytes: float


def sizes_up_to(sizes: Sequence[int], largest: int | None) -> list[int]:
    """Those of the sizes that are no larger than asked for; half of it and all of it where that leaves less than two."""
    if largest is None:
        return list(sizes)
    kept = [size for size in sizes if size <= largest]
    return kept if len(kept) > 1 else [max(largest // 2, 1), largest]


def spread(values: Sequence[float], name: str = "seconds") -> dict[str, float]:
    """Median, best and worst."""
    return {name: statistics.median(values), f"{name}_best": min(values), f"{name}_worst": max(values)}


def fit_law(sizes: Sequence[int], values: Sequence[float], share: float = 0.5) -> dict[str, Any]:
    """Fit value = factor * size ** exponent by least squares on logarithms, over the larger `share` of the sizes."""
    n = min(max(2, math.ceil(share * len(sizes))), len(sizes))
    sizes, values = sizes[-n:], [max(value, 1e-9) for value in values[-n:]]
    if n < 2:
        return {"exponent": None, "factor": None, "fitted_to": list(sizes)}
    exponent, offset = np.polyfit(np.log(sizes), np.log(values), 1)
    return {"exponent": float(exponent), "factor": float(np.exp(offset)), "fitted_to": list(sizes)}


def from_law(law: dict[str, Any], size: int) -> float | None:
    """Value of a fitted law at a size."""
    return None if law["factor"] is None else law["factor"] * size ** law["exponent"]


def give_back() -> None:
    """Give free memory back to the system, so that what a call takes is seen."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def first_call(call: Call) -> tuple[float, int]:
    """Seconds of a call, and its bytes beyond the memory that is there before it."""
    give_back()
    with measure() as idle:
        pass
    with measure() as cost:
        call()
    seconds = cost.seconds
    if seconds < ROUND_S:  # too short to tell, and much of it the first touch of memory
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
    return seconds, max(cost.peak_bytes - idle.peak_bytes, 0)


def in_turns(calls: dict[str, Call], firsts: dict[str, float], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls in turns."""
    repeats = {name: max(1, round(ROUND_S / max(seconds, 1e-6))) for name, seconds in firsts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in firsts}
    for _ in range(rounds):
        for name, times in seconds.items():
            call = calls[name]
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times.append((time.perf_counter() - began) / repeats[name])
    return seconds


def grow(
    sizes: Sequence[int], make_calls: Callable[[int], dict[str, Call]], powers: dict[str, int], limits: Limits
) -> dict[str, Any]:
    """Time calls at growing sizes, each form as far as the limits allow, and by its fitted law beyond.

    Parameters
    ----------
    sizes
        Ascending.
    make_calls
        Size to a call for each form.
    powers
        Of the size by which time and memory of each form are expected to grow, at most.
    limits
        See `Limits`.

    Returns
    -------
    dict
        ``rows``, each with ``extrapolated``, and ``laws`` of each form.
    """
    rows: dict[str, list[dict[str, Any]]] = {form: [] for form in powers}
    for call in make_calls(sizes[0]).values():
        call()  # threads and buffers of the libraries
    for size in sizes:
        calls, firsts, found = make_calls(size), {}, {}
        for form, held in rows.items():
            if is_affordable(held, size, powers[form], limits):
                firsts[form], found[form] = first_call(calls[form])
        for form, times in in_turns(calls, firsts, limits.rounds).items():
            row = {"form": form, "size": size, **spread(times), "extra_bytes": found[form]}
            rows[form].append({**row, "rounds": len(times), "extrapolated": False})
    laws = {form: laws_of(held) for form, held in rows.items()}
    for form, held in rows.items():
        beyond = [size for size in sizes if not held or size > held[-1]["size"]]
        guessed = [{name: from_law(law, size) for name, law in laws[form].items()} for size in beyond]
        pairs = zip(beyond, guessed, strict=True)
        rows[form] += [{"form": form, "size": size, **guess, "extrapolated": True} for size, guess in pairs]
    return {"rows": [row for held in rows.values() for row in held], "laws": laws}


def is_affordable(held: Sequence[dict[str, Any]], size: int, power: int, limits: Limits) -> bool:
    """Whether a form that was measured at all smaller sizes may be tried at this one."""
    if not held:
        return True
    factor = (size / held[-1]["size"]) ** power
    return bool(factor * held[-1]["seconds"] <= limits.seconds and factor * held[-1]["extra_bytes"] <= limits.n_bytes)


def laws_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How time and memory of one form grow."""
    sizes = [row["size"] for row in rows]
    return {name: fit_law(sizes, [row[name] for row in rows]) for name in ("seconds", "extra_bytes")}


def disagreement(calls: dict[str, Call], exact: str) -> float:
    """Largest difference of the results from those of the form `exact`, over the largest of these."""
    wanted = calls[exact]().double().clone()
    differences = [float((call().double() - wanted).abs().max()) for call in calls.values()]
    return max(differences) / float(wanted.abs().max())


def random_cells(n_cells: int, *, is_consensus: bool = False) -> tuple[Tensor | Codes, Tensor]:
    """Memberships or codes of members, and a latent that wants a gradient."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n_cells, WIDTH, generator=generator).requires_grad_()
    if not is_consensus:
        return torch.softmax(3.0 * torch.randn(n_cells, N_CLUSTERS, generator=generator), dim=1), z
    offsets = np.concatenate([[0], np.cumsum(MEMBER_SIZES)[:-1]])
    columns = np.random.default_rng(0).integers(0, MEMBER_SIZES, (n_cells, len(MEMBER_SIZES))) + offsets
    values = torch.full((len(MEMBER_SIZES),), len(MEMBER_SIZES) ** -0.5)
    return Codes(torch.from_numpy(columns), values, int(MEMBER_SIZES.sum())), z


def slope(loss: Callable[[], Tensor], z: Tensor) -> Tensor:
    """Gradient of a loss in the latent."""
    z.grad = None
    loss().backward()
    assert z.grad is not None
    return z.grad


def gram_in_blocks(u: Tensor, z: Tensor) -> Tensor:
    """Eq. (15) over all pairs, from the Gram matrices of one block of cells after the other."""
    blocks = zip(u.split(SWEEP_CELLS), z.split(SWEEP_CELLS), strict=True)
    first, *others = (gram_matrices(unit_rows(u_block), unit_rows(z_block)) for u_block, z_block in blocks)
    for block in others:
        first = first + block
    return similarity_from_means(pair_means(first))


def tiles(u: Tensor, z: Tensor, *, has_gradient: bool) -> Tensor:
    """Eq. (15) over all pairs, tile by tile of the N x N differences: the value, or the gradient in the latent.

    Unit rows are made anew for each tile, which costs some percent, so that memory is that of a tile and of the result.
    """
    n_cells = len(z)
    blocks = list(zip(u.split(TILE_CELLS), z.detach().split(TILE_CELLS), strict=True))
    total, gradients = torch.zeros((), dtype=torch.float64), []
    for u_rows, z_rows in blocks:
        leaf = z_rows.clone().requires_grad_(has_gradient)
        z_hat, slopes = unit_rows(leaf), torch.zeros_like(z_rows)
        rows = torch.cat([z_hat.detach(), unit_rows(u_rows)], dim=1)
        for u_columns, z_columns in blocks:
            others = unit_rows(z_columns)
            # one product gives the difference of both similarities
            difference = rows @ torch.cat([others, -unit_rows(u_columns)], dim=1).T
            if has_gradient:
                slopes.addmm_(difference, others)
            else:
                total += torch.dot(difference.view(-1), difference.view(-1))
        if has_gradient:
            z_hat.backward(slopes * (4.0 / n_cells**2))
            gradients.append(leaf.grad)
    return torch.cat(gradients) if has_gradient else total / n_cells**2


def similarity_calls(n_cells: int, *, has_gradient: bool) -> dict[str, Call]:
    """Eq. (15) over all pairs of cells in three forms: the value, or the gradient in the latent."""
    u, z = random_cells(n_cells)
    assert isinstance(u, torch.Tensor)

    def result(loss: Callable[[], Tensor]) -> Tensor:
        if has_gradient:
            return slope(loss, z)
        with torch.no_grad():
            return loss()

    return {
        "direct": lambda: result(lambda: direct_similarity(u, z)),
        "blocks": lambda: tiles(u, z, has_gradient=has_gradient),
        "gram": lambda: result(lambda: gram_in_blocks(u, z)),
    }


def batch_calls(n_cells: int, *, is_consensus: bool) -> dict[str, Call]:
    """Losses of one gradient step, with their gradients."""
    u, z = random_cells(n_cells, is_consensus=is_consensus)
    with torch.no_grad():
        grams = gram_matrices(u if isinstance(u, Codes) else unit_rows(u), unit_rows(z))
        means = pair_means(grams, torch.ones((), dtype=torch.float64) if grams.uu is None else None)
    return {
        "direct": lambda: slope(lambda: direct_similarity(u, z), z),
        "gram": lambda: slope(lambda: gram_similarity(u, z), z),
        "atlas": lambda: slope(lambda: atlas_similarity(u, z, means), z),
    }


def similarity(largest: int | None, limits: Limits) -> dict[str, Any]:
    """Time and memory of Eq. (15): all pairs of N cells, and the cells of a batch."""
    sizes, batches = sizes_up_to(CELLS, largest), sizes_up_to(BATCHES, largest)
    powers = {"direct": 2, "blocks": 2, "gram": 1}
    found: dict[str, Any] = {"width": WIDTH, "n_clusters": N_CLUSTERS, "tile_cells": TILE_CELLS}
    found["member_clusters"] = int(MEMBER_SIZES.sum())
    for name, has_gradient in (("value", False), ("gradient", True)):

        def make(size: int, has_gradient: bool = has_gradient) -> dict[str, Call]:
            return similarity_calls(size, has_gradient=has_gradient)

        found[name] = grow(sizes, make, powers, limits)
        found[name]["disagreement"] = disagreement(make(sizes[0]), "direct")
    for name, is_consensus in (("batch, memberships", False), ("batch, consensus", True)):

        def make_batch(size: int, is_consensus: bool = is_consensus) -> dict[str, Call]:
            return batch_calls(size, is_consensus=is_consensus)

        found[name] = grow(batches, make_batch, {"direct": 2, "gram": 1, "atlas": 1}, limits)
        found[name]["disagreement"] = disagreement(make_batch(batches[0]), "direct")
    return found


def attention_calls(n_cells: int) -> dict[str, Call]:
    """Eq. (10) for all cells in four forms; results lie in memory that is there before."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(N_SCALES, n_cells, WIDTH, generator=generator) for _ in range(3))
    bank_k, bank_v = k[:, :N_BANK].clone(), v[:, :N_BANK].clone()
    out = torch.empty_like(q)

    def by_blocks(n_block: int, attend: Callable[[slice], Tensor]) -> Call:
        @torch.no_grad()
        def run() -> Tensor:
            for start in range(0, n_cells, n_block):
                block = slice(start, start + n_block)
                out[:, block] = attend(block)
            return out

        return run

    def atlas(block: slice) -> Tensor:
        parts = attention_parts(q[:, block], k[:, :0], v[:, :0])
        for start in range(0, n_cells, KEY_BLOCK):
            keys = slice(start, start + KEY_BLOCK)
            parts = parts + attention_parts(q[:, block], k[:, keys], v[:, keys])
        return parts.value()

    def landmark(block: slice) -> Tensor:
        return landmark_attention(q[:, block], bank_k, bank_v, k[:, block], v[:, block])

    return {
        "batch": by_blocks(BATCH_CELLS, lambda block: batch_attention(q[:, block], k[:, block], v[:, block])),
        "landmark": by_blocks(BATCH_CELLS, landmark),
        "atlas": by_blocks(QUERY_CELLS, atlas),
        "dense": by_blocks(n_cells, lambda block: landmark_attention(q, k, v)),
    }


def attention(largest: int | None, limits: Limits) -> dict[str, Any]:
    """Time and memory of Eq. (10) for all cells."""
    sizes = sizes_up_to(ATTENTION_CELLS, largest)
    found = grow(sizes, attention_calls, {"batch": 1, "landmark": 1, "atlas": 2, "dense": 2}, limits)
    calls = attention_calls(sizes[0])
    exact = {name: calls[name] for name in ("atlas", "dense")}
    return {
        "n_scales": N_SCALES,
        "width": WIDTH,
        "batch_cells": BATCH_CELLS,
        "n_bank": N_BANK,
        "query_cells": QUERY_CELLS,
        "key_block": KEY_BLOCK,
        **found,
        "disagreement": disagreement(exact, "dense"),
    }


def atlas(folder: Path, largest: int | None) -> dict[str, Any]:
    """Attention over an atlas on disk, by the very class that inference uses, for some of its queries.

    Every block of queries reads all keys, so the time of all queries is that of these in proportion. The page cache is warm.
    """
    n_cells = min(ATLAS_CELLS, largest or ATLAS_CELLS)
    n_queries = min(ATLAS_QUERIES, n_cells)
    network: Any = SimpleNamespace(  # what of a network is looked at
        has_synergy=True, mean_product=torch.zeros(N_SCALES, WIDTH, WIDTH), gene_mean=torch.zeros(1)
    )
    source: Any = SimpleNamespace(n_cells=n_cells)
    spooled = AtlasAttention(network, source, folder)
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    for start in range(0, n_cells, READ_CELLS):
        rows = np.arange(start, min(start + READ_CELLS, n_cells))
        spooled._keys.write(rows, normals(rng, len(rows), 2))
        spooled._queries.write(rows, normals(rng, len(rows), 1))
    written_s = time.perf_counter() - began
    n_bytes = sum(rows.n_bytes for rows in (spooled._keys, spooled._queries))  # no names
    spooled._attend(0, 0, min(KEY_BLOCK, n_queries))  # warms up; its result takes the place of these queries
    blocks = [(start, min(start + QUERY_CELLS, n_queries)) for start in range(0, n_queries, QUERY_CELLS)]
    seconds = []
    give_back()
    with measure() as idle:
        pass
    with measure() as cost:
        for start, stop in blocks:
            began = time.perf_counter()
            spooled._attend(0, start, stop)
            seconds.append(time.perf_counter() - began)
    assert np.isfinite(spooled.read(0, n_queries).numpy()).all()
    spooled.close()
    each = [took / (stop - start) for took, (start, stop) in zip(seconds, blocks, strict=True)]
    whole = {"n_queries": n_cells, "seconds": sum(seconds) * n_cells / n_queries, "extrapolated": n_cells > n_queries}
    return {
        "n_keys": n_cells,
        "n_queries": n_queries,
        "n_scales": N_SCALES,
        "width": WIDTH,
        "query_cells": QUERY_CELLS,
        "read_cells": READ_CELLS,
        "key_block": KEY_BLOCK,
        "page_cache": "warm",
        "disk_bytes": n_bytes,
        "disk_bytes_per_cell": n_bytes / n_cells,
        "drawn_and_written_s": written_s,
        "seconds": sum(seconds),
        **spread(each, "seconds_per_query"),
        "peak_bytes": cost.peak_bytes,
        "extra_bytes": max(cost.peak_bytes - idle.peak_bytes, 0),
        "extrapolated": False,
        "all_queries": whole,
    }


def normals(rng: np.random.Generator, n_rows: int, n_parts: int) -> NDArray[np.float32]:
    """Normal numbers for so many parts of a spooled row."""
    return rng.standard_normal((n_rows, n_parts * N_SCALES * WIDTH), dtype=np.float32)
