"""Would a negative binomial denoise better than the Poisson likelihood of the program? A prototype, scored by benchmarks/imputation.py.

The autoencoder of the default (G-256-32-256-G, log-normalised unit input) without attention and without clusters. Its output
goes through a softmax and is multiplied by the total of the cell. Each batch is thinned anew, as the program does it: the network
sees one part of the molecules, and the other part is its target. The loss is that of a negative binomial with one dispersion per
gene. A tenth of the cells is not trained on and says when to stop; the weights of the least loss are kept. No label is used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from denoisers import Denoised, Work, thin
from record import measure
from scipy import sparse

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Training:
    """How the prototype is trained.

    Attributes
    ----------
    share
        Of the molecules of a cell that are the target.
    width, latent
        H and D.
    batch_cells
        B.
    learning_rate
        Of AdamW.
    patience
        Epochs without a lower loss after which it stops.
    max_epochs
        At most.
    """

    share: float = 0.2
    width: int = 256
    latent: int = 32
    batch_cells: int = 128
    learning_rate: float = 1e-3
    patience: int = 12
    max_epochs: int = 400


def scaled(counts: sparse.csr_matrix) -> NDArrayFloat:
    """Log-normalised to 10,000 a cell, and each cell to length 1; (N, G) float32."""
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    values = sparse.csr_matrix(sparse.diags(1e4 / totals) @ counts)
    values.data = np.log1p(values.data)
    lengths = np.sqrt(np.asarray(values.multiply(values).sum(axis=1)).ravel())
    return np.asarray((sparse.diags(1.0 / np.maximum(lengths, 1e-6)) @ values).toarray(), dtype=np.float32)


NDArrayFloat = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Prototype:
    """The network, its input scale and its dispersions.

    Parameters
    ----------
    counts
        (N, G) of the fit.
    training
        Sizes.
    seed
        Of the weights.
    """

    def __init__(self, counts: sparse.csr_matrix, training: Training, seed: int) -> None:
        import torch
        from torch import nn

        torch.manual_seed(seed)
        values = scaled(counts)
        self.mean = values.mean(axis=0)
        self.factor = 0.5 / max(float(values.std(axis=0).mean()), 1e-6)
        profile = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() + 0.1
        n_genes, width = counts.shape[1], training.width
        self.net: nn.Module = nn.Sequential(
            nn.Linear(n_genes, width),
            nn.LeakyReLU(),
            nn.Linear(width, training.latent),
            nn.Linear(training.latent, width),
            nn.LeakyReLU(),
            nn.Linear(width, n_genes),
        )
        with torch.no_grad():  # it starts at the mean of the genes
            self.net[-1].bias.copy_(torch.from_numpy(np.log(profile / profile.sum())))  # type: ignore[index,union-attr,operator]
            self.net[-1].weight.mul_(0.1)  # type: ignore[index,union-attr,operator]
        self.log_r = torch.full((n_genes,), 1.0, requires_grad=True)

    def logits(self, counts: sparse.csr_matrix) -> Tensor:
        """(B, G) before the softmax."""
        import torch

        found: Tensor = self.net(torch.from_numpy((scaled(counts) - self.mean) * np.float32(self.factor)))
        return found

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of counts (B, G), given the total of each cell; without its constant."""
        import torch

        mean = logits.softmax(dim=1) * target.sum(dim=1, keepdim=True) + 1e-8
        r = self.log_r.exp()
        both = torch.log(r + mean)
        rest = torch.lgamma(target + r) - torch.lgamma(r) + r * (self.log_r - both)
        return -(rest + target * (mean.log() - both)).sum(dim=1).mean()

    def profiles(self, counts: sparse.csr_matrix) -> NDArrayFloat:
        """(N, G) shares of the expected counts."""
        import torch

        with torch.no_grad():
            parts = [
                self.logits(counts[start : start + 512]).softmax(dim=1).numpy()
                for start in range(0, counts.shape[0], 512)
            ]
        return np.concatenate(parts)


def fit(
    counts: sparse.csr_matrix, training: Training, seed: int, cpu_seconds: float | None
) -> tuple[Prototype, dict[str, Any]]:
    """Train until the loss of the cells that are held out no longer falls, or the CPU seconds are spent."""
    import torch

    rng = np.random.default_rng(seed)
    model = Prototype(counts, training, seed)
    order = rng.permutation(counts.shape[0])
    cut = max(1, counts.shape[0] // 10)
    checked, rows = counts[np.sort(order[:cut])], order[cut:]
    seen, target = thin(checked, training.share, rng)
    wanted = torch.from_numpy(target.toarray().astype(np.float32))
    parameters = [*model.net.parameters(), model.log_r]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate)
    best, best_epoch, kept, began = np.inf, 0, [p.detach().clone() for p in parameters], time.process_time()
    for epoch in range(1, training.max_epochs + 1):
        shuffled = rng.permutation(rows)
        for start in range(0, rows.size, training.batch_cells):
            batch = thin(counts[shuffled[start : start + training.batch_cells]], training.share, rng)
            optimizer.zero_grad()
            model.loss(model.logits(batch[0]), torch.from_numpy(batch[1].toarray().astype(np.float32))).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(model.loss(model.logits(seen), wanted))
        if loss < best:
            best, best_epoch, kept = loss, epoch, [p.detach().clone() for p in parameters]
        is_late = cpu_seconds is not None and time.process_time() - began > cpu_seconds
        if is_late or epoch - best_epoch >= training.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return model, {"epochs": epoch, "best_epoch": best_epoch}


def denoise(work: Work, training: Training | None = None) -> Denoised:
    """Fit to the counts, and take the expected counts of all of them."""
    with measure() as cost:
        counts = sparse.csr_matrix(work.counts, dtype=np.float64)
        model, about = fit(counts, training or Training(), work.seed, work.cpu_seconds)
        expected = model.profiles(counts) * work.totals
    return Denoised(expected, cost, about)
