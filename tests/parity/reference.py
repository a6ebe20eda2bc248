"""The equations of the paper, typed as loops over scalars in float64: slow, plain, and independent of the package.

Every function follows the printed formula in the reading that its comment names. Arrays are NumPy; scales are the first axis.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def leaky_relu(x: float, slope: float) -> float:
    return x if x > 0 else slope * x


def identity(x: float, slope: float) -> float:
    return x


ACTIVATIONS = {"leaky_relu": leaky_relu, "linear": identity}


def dense(x: Array, weight: Array, bias: Array, activation: str = "linear", slope: float = 0.01) -> Array:
    """phi(w x + b), Eqs. (1) to (4), (6), (7): one cell, one unit, one input at a time."""
    phi = ACTIVATIONS[activation]
    out = np.zeros((len(x), len(weight)))
    for i in range(len(x)):
        for j in range(len(weight)):
            total = bias[j]
            for g in range(x.shape[1]):
                total += weight[j, g] * x[i, g]
            out[i, j] = phi(total, slope)
    return out


def squared_error_per_cell(a: Array, b: Array) -> float:
    """sum_i (a_i - b_i)^2 / n with vectors a_i, b_i: a term of Eq. (5) as printed."""
    total = 0.0
    for i in range(len(a)):
        for g in range(a.shape[1]):
            total += (a[i, g] - b[i, g]) ** 2
    return total / len(a)


def poisson_deviance(counts: Array, output: Array) -> float:
    """Mean over entries of 2 (y log(y / m) - y + m), m = the cell's total times the softmax of its output."""
    total = 0.0
    for y, logits in zip(counts, output, strict=True):
        expected = softmax(logits) * sum(float(value) for value in y)
        for seen, mean in zip(y, expected, strict=True):
            total += 2 * ((float(seen) * math.log(seen / mean) if seen else 0.0) - float(seen) + float(mean))
    return total / counts.size


def layer_norm(x: Array, weight: Array, bias: Array, floor: float = 1e-5) -> Array:
    """Each row minus its mean over its (population) standard deviation."""
    out = np.zeros_like(x)
    for i in range(len(x)):
        mean = sum(x[i]) / len(x[i])
        variance = sum((value - mean) ** 2 for value in x[i]) / len(x[i])
        for d in range(x.shape[1]):
            out[i, d] = (x[i, d] - mean) / math.sqrt(variance + floor) * weight[d] + bias[d]
    return out


def softmax(scores: Array) -> Array:
    exponentials = [math.exp(score) for score in scores]
    return np.array([value / sum(exponentials) for value in exponentials])


def dot(a: Array, b: Array) -> float:
    total = 0.0
    for left, right in zip(a, b, strict=True):
        total += left * right
    return total


def spatial_attention(q: Array, k: Array, v: Array, own_k: Array | None = None, own_v: Array | None = None) -> Array:
    """softmax(Q K^T / sqrt(d)) V, Eq. (10), of one scale; with own_k, own_v the cell itself is one more key."""
    out = np.zeros_like(q)
    for i in range(len(q)):
        keys, values = list(k), list(v)
        if own_k is not None and own_v is not None:
            keys.append(own_k[i])
            values.append(own_v[i])
        weights = softmax(np.array([dot(q[i], key) / math.sqrt(q.shape[1]) for key in keys]))
        for weight, value in zip(weights, values, strict=True):
            for d in range(q.shape[1]):
                out[i, d] += weight * value[d]
    return out


def channel_product(q: Array, k: Array) -> Array:
    """Q^T K of one scale, summed cell by cell."""
    product = np.zeros((q.shape[1], q.shape[1]))
    for i in range(len(q)):
        for a in range(q.shape[1]):
            for b in range(q.shape[1]):
                product[a, b] += q[i, a] * k[i, b]
    return product


def channel_attention(v: Array, product: Array) -> Array:
    """V softmax(Q^T K / sqrt(d)), Eq. (11), of one scale; the softmax runs down each column of the product."""
    width = v.shape[1]
    out = np.zeros_like(v)
    for b in range(width):
        weights = softmax(np.array([product[a, b] / math.sqrt(width) for a in range(width)]))
        for i in range(len(v)):
            out[i, b] = dot(v[i], weights)
    return out


def gate(synergy: Array, kernel: Array) -> Array:
    """Figure 3, (S, B): average over D, convolution over the scales with zeros beyond the ends, sigmoid."""
    n_scales, n_cells, width = synergy.shape
    reach = len(kernel) // 2
    out = np.zeros((n_scales, n_cells))
    for i in range(n_cells):
        pooled = [sum(synergy[s, i]) / width for s in range(n_scales)]
        for s in range(n_scales):
            total = 0.0
            for t, weight in enumerate(kernel):
                if 0 <= s + t - reach < n_scales:
                    total += weight * pooled[s + t - reach]
            out[s, i] = 1 / (1 + math.exp(-total))
    return out


def distance(a: Array, b: Array) -> float:
    return math.sqrt(sum((left - right) ** 2 for left, right in zip(a, b, strict=True)))


def adaptive_distance(z: Array, c: Array, epsilon: float) -> Array:
    """||Z_i - C_j||_epsilon under Eq. (14), epsilon outside the root as the printed limits demand."""
    out = np.zeros((len(z), len(c)))
    for i in range(len(z)):
        for j in range(len(c)):
            r = distance(z[i], c[j])
            out[i, j] = (1 + epsilon) * r**2 / (r + epsilon)
    return out


def robust_weight(z: Array, c: Array, epsilon: float) -> Array:
    """H_ij under Eq. (12), epsilon outside the root."""
    out = np.zeros((len(z), len(c)))
    for i in range(len(z)):
        for j in range(len(c)):
            r = distance(z[i], c[j])
            out[i, j] = (1 + epsilon) * (r + 2 * epsilon) / (r + epsilon) ** 2
    return out


def membership(d: Array, temperature: float = 1.0) -> Array:
    """u_ij, Eq. (14), from adaptive distances."""
    out = np.zeros_like(d)
    for i in range(len(d)):
        denominator = sum(math.exp(-d[i, j] / temperature) for j in range(d.shape[1]))
        for j in range(d.shape[1]):
            out[i, j] = math.exp(-d[i, j] / temperature) / denominator
    return out


def centers(z: Array, u: Array, h: Array) -> Array:
    """C_j, Eq. (13)."""
    out = np.zeros((u.shape[1], z.shape[1]))
    for j in range(u.shape[1]):
        denominator = sum(h[i, j] * u[i, j] for i in range(len(z)))
        for d in range(z.shape[1]):
            out[j, d] = sum(h[i, j] * u[i, j] * z[i, d] for i in range(len(z))) / denominator
    return out


def clustering_loss(z: Array, c: Array, u: Array, h: Array) -> float:
    """Eq. (12)."""
    total = 0.0
    for i in range(len(z)):
        for j in range(len(c)):
            total += h[i, j] * u[i, j] * distance(z[i], c[j]) ** 2
    return total


def unit(x: Array) -> Array:
    length = math.sqrt(dot(x, x))
    return x / length if length > 0 else np.zeros_like(x)


def similarity_loss(u: Array, z: Array) -> float:
    """Eq. (15) as printed: over all pairs, divided by n."""
    total = 0.0
    for i in range(len(u)):
        for j in range(len(u)):
            total += (dot(unit(u[i]), unit(u[j])) - dot(unit(z[i]), unit(z[j]))) ** 2
    return total / len(u)


def mutual_information_score(labels: list[int], clusters: list[int]) -> float:
    """NMI, Eqs. (16) and (17)."""
    n = len(labels)

    def entropy(values: list[int]) -> float:
        return -sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values))

    shared = 0.0
    for a in set(clusters):
        for b in set(labels):
            both = sum(1 for x, y in zip(clusters, labels, strict=True) if x == a and y == b)
            if both:
                shared += both / n * math.log(n * both / (clusters.count(a) * labels.count(b)))
    return 2 * shared / (entropy(labels) + entropy(clusters))


def rand_score(labels: list[int], clusters: list[int]) -> float:
    """ARI, Eq. (18), with the sum in the denominator that the print lost (it has the product twice)."""
    both = sum(
        math.comb(sum(1 for x, y in zip(clusters, labels, strict=True) if x == a and y == b), 2)
        for a in set(clusters)
        for b in set(labels)
    )
    first = sum(math.comb(clusters.count(a), 2) for a in set(clusters))
    second = sum(math.comb(labels.count(b), 2) for b in set(labels))
    expected = first * second / math.comb(len(labels), 2)
    return (both - expected) / ((first + second) / 2 - expected)


def poisson_loss(test: Array, denoised: Array, kept_total: float) -> float:
    """Mean over all entries of expected - count log(expected + 1e-6), expected counts scaled to the total of the test."""
    scale, total = float(test.sum()) / kept_total, 0.0
    for i in range(test.shape[0]):
        for g in range(test.shape[1]):
            expected = float(denoised[i, g]) * scale
            total += expected - float(test[i, g]) * math.log(expected + 1e-6)
    return total / test.size


def log_error(test: Array, denoised: Array) -> float:
    """Mean squared difference of log(1 + counts per 10,000 of the cell); a cell of no counts keeps its zeros."""
    total = 0.0
    for i in range(test.shape[0]):
        true_sum, guess_sum = sum(float(x) for x in test[i]) or 1.0, sum(float(x) for x in denoised[i]) or 1.0
        for g in range(test.shape[1]):
            true = math.log(1 + float(test[i, g]) / true_sum * 10000)
            guess = math.log(1 + float(denoised[i, g]) / guess_sum * 10000)
            total += (true - guess) ** 2
    return total / test.size


def network(
    x: Array,
    weights: dict[str, Array],
    *,
    activations: tuple[str, str, str],
    fusion: str,
    bank: Array | None = None,
    product: Array | None = None,
) -> dict[str, Array]:
    """Figure 1 from input to latent, for the cells `x`.

    `weights` has a weight and a bias under the names of the paper (w1 ... w4, w11, w22, w_q ...), the norms as norm1 (Eq. 8)
    and norm2 (of E), the kernel of Figure 3, and alpha. `activations` are of encoding and decoding, latent, and output.
    `bank` holds input rows that every cell attends to beside itself; None takes the cells of `x`. `product` is the mean of
    Q^T K (S, D, D); None takes that of `x`.
    """
    wide, narrow, last = activations

    def layer(name: str, values: Array, activation: str = "linear") -> Array:
        return dense(values, weights[f"{name}.weight"], weights[f"{name}.bias"], activation)

    def scales(cells: Array) -> tuple[Array, Array, list[Array], list[Array]]:
        z_a = layer("w1", cells, wide)  # (1)
        z_b = layer("w2", z_a, narrow)  # (2)
        z_c = layer("w3", z_b, wide)  # (3)
        stacked = [layer("w11", z_a, narrow), z_b, layer("w22", z_c, narrow)]  # (6), (7), (8)
        normed = [layer_norm(z, weights["norm1.weight"], weights["norm1.bias"]) for z in stacked]
        return z_a, z_c, stacked, normed

    z_a, z_c, stacked, normed = scales(x)
    keys_of = normed if bank is None else scales(bank)[3]
    synergy = []
    for s in range(3):
        q, k = layer("w_q", normed[s]), layer("w_k", normed[s])  # (9)
        bank_k = layer("w_p", layer("w_k", keys_of[s]))
        bank_v = layer("w_s", layer("w_vs", keys_of[s]))
        if bank is None:
            spatial = spatial_attention(q, bank_k, bank_v)  # (10)
        else:
            spatial = spatial_attention(q, bank_k, bank_v, layer("w_p", k), layer("w_s", layer("w_vs", normed[s])))
        mean = channel_product(q, k) / len(x) if product is None else product[s]
        synergy.append(spatial + channel_attention(layer("w_vc", normed[s]), mean))  # (11)
    weight = gate(np.array(synergy), weights["kernel"])
    z = np.zeros_like(stacked[1])
    for s in range(3):
        normed_synergy = layer_norm(synergy[s], weights["norm2.weight"], weights["norm2.bias"])
        for i in range(len(x)):
            for d in range(z.shape[1]):
                attended = weight[s, i] * normed_synergy[i, d]
                if fusion == "residual":
                    z[i, d] += (stacked[s][i, d] + weights["alpha"][d] * attended) / 3
                else:
                    z[i, d] += attended
    return {
        "encoding": z_a,
        "hidden": stacked[1],
        "decoding": z_c,
        "output": layer("w4", z_c, last),  # (4)
        "projected": np.array(stacked),
        "synergy": np.array(synergy),
        "gate": weight,
        "latent": z,
    }
