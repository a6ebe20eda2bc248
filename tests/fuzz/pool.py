"""Judges many mutants on all cores: each core has a worker, which is started anew where a mutant kills or hangs it."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from tests.fuzz.judge import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

HANG_S = 120.0
"""Seconds after which a mutant is said to hang; the slowest takes some three."""


class _Worker:
    """A process of `worker`, started at its first mutant."""

    def __init__(self, subjects: Path, work: Path) -> None:
        self._argv = [sys.executable, "-m", "tests.fuzz.worker", str(subjects), str(work)]
        self._errors = work.with_suffix(".err")
        self._process: subprocess.Popen[str] | None = None

    def judge(self, subject: str, seed: int) -> Verdict:
        """Let the worker judge one mutant; its death or silence is a verdict, too."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{subject} {seed}\n")
        process.stdin.flush()
        answer = self._answer(process)
        if answer:
            return Verdict(**{**(found := json.loads(answer)), "codes": tuple(found["codes"])})
        is_hanging = _lives_on(process)
        self.end()
        problem = f"hangs for {HANG_S:g} s" if is_hanging else f"the process ends with {process.returncode}"
        return Verdict(
            subject, seed, "", (), problem, self._errors.read_text()[-2000:], HANG_S if is_hanging else 0.0, 0
        )

    def end(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        said = self._answer(self._process)
        assert said == "ready\n", self._errors.read_text()
        return self._process

    def _answer(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline() if select.select([process.stdout], [], [], HANG_S)[0] else ""


def _lives_on(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        return True
    return False


def judge_all(
    subjects: Path,
    work: Path,
    mutants: Iterable[tuple[str, int]],
    tell: Callable[[Verdict], object],
    n_workers: int | None = None,
) -> None:
    """Judge mutants in any order.

    Parameters
    ----------
    subjects
        Folder of `subjects.build`.
    work
        Folder for mutants.
    mutants
        (subject, seed) of each.
    tell
        Called with each verdict, by one thread at a time.
    n_workers
        Processes; None takes one for each core.
    """
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    telling = threading.Lock()

    def work_on(number: int) -> None:
        worker = _Worker(subjects, work / str(number))
        try:
            while True:
                verdict = worker.judge(*waiting.get_nowait())
                with telling:
                    tell(verdict)
        except queue.Empty:
            pass
        finally:
            worker.end()

    threads = [threading.Thread(target=work_on, args=(number,)) for number in range(n_workers or os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
