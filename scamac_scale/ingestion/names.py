"""What names of genes and cells look like: positions, barcodes, identifiers of another species; and how two lists of genes differ."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from scamac_scale.cells.genes import locate_genes
from scamac_scale.ingestion.formats.gene_names import text_columns
from scamac_scale.ingestion.orientation import BARCODE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.ingestion.raw import RawMatrix

SOME = 1000
"""Names that are looked at, spread over a list."""
MOST_APART = 0.5
"""Share of the genes that a column must tell apart to name them."""
SPARSE = 8
"""Positions of the genes that are left of a table are at most so many fold their number; those of NCBI are larger."""
MAX_DIGITS = 9
_ENSEMBL = re.compile(r"(ENS[A-Z]*G)\d{6,}(?:\.\d+)?$")
_SPECIES = {"ENSG": ", human", "ENSMUSG": ", mouse", "ENSRNOG": ", rat", "ENSDARG": ", zebrafish"}


def are_positions(names: Sequence[str]) -> bool:
    """Tell whether names are small whole numbers, as tables without names have them, also where some columns were left out."""
    if len(names) < 2:
        return False
    return all(name.isdecimal() and len(name) <= MAX_DIGITS for name in names) and _are_dense(names)


def _are_dense(names: Sequence[str]) -> bool:
    numbers = list(map(int, names))
    is_plain = all(name == str(number) for name, number in zip(names, numbers, strict=True))  # in no other script
    return is_plain and max(numbers) <= SPARSE * len(names)


def without_version(name: str) -> str:
    """Name an Ensembl gene without the version that follows its dot: ``ENSG00000000003.15`` is ``ENSG00000000003``."""
    stem, dot, version = name.partition(".")
    return stem if dot and version.isdecimal() and stem.startswith("ENS") else name


def described(names: Sequence[str]) -> str:
    """Say in words what most names look like: positions, barcodes, Ensembl identifiers, or symbols."""
    some = _some(names)
    if not some:
        return "no names"
    if are_positions(names):
        return f"positions ({names[0]}, {names[1]}, ...)"
    if _most(BARCODE.fullmatch(name) is not None for name in some):
        return f"barcodes of cells ({some[0]})"
    found = Counter(match.group(1) for match in map(_ENSEMBL.match, some) if match)
    if found.total() * 2 > len(some):
        versions = " with versions" if _most(without_version(name) != name for name in some) else ""
        return f"Ensembl identifiers{versions} ({some[0]}{_SPECIES.get(found.most_common(1)[0][0], '')})"
    if _most(name == name.upper() and name.lower() != name for name in some):
        return f"symbols in capitals, as of human genes ({some[0]})"
    if _most(len(name) > 1 and name == name.capitalize() and name.upper() != name for name in some):
        return f"symbols with small letters, as of mouse genes ({some[0]})"
    return f"symbols ({some[0]})"


def name_doubts(raw: RawMatrix) -> list[str]:
    """Say what is odd about the names of the genes, one sentence each; a transposed table is refused when it is opened."""
    genes = raw.gene_names
    doubts = []
    if are_positions(genes):
        doubts.append(
            f"its genes are named by positions ({genes[0]}, {genes[1]}, ...), so that they are matched by number only; {serving_columns(raw)}"
        )
    return doubts


def serving_columns(raw: RawMatrix) -> str:
    """Say which columns of var could name the genes, in place of positions: those of texts that tell most genes apart."""
    found = [
        column
        for _, var in raw.read_vars()[:1]
        for column in text_columns(var)
        if column in var
        and var[column].nunique() > MOST_APART * len(var)
        and not are_positions(list(map(str, var[column])))
    ]
    if not found:
        return "name them in var"
    others = f" (or {', '.join(found[1:4])})" if len(found) > 1 else ""
    return f"name them by a column of var: --ingest.gene_column {found[0]}{others}"


def matched_names(space: GeneSpace, names: Sequence[str], accepted: Collection[str]) -> Sequence[str]:
    """Name genes as a model does: where versions are accepted, Ensembl identifiers that are unique without them, too."""
    if "versions" not in accepted:
        return names
    ours = Counter(map(without_version, space.filtered))
    theirs = Counter(map(without_version, names))
    renamed = {without_version(name): name for name in space.filtered if ours[without_version(name)] == 1}
    stems = [without_version(name) for name in names]
    return [renamed.get(stem, name) if theirs[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def name_hint(wanted: Sequence[str], raw: RawMatrix) -> str:
    """Say how the genes of a model and of an input are named differently, and what to do."""
    names = raw.gene_names
    if (locate_genes(wanted, raw.obs.index.tolist()) >= 0).sum() * 2 >= len(wanted):
        return "They are the names of its cells: the matrix is transposed; cells are rows (adata.T)."
    stems = {without_version(name) for name in names}
    n_found = sum(without_version(name) in stems for name in wanted)
    if n_found * 2 >= len(wanted):
        return "They are the same but for the versions of Ensembl identifiers: leave these out of the comparison with --accept versions."
    upper = {name.upper() for name in names}
    if sum(name.upper() in upper for name in wanted) * 2 >= len(wanted):
        return f"They are the same but for capital letters (the model has {wanted[0]}): another species? If not, rename them in var."
    return f"The model names {described(wanted)}, this input {described(names)}; name genes alike in var, and check the species."


def _some(names: Sequence[str]) -> list[str]:
    return list(names[:: max(1, len(names) // SOME)])


def _most(marks: Iterable[bool]) -> bool:
    found = list(marks)
    return sum(found) * 2 > len(found)
