"""One process that judges mutants by the hundred: a subject and a seed come in on a line, a verdict goes out on one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.fuzz.judge import Judge


def serve(subjects: Path, work: Path) -> None:
    """Judge what standard input asks for; verdicts leave by what was standard output when it began."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no verdict
    judge = Judge(subjects, work)
    print("ready", file=answers)
    for line in sys.stdin:
        subject, seed = line.split()
        print(json.dumps(judge.judge(subject, int(seed)).plain()), file=answers)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
