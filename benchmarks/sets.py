"""The labelled sets that the benchmarks know: where their labels come from, their batches, and the groups they form.

A file that is not in the table counts as `single`, with labels of unknown origin.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """One labelled set.

    Attributes
    ----------
    labels
        Where the labels come from: sorting, genotype, time point or source (``experiment``); the publication's
        annotation (``authors``); computed clusters named by hand, which favour graph clustering (``clusters``); joined
        sets (``mixed``).
    batch
        Column of obs with the technical batch, where there is one.
    is_single
        Whether it is one of the sets that are clustered as one batch.
    family
        Study, where several sets share one; else None.
    """

    labels: str
    batch: str | None = None
    is_single: bool = True
    family: str | None = None


SETS: dict[str, KnownSet] = {
    "baron_mouse1_822": KnownSet("authors"),
    "cite_cbmc8617_2000g": KnownSet("clusters"),
    "deng_counts": KnownSet("experiment"),
    "goolam": KnownSet("experiment"),
    "ipsc_cm315": KnownSet("experiment"),
    "kang12k_1287g": KnownSet("authors", batch="sample", family="kang"),
    "mix_celseq2_5cl": KnownSet("experiment", family="mixology"),
    "pbmc3k_seurat": KnownSet("clusters"),
    "pollen299": KnownSet("experiment"),
    "worm_neuron4186": KnownSet("authors"),
    "yan90_rpkm": KnownSet("experiment"),
    "young_kidney5685_2000g": KnownSet("authors"),
    "zeisel1464_1000g": KnownSet("authors"),
    "zheng_facs3774": KnownSet("experiment"),
    "mix_cel_4batch": KnownSet("experiment", batch="batch", is_single=False, family="mixology"),
    "pbmc_pool18k_1191g": KnownSet("mixed", batch="batch", is_single=False, family="kang"),
    "kang_scgen1975_6998g": KnownSet("authors", batch="condition", is_single=False, family="kang"),
    "marques2618": KnownSet("authors", batch="batch", is_single=False),
    "croconet900_300g": KnownSet("authors", batch="batch", is_single=False),
}
"""`pbmc_pool18k` is 38 % cells of Kang's study, from which `kang12k` and `kang_scgen` are, too: they count as one family."""

UNKNOWN = KnownSet("unknown")
GROUPS = {
    "single": tuple(name for name, known in SETS.items() if known.is_single),
    "batches": tuple(name for name, known in SETS.items() if known.batch is not None),
}


def find_set(name: str) -> KnownSet:
    """What is known of a set."""
    return SETS.get(name, UNKNOWN)


def label_kind(name: str) -> str:
    """Where the labels of a set come from."""
    return find_set(name).labels


def family(name: str) -> str:
    """The study of a set; sets that share none are families of their own."""
    return find_set(name).family or name


def is_chosen(name: str, group: str, names: list[str] | None = None) -> bool:
    """Whether to run a file of this name, without .h5ad: one of `names` if there are any, else one of the group."""
    if names:
        return name in names
    return name in GROUPS[group] or (group == "single" and name not in SETS)
