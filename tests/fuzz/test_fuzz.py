"""A few of the mutants that ``make fuzz`` makes by the thousand: each is refused in a sentence, or gives the right result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.__main__ import mutants
from tests.fuzz.pool import judge_all
from tests.fuzz.subjects import CELLS, FOLDERS, INPUTS, build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuzz.judge import Verdict


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    build(folder)
    return folder


def wrong_ones(subjects: Path, work: Path, seed: int, counts: tuple[int, int], n_workers: int | None) -> list[Verdict]:
    """Mutants of inputs, and of folders, that are not as they should be."""
    found: list[Verdict] = []
    groups = zip(((*INPUTS, *CELLS), FOLDERS), counts, strict=True)
    wanted = [mutant for group, count in groups for mutant in mutants(group, seed, count)]
    judge_all(subjects, work, wanted, found.append, n_workers)
    assert len(found) == sum(counts)
    return [verdict for verdict in found if verdict.problem]


@pytest.mark.slow
def test_sixty_mutants_are_refused_or_right(subjects: Path, tmp_path: Path) -> None:
    assert not wrong_ones(
        subjects, tmp_path, seed=1, counts=(40, 20), n_workers=1
    )  # the other core has tests of its own


@pytest.mark.long
@pytest.mark.slow
def test_four_hundred_mutants_are_refused_or_right(subjects: Path, tmp_path: Path) -> None:
    assert not wrong_ones(subjects, tmp_path, seed=10_000, counts=(240, 160), n_workers=None)
