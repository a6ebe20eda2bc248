"""What the deep peers share: layers, bounded training, and the self-training of deep embedded clustering (DEC).

References
----------
Xie, Girshick and Farhadi, Unsupervised deep embedding for clustering analysis, ICML 2016.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Bounds:
    """How long to train.

    Attributes
    ----------
    epochs
        As published, or nearly.
    max_steps
        Gradient steps at most, our bound for a CPU.
    batch_cells
        Cells in a step.
    """

    epochs: int
    max_steps: int
    batch_cells: int = 256

    def n_epochs(self, n_cells: int) -> int:
        """Whole epochs within both bounds, at least one."""
        return max(1, min(self.epochs, self.max_steps // math.ceil(n_cells / self.batch_cells)))


def layers(widths: Sequence[int], *, ends_linear: bool) -> nn.Sequential:
    """Linear layers with ReLU between; the last one linear, or not."""
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*(parts[:-1] if ends_linear else parts))


def epoch_rows(n_cells: int, batch_cells: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every cell once, in random order."""
    yield from torch.randperm(n_cells, generator=generator).split(batch_cells)


def train(
    loss_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    n_cells: int,
    bounds: Bounds,
    generator: torch.Generator,
) -> None:
    """Gradient steps on `loss_of` of the rows of a batch."""
    for _ in range(bounds.n_epochs(n_cells)):
        for rows in epoch_rows(n_cells, bounds.batch_cells, generator):
            optimizer.zero_grad()
            loss_of(rows).backward()
            optimizer.step()


def soft_assignment(latent: Tensor, centers: Tensor) -> Tensor:
    """Student's t of one degree of freedom, rows of sum 1; (N, D), (K, D) to (N, K)."""
    kernel = 1.0 / (1.0 + torch.cdist(latent, centers).square())
    return kernel / kernel.sum(dim=1, keepdim=True)


def sharpened(q: Tensor) -> Tensor:
    """DEC's target P: squared, and clusters weighed equally; (N, K)."""
    weight = q.square() / q.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class SelfTraining:
    """KL(P || Q), P from all cells once per epoch, until few cells change their cluster.

    Attributes
    ----------
    bounds
        Epochs at most.
    tolerance
        Share of cells that change, below which it ends.
    beside
        A further loss of the rows of a batch, added; None for none.
    """

    bounds: Bounds
    tolerance: float
    beside: Callable[[Tensor], Tensor] | None = None

    def run(
        self,
        encode: Callable[[Tensor | None], Tensor],
        parameters: Iterable[nn.Parameter],
        centers: NDArray,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        generator: torch.Generator,
    ) -> Tensor:
        """Labels at the end; (N,).

        Parameters
        ----------
        encode
            Rows, or None for all cells without noise, to the latent.
        parameters
            What is trained, beside the centers.
        centers
            (K, D) at the start.
        make_optimizer
            Of a list of parameters.
        generator
            Of the order of cells.
        """
        moving = nn.Parameter(torch.as_tensor(centers, dtype=torch.float32))
        optimizer = make_optimizer([*parameters, moving])
        earlier: Tensor | None = None
        with torch.no_grad():
            q = soft_assignment(encode(None), moving)
        for _ in range(self.bounds.n_epochs(len(q))):
            target, labels = sharpened(q), q.argmax(dim=1)
            if earlier is not None and (labels != earlier).float().mean() < self.tolerance:
                break
            earlier = labels
            for rows in epoch_rows(len(q), self.bounds.batch_cells, generator):
                log_q = soft_assignment(encode(rows), moving).clamp_min(1e-12).log()
                loss = nn.functional.kl_div(log_q, target[rows], reduction="batchmean")
                if self.beside is not None:
                    loss = loss + self.beside(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                q = soft_assignment(encode(None), moving)
        return q.argmax(dim=1)
