from collections.abc import Iterator

import pytest

from scamac_scale.progress import show_progress, track


@pytest.fixture(autouse=True)
def silent_afterwards() -> Iterator[None]:
    yield
    show_progress(False)


def test_the_library_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with track("sweep", 3, "cells") as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


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
