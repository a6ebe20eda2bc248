"""What is shown of many clusters, labels or batches: the largest, each with its color, and all others as one."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.host.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.evaluation import Levels

    Numbers = NDArray[Any]  # Any: whole numbers or not

MOST = 50
"""Clusters, labels or batches that are shown by themselves."""
MAX_LETTERS = 40
OTHERS = "others"
MISSING = "none"
GREY = "#b8b8b8"
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f7f00", "#4d4d4d", "#a6761d")
"""Colors that people with any color vision tell apart: Okabe and Ito's, and three more."""


def counted(count: int, one: str) -> str:
    """Write a number of things whose plural ends in s: "1 cluster", "2,000 clusters"."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def color(number: int) -> str:
    """Color of the cluster, label or batch with a number: ten hues, then the same ones darker, lighter, and so on."""
    base = HUES[number % len(HUES)]
    turn = number // len(HUES)
    if not turn:
        return base
    red, green, blue = (int(base[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, light, strong = colorsys.rgb_to_hls(red, green, blue)
    light = (0.28, 0.75, 0.4, 0.65)[(turn - 1) % 4]
    made = colorsys.hls_to_rgb(hue, light, strong * 0.9)
    return "#" + "".join(f"{round(part * 255):02x}" for part in made)


def short(text: str, most: int = MAX_LETTERS) -> str:
    """Text on one line of bounded length, with nothing in it that commands."""
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True, eq=False)
class Shown:
    """Levels as they are shown, S of them.

    Attributes
    ----------
    names
        (S,) of each; the last is `OTHERS` where some are left out.
    colors
        (S,) of each.
    counts
        (S,) cells of each.
    number
        (L,) which of these each level is shown as.
    n_others
        Levels that are shown as one.
    """

    names: list[str]
    colors: list[str]
    counts: IntArray
    number: IntArray
    n_others: int

    @property
    def n_own(self) -> int:
        """Levels that are shown by themselves."""
        return len(self.names) - bool(self.n_others)

    def of(self, codes: IntArray) -> IntArray:
        """Tell what cells are shown as, from (n,) levels; S for a cell without one."""
        found: IntArray = np.append(self.number, len(self.names))[codes]
        return found

    def summed(self, table: Numbers) -> Numbers:
        """(S, ...) sums over what is shown as one, from (L, ...)."""
        found: Numbers = np.zeros((len(self.names), *table.shape[1:]), dtype=table.dtype)
        np.add.at(found, self.number, table)
        return found


def shown(levels: Levels, most: int = MOST) -> Shown:
    """Choose what is shown: the largest, in the order of their numbers."""
    counts = np.bincount(levels.codes[levels.codes >= 0], minlength=len(levels.names))
    return _chosen(levels.names, counts, most)


def _chosen(names: Sequence[str], counts: IntArray, most: int) -> Shown:
    n_levels = len(names)
    kept = np.arange(n_levels)
    if n_levels > most:
        kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    n_others = n_levels - len(kept)
    number = np.full(n_levels, len(kept), dtype=np.int64)
    number[kept] = np.arange(len(kept))
    told = [short(names[at]) for at in kept.tolist()]
    colors = [color(at) for at in range(len(kept))]
    sizes = [int(counts[at]) for at in kept]
    if n_others:
        told.append(f"{OTHERS} ({n_others:,})")
        colors.append(GREY)
        sizes.append(int(counts.sum()) - sum(sizes))
    return Shown(told, colors, np.array(sizes, dtype=np.int64), number, n_others)
