"""Harmony 2 with all of r in memory and a dense design matrix, in float64: slow, plain, and independent of the package."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(z: Array) -> Array:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


class Harmony:
    """z (N, d); phi (N, L) one-hot rows of all covariates side by side; counts, levels of each covariate; block of each cell."""

    def __init__(self, z: Array, phi: Array, counts: tuple[int, ...], block: NDArray[np.int64]) -> None:
        self.z, self.phi, self.counts, self.block = z, phi, counts, block
        self.sigma, self.theta, self.alpha, self.tolerance = 0.1, 2.0, 0.2, 1e-3
        self.share = phi.sum(axis=0) / len(z)

    def expected(self, r: Array) -> Array:
        return np.outer(r.sum(axis=0), self.share)  # (Q, L)

    def assign(self, zhat: Array, y: Array, phi: Array, observed: Array, expected: Array) -> Array:
        r = np.exp(-2 * (1 - zhat @ y.T) / self.sigma)
        factor = ((2 * expected + 1) / (observed + expected + 1)) ** self.theta  # (Q, L)
        for i in range(len(r)):
            for level in np.flatnonzero(phi[i]):
                r[i] *= factor[:, level]
        return r / r.sum(axis=1, keepdims=True)

    def value(self, zhat: Array, y: Array, r: Array) -> float:
        observed, expected = r.T @ self.phi, self.expected(r)
        spread = (r * 2 * (1 - zhat @ y.T)).sum()
        entropy = self.sigma * (r * np.log(r)).sum()
        diversity = self.sigma * self.theta * (observed * np.log((observed + expected + 1) / (2 * expected + 1))).sum()
        return float(spread + entropy + diversity)

    def ridge(self, r: Array) -> Array:
        """(Q, 1 + L, d) of a regression on a column of ones and phi; a level with next to none of its cells is left out."""
        observed, expected = r.T @ self.phi, self.expected(r)
        betas = np.zeros((r.shape[1], 1 + self.phi.shape[1], self.z.shape[1]))
        for q in range(r.shape[1]):
            kept = np.flatnonzero(observed[q] / self.phi.sum(axis=0) >= 1e-5)
            weights = r[:, q].copy()
            if len(self.counts) == 1:
                weights *= self.phi[:, kept].sum(axis=1)
            design = np.column_stack([np.ones(len(self.z)), self.phi[:, kept]])
            penalty = np.diag(np.concatenate([[0.0], self.alpha * expected[q, kept]]))
            found = np.linalg.solve(
                design.T @ (weights[:, None] * design) + penalty, design.T @ (weights[:, None] * self.z)
            )
            betas[q, np.concatenate([[0], 1 + kept])] = found
        return betas

    def run(self, y: Array, rounds: int, passes: int) -> Array:
        found = self.z.copy()
        zhat = unit(found)
        nothing = np.zeros((len(y), self.phi.shape[1]))
        r = self.assign(zhat, unit(y), self.phi, nothing, nothing)
        values: list[float] = []
        for _ in range(rounds):
            for _ in range(passes):
                y = unit(r.T @ zhat)
                new = r.copy()
                for block in range(20):
                    own = self.block == block
                    others = new.copy()
                    others[own] = 0
                    new[own] = self.assign(zhat[own], y, self.phi[own], others.T @ self.phi, self.expected(others))
                r = new
            y = unit(r.T @ zhat)
            r = self.assign(zhat, y, self.phi, r.T @ self.phi, self.expected(r))
            now = self.value(zhat, y, r)
            values.append(now)
            falls = [before - after < self.tolerance * abs(before) for before, after in pairwise(values)]
            if len(falls) >= 2 and all(falls[-2:]):
                break
            betas = self.ridge(r)
            found = self.z - sum(r[:, [q]] * (self.phi @ betas[q, 1:]) for q in range(r.shape[1]))
            zhat = unit(found)
            self.r, self.y, self.n_rounds = r, y, getattr(self, "n_rounds", 0) + 1
        self.corrected = found
        return found


def symphony(z: Array, phi: Array, y: Array, sizes: Array, sums: Array, sigma: float = 0.1) -> Array:
    """Corrected cells of unknown levels `phi` (n, L'), given centers y, N_q and C_q of a reference."""
    r = np.exp(-2 * (1 - unit(z) @ y.T) / sigma)
    r /= r.sum(axis=1, keepdims=True)
    design = np.column_stack([np.ones(len(z)), phi])
    found = z.copy()
    for q in range(len(y)):
        gram = design.T @ (r[:, [q]] * design) + np.diag(np.concatenate([[sizes[q]], np.ones(phi.shape[1])]))
        right = design.T @ (r[:, [q]] * z)
        right[0] += sums[q]
        found -= r[:, [q]] * (phi @ np.linalg.solve(gram, right)[1:])
    return found
