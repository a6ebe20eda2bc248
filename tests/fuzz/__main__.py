"""``python -m tests.fuzz --mutants N --seed S``: as many mutants as you like, of inputs and of folders; ``make fuzz`` calls it.

``python -m tests.fuzz --only store --seed 17 --mutants 1`` shows one again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.pool import judge_all
from tests.fuzz.subjects import CELLS, FOLDERS, INPUTS, build

if TYPE_CHECKING:
    from tests.fuzz.judge import Verdict


def mutants(subjects: tuple[str, ...], seed: int, count: int) -> list[tuple[str, int]]:
    """List mutants: the subjects in turn, each with a seed of its own."""
    return [(subjects[at % len(subjects)], seed + at // len(subjects)) for at in range(count)]


def main() -> int:
    """Judge and report; the exit code says whether all was right."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--mutants", type=int, default=200, help="of inputs, and as many of stores, models and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one subject")
    parser.add_argument("--json", type=Path, help="file for the verdicts")
    options = parser.parse_args()
    groups = [(options.only,)] if options.only else [(*INPUTS, *CELLS), FOLDERS]
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        subjects, work = Path(folder, "subjects"), Path(folder, "work")
        subjects.mkdir()
        work.mkdir()
        build(subjects)
        wanted = [mutant for group in groups for mutant in mutants(group, options.seed, options.mutants)]

        def tell(verdict: Verdict) -> None:
            verdicts.append(verdict)
            if verdict.problem or options.only:
                print(
                    f"{verdict.subject} {verdict.seed}: {verdict.what}: {verdict.problem or 'right'}\n{verdict.message}",
                    flush=True,
                )

        judge_all(subjects, work, wanted, tell)
    wrong = [verdict for verdict in verdicts if verdict.problem]
    for subject in sorted({verdict.subject for verdict in verdicts}):
        own = [verdict for verdict in verdicts if verdict.subject == subject]
        codes = Counter(verdict.codes[-1] if verdict.codes else "none" for verdict in own)
        print(
            f"{subject}: {len(own)} mutants, last exit codes {dict(codes)}, {sum(bool(verdict.problem) for verdict in own)} wrong"
        )
    print(
        f"{len(verdicts)} mutants, {len(wrong)} wrong; slowest {max(verdict.seconds for verdict in verdicts):.1f} s, "
        f"largest {max(verdict.peak_bytes for verdict in verdicts) / 2**20:.0f} MiB"
    )
    if options.json:
        found = {"seed": options.seed, "n_mutants": len(verdicts), "wrong": [verdict.plain() for verdict in wrong]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
