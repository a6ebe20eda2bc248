import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

import scamac_scale.progress as progress_module
from scamac_scale.progress import Told, duration, reported, show_progress, stages, track


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    """Nobody has said what is shown, as when the package is imported."""
    before = replace(progress_module._SETTINGS)
    vars(progress_module._SETTINGS).update(vars(progress_module._Settings()))
    yield
    vars(progress_module._SETTINGS).update(vars(before))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give a time that moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_library_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with track("sweep", 3, "cells") as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_function_of_python_reports_what_takes_longer(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    def work(seconds: float) -> str:
        with reported(), stages([Told("reading", 1.0), Told("fitting", 60.0)]) as begin:
            begin(0)
            clock[0] += seconds
            begin(1)
            with track("steps", 2, "steps") as progress:
                clock[0] += seconds
                progress.advance(2)
        return capsys.readouterr().err

    assert work(3.0) == ""
    first, second = work(12.0).splitlines()
    assert first.startswith("stage 2 of 2: fitting, about")
    assert second.startswith("stage 2 of 2: steps: 2/2 steps")
    show_progress(False)
    assert work(12.0) == ""


def test_one_process_of_a_job_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from scamac_scale.api.progress import reports

    vars(progress_module._SETTINGS).update(every_s=0.0)

    @reports
    def work() -> str:
        with track("sweep", 1, "cells") as progress:
            progress.advance(1)
        return capsys.readouterr().err

    assert work().startswith("sweep: 1/1 cells")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert work() == ""


def test_a_call_that_ends_leaves_the_report_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    vars(progress_module._SETTINGS).update(every_s=0.0)
    first, second = reported(), reported()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with track("sweep", 1, "cells") as progress:
        progress.advance(1)
    assert capsys.readouterr().err.startswith("sweep: 1/1 cells")
    second.__exit__(None, None, None)
    assert not progress_module._SETTINGS.is_shown


@pytest.mark.parametrize(("policy", "spins"), [(None, "0"), ("ACTIVE", None)])
def test_threads_that_wait_do_not_spin_unless_the_user_wants_it(policy: str | None, spins: str | None) -> None:
    given = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    given |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if policy is None else {"OMP_WAIT_POLICY": policy})
    done = subprocess.run(
        [sys.executable, "-c", "import scamac_scale, torch"], env=given, capture_output=True, text=True, check=True
    )
    told = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if not told:
        pytest.skip("torch has another OpenMP here, which does not tell")
    assert (set(told) == {spins}) if spins else "0" not in told


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(every_s=0.0)
    with track("sweep", 4000, "cells") as progress:
        progress.advance(1000)
        progress.advance(3000, "loss 0.5")
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sweep: 1,000/4,000 cells")
    assert last.startswith("sweep: 4,000/4,000 cells")
    assert last.endswith("0 s left, loss 0.5")


def test_short_work_is_not_reported_and_of_longer_work_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scamac_scale.progress

    show_progress(every_s=1e6)
    for short_s, n_lines in ((1e6, 0), (0.0, 1)):
        monkeypatch.setattr(scamac_scale.progress, "SHORT_S", short_s)
        with track("sweep", 50, "cells") as progress:
            for _ in range(50):
                progress.advance(1)
        assert len(capsys.readouterr().err.splitlines()) == n_lines


def test_on_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    show_progress()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with track("sweep", 10, "cells") as progress:
        progress.advance(10, "done")
    assert "sweep" in capsys.readouterr().err


# ---------------------------------------------------------------------- stages


def test_the_stages_are_numbered_and_the_time_left_is_of_all(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    show_progress(every_s=0.0)
    with stages([Told("reading", 10.0), Told("fitting", 30.0), Told("writing", 20.0)]) as begin:
        begin(0)
        clock[0] += 20.0  # twice as long as was thought
        begin(1)
        with track("steps", 100, "steps") as progress:
            clock[0] += 10.0
            progress.advance(50)
    reading, fitting, steps = capsys.readouterr().err.splitlines()
    assert reading == "stage 1 of 3: reading, about 60 s left in all"
    assert fitting == "stage 2 of 3: fitting, about 2 min left in all"
    assert steps == "stage 2 of 3: steps: 50/100 steps, 5/s, about 2 min left in all"


def test_stages_inside_of_a_stage_count_for_the_time_and_are_not_numbered(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    show_progress(every_s=0.0)
    with stages([Told("fitting", 30.0), Told("writing", 20.0)]) as begin:
        begin(0)
        with stages([Told("pretraining", 300.0), Told("rounds", 100.0)]) as begin_inner:
            begin_inner(1)
            with track("round 1", 10, "steps") as progress:
                clock[0] += 1.0
                progress.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "stage 1 of 2: round 1: 1/10 steps, 1/s, about 2 min left in all"
    assert len(lines) == 2


def test_a_stage_that_had_nothing_to_do_does_not_set_the_pace(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    show_progress(every_s=0.0)
    with stages([Told("reading", 60.0), Told("fitting", 300.0)]) as begin:
        begin(0)
        clock[0] += 1.0  # it was there already
        begin(1)
    assert capsys.readouterr().err.splitlines()[1] == "stage 2 of 2: fitting, about 5 min left in all"


def test_where_nobody_can_say_no_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(every_s=0.0)
    with stages([Told("reading", math.nan), Told("fitting", math.nan)]) as begin:
        begin(0)
    assert capsys.readouterr().err == "stage 1 of 2: reading\n"


def test_an_error_ends_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(every_s=0.0)
    with pytest.raises(ValueError, match="x"), stages([Told("reading", 1.0)]):
        raise ValueError("x")
    with track("sweep", 1, "cells") as progress:
        progress.advance(1)
    assert capsys.readouterr().err.startswith("sweep: 1/1 cells")


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3 s"), (89, "89 s"), (120, "2 min"), (9000, "2.5 h")])
def test_a_time_reads_as_a_person_says_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_stage_may_begin_with_the_work_of_its_label(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(every_s=0.0)
    parts = [Told("looking", 1.0, "checking"), Told("measuring", 1.0, "measuring"), Told("writing", 1.0, "writing")]
    with stages(parts):
        for label in ("checking values", "counting values", "writing store"):
            with track(label, 1, "cells"):
                pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["stage 1 of 3: looking", "stage 3 of 3: writing"]
